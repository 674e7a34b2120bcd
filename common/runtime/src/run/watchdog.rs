//! Engines that hang: a step of work that takes longer than its size allows is the end of the process.
//!
//! A timer keeps a message from redelivery while its stage works on it, whatever the engine does; so nothing else would
//! ever take it from an engine that stands still. A process that is gone lets go of it: another worker gets it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use outside::Outside;

use crate::notify::{Heartbeat, Notifier};
use config::WatchdogConfig;
use protocol::error::StageName;

mod outside;

/// Time between two looks at the engines.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Exit status of a process whose engine hangs: `process::Exit::Other`.
pub const STATUS: i32 = 1;
/// Time that the end of such a process may take: what is to be done at an exit may hang as the engine does.
const LAST_GRACE: Duration = Duration::from_secs(5);

/// Step that takes too long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hung {
    /// Stage whose engine it is.
    pub stage: StageName,
    /// Work that it is part of.
    pub work: String,
    /// Time that it takes by now.
    pub taken: Duration,
    /// Time that it may take.
    pub limit: Duration,
}

impl fmt::Display for Hung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the engine of stage-{} hangs: no step of {} for {:.1} s, where {:.1} s are the limit; this process ends, and the \
             work goes to another one (raise watchdog.step_s or watchdog.{}_s if the engine is only slow)",
            self.stage,
            self.work,
            self.taken.as_secs_f64(),
            self.limit.as_secs_f64(),
            self.stage
        )
    }
}

/// Watch over the work of one stage. Cheap to clone; all clones share it.
#[derive(Clone)]
pub struct Watchdog(Arc<Shared>);

struct Shared {
    stage: StageName,
    config: WatchdogConfig,
    watched: Mutex<Watched>,
}

#[derive(Default)]
struct Watched {
    works: BTreeMap<u64, Work>,
    next: u64,
}

struct Work {
    text: String,
    limit: Duration,
    /// Begin of the step that goes on; none while there is nothing for the engine to do.
    since: Option<Instant>,
    /// Waits for something outside up to now.
    waits: u64,
    /// Number of the wait that nothing has ended yet.
    wait: Option<u64>,
}

impl Work {
    /// Begins a step.
    fn step(&mut self) {
        self.since = Some(Instant::now());
    }
}

impl Watchdog {
    /// Watch over a stage, which ends the process when a step takes too long. While none does, `notifier` hears that the
    /// process is alive.
    pub fn start(stage: StageName, config: &WatchdogConfig, notifier: &Notifier) -> Self {
        Watchdog::telling(stage, config, notifier.heartbeat(), end_process)
    }

    /// Watch over a stage, which tells of a step that takes too long, once, and then ends.
    fn telling(
        stage: StageName,
        config: &WatchdogConfig,
        heartbeat: Heartbeat,
        tell: impl FnOnce(&Hung) + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared { stage, config: config.clone(), watched: Mutex::default() });
        let watching = Arc::downgrade(&shared);
        std::thread::Builder::new()
            .name("watchdog".to_owned())
            .spawn(move || {
                if let Some(hung) = wait_for_hung(&watching, heartbeat) {
                    tell(&hung);
                }
            })
            .expect("the system gives a stage its one thread more");
        Watchdog(shared)
    }

    /// Begins to watch work of unknown size.
    pub fn watch(&self, text: String) -> Pulse {
        let limit = self.0.config.limit(self.0.stage, 0);
        let mut watched = self.0.watched();
        let id = watched.next;
        watched.next += 1;
        watched.works.insert(id, Work { text, limit, since: Some(Instant::now()), waits: 0, wait: None });
        Pulse { shared: self.0.clone(), id }
    }
}

impl Shared {
    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().expect("no holder panics. This is a bug.")
    }

    /// Changes a piece of work, unless it is over.
    fn change(&self, id: u64, change: impl FnOnce(&mut Work)) {
        if let Some(work) = self.watched().works.get_mut(&id) {
            change(work);
        }
    }

    /// First step that takes too long.
    fn hung(&self) -> Option<Hung> {
        self.watched().works.values().find_map(|work| {
            let taken = work.since?.elapsed();
            let hung = Hung { stage: self.stage, work: work.text.clone(), taken, limit: work.limit };
            (taken > work.limit).then_some(hung)
        })
    }
}

