//! A child process that ends with this one, however this one ends.

use std::io;
use std::process::ExitStatus;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};

use super::lock::Lock;

/// How a child is ended, with this process and when it is dropped.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    /// By SIGKILL.
    Killed,
    /// By SIGTERM, since it has something to end itself; when it is dropped, by SIGKILL if it is there after that time.
    Asked(Duration),
}

/// A child process whose life is tied to this one's. The kernel kills it when its keeper ends: a thread that does nothing
/// but start it and wait for its end. (The kernel ties a child to the *thread* that started it. Had a thread of the async
/// runtime done so, the child would end with that thread, which may be long before this process does.) Dropping it ends
/// the child and waits for that.
pub struct Kept {
    pid: u32,
    /// Dropped to have the child ended.
    stop: Option<oneshot::Sender<()>>,
    /// How the child ended, once it has.
    end: watch::Receiver<Option<String>>,
    keeper: Option<JoinHandle<()>>,
}

impl Kept {
    /// Starts a child that holds a lock until it ends.
    ///
    /// # Errors
    /// The system's.
    pub async fn start(mut command: Command, lock: Lock, ending: Ending) -> io::Result<Self> {
        let (parent, descriptor) = (std::process::id().cast_signed(), lock.descriptor());
        // SAFETY: between fork and exec, three system calls that are async-signal-safe and touch no memory but errno.
        unsafe {
            command.pre_exec(move || tie(parent, descriptor, ending));
        }
        let (stop, stopped) = oneshot::channel();
        let (told, started) = oneshot::channel();
        let (ended, end) = watch::channel(None);
        let keep = move || keep(command, lock, ending, stopped, told, &ended);
        let keeper = std::thread::Builder::new().name("keeper".to_owned()).spawn(keep)?;
        let pid = started.await.unwrap_or_else(|_| Err(io::Error::other("the thread that keeps it ended")))?;
        Ok(Kept { pid, stop: Some(stop), end, keeper: Some(keeper) })
    }

    /// Process id; none once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.end.borrow().is_none().then_some(self.pid)
    }

    /// Waits for its end; says how.
    pub async fn ended(&self) -> String {
        match self.end.clone().wait_for(Option::is_some).await {
            Ok(how) => how.clone().unwrap_or_default(),
            Err(_) => "the thread that kept it ended".to_owned(),
        }
    }

    /// Ends it and waits for that, as dropping it does, without holding up the thread.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.ended().await;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(keeper) = self.keeper.take() {
            // A keeper that panicked has no child any more.
            let _ = keeper.join();
        }
    }
}

/// What the child does before it becomes another program: it asks for its end with that of its parent, and keeps the lock.
fn tie(parent: i32, descriptor: i32, ending: Ending) -> io::Result<()> {
    let signal = match ending {
        Ending::Killed => libc::SIGKILL,
        Ending::Asked(_) => libc::SIGTERM,
    };
    // SAFETY: plain system calls on numbers; the descriptor is open as long as the parent has not seen this exec's outcome.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, signal) != 0 || libc::fcntl(descriptor, libc::F_SETFD, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        // A parent that ended before it was asked for sends nothing any more.
        if libc::getppid() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
    }
    Ok(())
}

/// Whole life of the thread that keeps a child.
fn keep(
    command: Command,
    lock: Lock,
    ending: Ending,
    stopped: oneshot::Receiver<()>,
    told: oneshot::Sender<io::Result<u32>>,
    ended: &watch::Sender<Option<String>>,
) {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(live(command, lock, ending, stopped, told, ended)),
        // Whoever asked for the child may be gone.
        Err(e) => drop(told.send(Err(e))),
    }
}

