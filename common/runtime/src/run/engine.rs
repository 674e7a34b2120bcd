//! The one OS thread that owns a stage, and with it the device.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use protocol::stage::Stop;

type Task<S> = Box<dyn FnOnce(&mut S) + Send>;

/// Hands work to the thread. Dropping it ends the thread.
pub struct Engine<S> {
    /// Capacity 1: the run loop gives one task at a time.
    tasks: mpsc::Sender<Task<S>>,
    /// Closed once the thread has let go of the stage.
    ended: oneshot::Receiver<()>,
}

impl<S: Send + 'static> Engine<S> {
    /// Starts a thread that owns `stage`.
    pub fn start(name: &str, mut stage: S) -> Self {
        let (tasks, mut queue) = mpsc::channel::<Task<S>>(1);
        let (ending, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                while let Some(task) = queue.blocking_recv() {
                    task(&mut stage);
                }
                drop(stage);
                drop(ending);
            })
            .expect("the system gives a stage its one thread");
        Engine { tasks, ended }
    }

    /// Ends the thread, and waits until it has let go of the stage: what a stage finishes when it is dropped is done by then.
    pub async fn end(self) {
        drop(self.tasks);
        let _ = self.ended.await;
    }

    /// Runs `work` on the thread, in the caller's span. A panic there is caught: the message is tried again, the
    /// neighbours' jobs go on.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut S) -> Result<T, Stop> + Send + 'static,
    ) -> Result<T, Stop> {
        let (reply, answer) = oneshot::channel();
        let span = Span::current();
        let task: Task<S> = Box::new(move |stage| {
            let outcome = span.in_scope(|| guarded(|| work(stage)));
            // The run loop may have been dropped meanwhile; then nobody waits.
            let _ = reply.send(outcome);
        });
        if self.tasks.send(task).await.is_err() {
            return Err(Stop::Unavailable("the stage's thread has ended. This is a bug.".to_owned()));
        }
        answer.await.unwrap_or_else(|_| Err(Stop::Unavailable("the stage's thread has ended".to_owned())))
    }
}

/// Does work of a stage; a panic of it is trouble outside of the message.
///
/// # Errors
/// `work`'s; [`Stop::Unavailable`] for a panic.
pub fn guarded<T>(work: impl FnOnce() -> Result<T, Stop>) -> Result<T, Stop> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(Stop::Unavailable(format!("the stage panicked: {text}. This is a bug.")))
    })
}