/// Waits until a step takes too long; none once nobody needs the watch any more.
fn wait_for_hung(watching: &Weak<Shared>, mut heartbeat: Heartbeat) -> Option<Hung> {
    loop {
        if let Some(hung) = watching.upgrade()?.hung() {
            return Some(hung);
        }
        heartbeat.beat();
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Says why, and ends the process.
fn end_process(hung: &Hung) {
    std::thread::spawn(|| {
        std::thread::sleep(LAST_GRACE);
        std::process::abort();
    });
    tracing::error!("{hung}");
    std::process::exit(STATUS);
}

/// Piece of work that is watched, until dropped. Whoever does the work tells of its steps.
pub struct Pulse {
    shared: Arc<Shared>,
    id: u64,
}

impl Pulse {
    /// Says how large the work is, once that is known, and begins a step.
    pub fn sized(&self, units: u64) {
        let limit = self.shared.config.limit(self.shared.stage, units);
        self.change(|work| {
            work.limit = limit;
            work.step();
        });
    }

    /// Begins a step of other work, of unknown size, for an engine that goes from one to the next.
    pub fn begin(&self, text: String) {
        self.name(text);
        self.sized(0);
    }

    /// Names the work anew.
    pub fn name(&self, text: String) {
        self.change(|work| work.text = text);
    }

    /// Ends one step and begins the next.
    pub fn step(&self) {
        self.change(Work::step);
    }

    /// Ends the work until the next step: the engine has nothing to do.
    pub fn pause(&self) {
        self.change(|work| (work.since, work.wait) = (None, None));
    }

    /// Waits, on the engine's thread, for the world outside, as long as that takes. Only the time in which nothing has come
    /// from there is no step: a thread that does not go on once something has come hangs.
    pub fn outside<T>(&self, runtime: &Handle, future: impl Future<Output = T>) -> T {
        runtime.block_on(Outside::new(self, future))
    }

    fn change(&self, change: impl FnOnce(&mut Work)) {
        self.shared.change(self.id, change);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.shared.watched().works.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    /// Nothing comes of waiting this long: four steps at their limit.
    const A_WHILE: Duration = Duration::from_secs(4);

    fn watchdog() -> (Watchdog, Receiver<Hung>) {
        let (said, hears) = channel();
        let config = WatchdogConfig { step_s: 1.0, vision_s: 1.0, ..Default::default() };
        let tell = move |hung: &Hung| said.send(hung.clone()).unwrap();
        (Watchdog::telling(StageName::Vision, &config, Notifier::default().heartbeat(), tell), hears)
    }

    #[test]
    fn work_without_a_step_is_told_by_name_after_its_limit_and_not_before() {
        let (watchdog, hears) = watchdog();
        let other = watchdog.watch("a message of job b".to_owned());
        other.pause();
        let began = Instant::now();
        let pulse = watchdog.watch("a message of job a".to_owned());
        pulse.sized(1);
        let hung = hears.recv_timeout(A_WHILE).expect("it hangs");
        assert!(began.elapsed() >= Duration::from_secs(2) && hung.taken > hung.limit, "{hung:?}");
        assert_eq!((hung.work.as_str(), hung.limit), ("a message of job a", Duration::from_secs(2)));
        assert!(hung.to_string().contains("stage-vision") && hung.to_string().contains("watchdog.vision_s"), "{hung}");
    }

    #[test]
    fn a_wait_for_the_world_outside_is_no_step_until_something_comes() {
        let (watchdog, hears) = watchdog();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (send, mut receive) = tokio::sync::mpsc::channel::<()>(1);
        let pulse = watchdog.watch("a message of job a".to_owned());
        let engine = std::thread::spawn({
            let runtime = runtime.handle().clone();
            move || {
                // Stands still when it looks at what has come, and not before.
                let came =
                    async { std::future::poll_fn(|context| receive.poll_recv(context).map(|_| stand_still())).await };
                pulse.outside(&runtime, came);
            }
        });
        assert!(hears.recv_timeout(A_WHILE).is_err(), "it waits");
        send.blocking_send(()).unwrap();
        let hung = hears.recv_timeout(A_WHILE).expect("it hangs");
        assert_eq!((hung.work.as_str(), hung.limit), ("a message of job a", Duration::from_secs(1)));
        engine.join().unwrap();
    }

    #[test]
    fn an_engine_that_nothing_wakes_any_more_hangs_where_it_was_woken() {
        let (watchdog, hears) = watchdog();
        let pulse = watchdog.watch("a message of job a".to_owned());
        let (outcome, waker) = {
            let mut kept = None;
            let mut never = std::pin::pin!(Outside::new(
                &pulse,
                std::future::poll_fn(|context| {
                    kept = Some(context.waker().clone());
                    std::task::Poll::<()>::Pending
                })
            ));
            let outcome = never.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
            (outcome, kept)
        };
        assert!(outcome.is_pending() && hears.recv_timeout(A_WHILE).is_err(), "it waits");
        waker.expect("it was polled").wake();
        hears.recv_timeout(A_WHILE).expect("its thread never comes back to it");
    }

    fn stand_still() {
        std::thread::sleep(A_WHILE);
    }

    #[test]
    fn work_that_goes_on_that_waits_or_that_is_done_does_not_hang() {
        let (watchdog, hears) = watchdog();
        let (goes_on, waits) = (watchdog.watch("goes on".to_owned()), watchdog.watch("waits".to_owned()));
        waits.pause();
        drop(watchdog.watch("done".to_owned()));
        waits.name("waits for another thing".to_owned());
        for _ in 0..8 {
            goes_on.step();
            assert!(hears.recv_timeout(A_WHILE / 8).is_err());
        }
    }
}