/// Life of the child: its start, and its end by itself or when told to stop.
async fn live(
    mut command: Command,
    mut lock: Lock,
    ending: Ending,
    stopped: oneshot::Receiver<()>,
    told: oneshot::Sender<io::Result<u32>>,
    ended: &watch::Sender<Option<String>>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        // Whoever asked for the child may be gone.
        Err(e) => return drop(told.send(Err(e))),
    };
    // What the child was given, the end of a pipe, say, is the child's alone.
    drop(command);
    let pid = child.id().unwrap_or_default();
    if let Err(error) = lock.note(pid) {
        tracing::debug!(%error, "the lock does not say whose it is");
    }
    // From here on the child holds it, and nobody else.
    drop(lock);
    // Where nobody waits for the child any more, `stopped` has ended too.
    let _ = told.send(Ok(pid));
    let how = tokio::select! {
        status = child.wait() => told_end(status),
        _ = stopped => end(&mut child, ending).await,
    };
    ended.send_replace(Some(how));
}

/// Ends a child; says how it ended.
async fn end(child: &mut Child, ending: Ending) -> String {
    if let (Ending::Asked(patience), Some(pid)) = (ending, child.id()) {
        // SAFETY: kill takes two numbers; a child that was not waited for keeps its id.
        unsafe { libc::kill(pid.cast_signed(), libc::SIGTERM) };
        if let Ok(status) = tokio::time::timeout(patience, child.wait()).await {
            return told_end(status);
        }
    }
    match child.kill().await {
        Ok(()) => "killed".to_owned(),
        Err(e) => format!("cannot be killed: {e}"),
    }
}

/// How a child ended, in words.
fn told_end(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => format!("ended ({status})"),
        Err(e) => format!("cannot be waited for: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::up::lock::Taken;
    use std::path::Path;
    use std::time::Duration;

    async fn lock(dir: &Path) -> Option<Lock> {
        match Lock::take(dir, Duration::from_millis(100)).await.unwrap() {
            Taken::Ours(lock) => Some(lock),
            Taken::HeldBy(_) => None,
        }
    }

    async fn sleeping(dir: &Path) -> Kept {
        let mut command = Command::new("sleep");
        command.arg("600");
        Kept::start(command, lock(dir).await.unwrap(), Ending::Killed).await.unwrap()
    }

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it_and_holds_its_lock_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let path = dir.path().to_owned();
        let asked = std::thread::spawn(move || runtime().block_on(sleeping(&path)));
        let kept = asked.join().unwrap();
        runtime().block_on(async {
            let early = tokio::time::timeout(Duration::from_millis(300), kept.ended()).await;
            assert!(early.is_err(), "{early:?}");
            assert!(lock(dir.path()).await.is_none(), "the child does not hold its lock");
            let process = Path::new("/proc").join(kept.pid().unwrap().to_string());
            drop(kept);
            assert!(!process.exists() && lock(dir.path()).await.is_some());
        });
    }

    #[tokio::test]
    async fn a_child_that_ends_by_itself_says_how_and_one_that_cannot_start_why() {
        let dir = tempfile::tempdir().unwrap();
        let started = |program: &str, lock: Lock| Kept::start(Command::new(program), lock, Ending::Killed);
        let kept = started("false", lock(dir.path()).await.unwrap()).await.unwrap();
        assert!(kept.ended().await.contains("exit status: 1"));
        assert_eq!(kept.pid(), None);
        let missing = started("/no/such/program", lock(dir.path()).await.unwrap()).await;
        assert_eq!(missing.map(drop).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(lock(dir.path()).await.is_some());
    }

    #[tokio::test]
    async fn a_child_that_is_asked_to_end_does_so_by_itself_and_one_that_does_not_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let heard = dir.path().join("heard");
        let asked = async |on_term: &str, patience: Duration| {
            let script = format!("trap '{on_term}' TERM; echo ready; while :; do sleep 0.01; done");
            let (reader, writer) = io::pipe().unwrap();
            let mut command = Command::new("sh");
            command.args(["-c", &script]).stdout(writer);
            let kept = Kept::start(command, lock(dir.path()).await.unwrap(), Ending::Asked(patience)).await.unwrap();
            io::Read::read_exact(&mut &reader, &mut [0; 6]).unwrap();
            let process = Path::new("/proc").join(kept.pid().unwrap().to_string());
            kept.stop().await;
            assert!(!process.exists() && lock(dir.path()).await.is_some());
        };
        asked(&format!("echo > {}; exit", heard.display()), Duration::from_secs(60)).await;
        assert!(heard.exists());
        asked("", Duration::from_millis(100)).await;
    }
}
