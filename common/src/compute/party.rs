//! Who has the turn on a card: locks on files, which end with the process that has them.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How often one who waits looks whether the turn has come.
const GLANCE: Duration = Duration::from_micros(100);

/// One of those who take turns. There are two files to lock: whoever has `next` waits for `now`, and who has `now` and would go
/// on sees by `next` that another waits.
pub struct Party {
    now: Arc<File>,
    next: File,
    patience: Duration,
    state: Arc<(Mutex<State>, Condvar)>,
    work: Sender<Box<dyn FnOnce() + Send>>,
}

#[derive(Default)]
struct State {
    has_turn: bool,
    /// Passes that the device has been given and is not done with.
    under_way: usize,
}

impl Party {
    /// Joins those who name the same folder and card; waits for its turn no longer than `patience`, and then goes without.
    ///
    /// # Errors
    /// Files that cannot be made or opened, or no thread.
    pub fn join(folder: &Path, card: &str, patience: Duration) -> io::Result<Self> {
        let file = |name: &str| {
            let path = folder.join(format!("vidi-{card}.{name}"));
            File::options().create(true).truncate(false).write(true).open(path)
        };
        let (now, next) = (Arc::new(file("now")?), file("next")?);
        let state = Arc::new((Mutex::default(), Condvar::new()));
        let (work, given) = channel::<Box<dyn FnOnce() + Send>>();
        let (theirs, lock) = (state.clone(), now.clone());
        thread::Builder::new().name("turns".to_owned()).spawn(move || {
            for done in given {
                done();
                let mut state = locked(&theirs.0);
                state.under_way -= 1;
                if state.under_way == 0 {
                    if std::mem::take(&mut state.has_turn) {
                        let _ = lock.unlock();
                    }
                    theirs.1.notify_all();
                }
            }
        })?;
        Ok(Party { now, next, patience, state, work })
    }

    /// Waits for the turn, unless this process has it and nobody else waits.
    pub fn begin(&self) {
        let mut state = locked(&self.state.0);
        if state.has_turn && self.somebody_waits() {
            state = self.state.1.wait_while(state, |s| s.has_turn).unwrap_or_else(PoisonError::into_inner);
        }
        if !state.has_turn {
            let until = Instant::now() + self.patience;
            if taken(&self.next, until) {
                state.has_turn = taken(&self.now, until);
                let _ = self.next.unlock();
            }
        }
        state.under_way += 1;
    }

    /// The work of a pass that has begun is over when `done` returns.
    pub fn until(&self, done: impl FnOnce() + Send + 'static) {
        self.work.send(Box::new(done)).expect("the thread lives as long as the process. This is a bug.");
    }

    fn somebody_waits(&self) -> bool {
        match self.next.try_lock() {
            Ok(()) => {
                let _ = self.next.unlock();
                false
            }
            Err(_) => true,
        }
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks a file, or gives up at a time. A file that cannot be locked at all is as good as one that nobody has.
fn taken(file: &File, until: Instant) -> bool {
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < until => thread::sleep(GLANCE),
            outcome => return outcome.is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::Receiver;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(50);

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("vidi-party-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn party(folder: &Path, patience: Duration) -> Arc<Party> {
        Arc::new(Party::join(folder, "card", patience).unwrap())
    }

    /// Begins a pass that lasts until the sender is dropped.
    fn given(turns: &Party) -> Sender<()> {
        turns.begin();
        let (end, ended): (Sender<()>, Receiver<()>) = channel();
        turns.until(move || {
            let _ = ended.recv();
        });
        end
    }

    fn begins_within(turns: &Arc<Party>, wait: Duration) -> (bool, Receiver<Sender<()>>) {
        let (told, begun) = channel();
        let turns = turns.clone();
        thread::spawn(move || told.send(given(&turns)));
        let before = Instant::now();
        while before.elapsed() < wait {
            if let Ok(pass) = begun.try_recv() {
                let (again, kept) = channel();
                again.send(pass).unwrap();
                return (true, kept);
            }
            thread::sleep(GLANCE);
        }
        (false, begun)
    }

    #[test]
    fn who_has_the_turn_goes_on_until_another_waits_and_hands_it_on_when_its_work_is_done() {
        let folder = folder("order");
        let (a, b) = (party(&folder, LONG), party(&folder, LONG));
        let first = given(&a);
        let (went_on, second) = begins_within(&a, LONG);
        assert!(went_on, "nobody waits");
        let (begun, theirs) = begins_within(&b, SHORT);
        assert!(!begun, "a's work is under way");
        let (begun, third) = begins_within(&a, SHORT);
        assert!(!begun, "b waits");
        drop((first, second.recv().unwrap()));
        let theirs = theirs.recv_timeout(LONG).expect("b's turn");
        thread::sleep(SHORT);
        assert!(third.try_recv().is_err(), "b's work is under way");
        drop(theirs);
        drop(third.recv_timeout(LONG).expect("a's turn again"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn passes_of_several_parties_never_meet() {
        let folder = folder("apart");
        let under_way = Arc::new(AtomicUsize::new(0));
        let parties: Vec<_> = (0..3)
            .map(|_| {
                let (turns, under_way) = (party(&folder, LONG), under_way.clone());
                thread::spawn(move || {
                    for _ in 0..30 {
                        turns.begin();
                        assert_eq!(under_way.fetch_add(1, Ordering::SeqCst), 0);
                        let under_way = under_way.clone();
                        let (told, over) = channel();
                        turns.until(move || {
                            thread::sleep(GLANCE);
                            under_way.fetch_sub(1, Ordering::SeqCst);
                            told.send(()).unwrap();
                        });
                        // Its own next pass might follow within the turn.
                        over.recv().unwrap();
                    }
                })
            })
            .collect();
        parties.into_iter().for_each(|p| p.join().unwrap());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn nobody_waits_for_ever_for_one_that_hangs() {
        let folder = folder("patience");
        let (a, b) = (party(&folder, LONG), party(&folder, SHORT));
        let hangs = given(&a);
        let (begun, theirs) = begins_within(&b, LONG);
        assert!(begun, "without the turn");
        drop((hangs, theirs));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
