//! Threads that work on a file for one that waits. Whoever a read of the file holds up is left behind: a read of a share that
//! does not answer comes back late or never, and nothing ends it.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use protocol::error::{ErrorKind, JobError};

use crate::media_file::MediaFile;
use crate::offline;

/// Time between two looks at whether the threads have ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Threads that reads hold up at most; beyond it no further file is opened.
const MAX_LEFT: usize = 48;

/// Threads that were left behind, until they end.
static LEFT: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());

/// Threads that work on one file, without a network.
pub(crate) struct Crew {
    threads: Vec<JoinHandle<()>>,
    /// Held by every thread, and so closed once all have ended.
    running: SyncSender<()>,
    ended: Receiver<()>,
}

impl Crew {
    /// No threads yet.
    ///
    /// # Errors
    /// `internal` while reads of other files hold up too many threads.
    pub(crate) fn new() -> Result<Self, JobError> {
        let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|thread| !thread.is_finished());
        if left.len() >= MAX_LEFT {
            let text = format!("{} threads wait for reads of files that do not come back", left.len());
            return Err(JobError::new(ErrorKind::Internal, text).hint(
                "look at the disks and shares below decode.media_roots; start stage-decode again once they answer",
            ));
        }
        let (running, ended) = sync_channel(0);
        Ok(Crew { threads: Vec::new(), running, ended })
    }

    /// Starts a thread.
    ///
    /// # Errors
    /// `internal`, if the system starts none.
    pub(crate) fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), JobError> {
        let running = self.running.clone();
        let work = move || {
            work();
            drop(running);
        };
        self.threads.push(offline::spawn(name, work)?);
        Ok(())
    }

    /// Waits for the end of all threads, and leaves those behind that make no progress for `longest`.
    ///
    /// # Errors
    /// `internal` if one panicked.
    pub(crate) fn join(self, media: &MediaFile, longest: Duration) -> Result<(), JobError> {
        let Crew { threads, running, ended } = self;
        drop(running);
        let mut progress = Progress::new(media);
        while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
            if progress.quiet() > longest {
                tracing::warn!(file = %media.path().display(), "threads that a read holds up are left behind");
                break;
            }
        }
        let done = ended.try_recv() == Err(TryRecvError::Disconnected);
        let mut outcome = Ok(());
        for thread in threads {
            match done || thread.is_finished() {
                true => outcome = outcome.and(thread.join().map_err(|_| panicked())),
                false => LEFT.lock().unwrap_or_else(PoisonError::into_inner).push(thread),
            }
        }
        outcome
    }
}

/// `internal` for a thread that panicked.
pub(crate) fn panicked() -> JobError {
    JobError::new(ErrorKind::Internal, "a thread that reads a media file panicked. This is a bug.")
}

/// Does what a read may hold up in a thread of its own, which nobody waits for.
pub(crate) fn leave(work: impl FnOnce() + Send + 'static) {
    // Where the system gives no thread more, it is not done.
    if let Ok(thread) = offline::spawn("decode-left", work) {
        LEFT.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
    }
}

/// Progress of the work on a file, as one that waits sees it.
pub(crate) struct Progress<'m> {
    media: &'m MediaFile,
    seen: u64,
    since: Instant,
}

impl<'m> Progress<'m> {
    /// Progress from now on.
    pub(crate) fn new(media: &'m MediaFile) -> Self {
        Progress { media, seen: media.reading().mark(), since: Instant::now() }
    }

    /// Notes something else that shows that the work goes on.
    pub(crate) fn note(&mut self) {
        self.since = Instant::now();
    }

    /// Time since the last progress.
    pub(crate) fn quiet(&mut self) -> Duration {
        let mark = self.media.reading().mark();
        if mark != self.seen {
            (self.seen, self.since) = (mark, Instant::now());
        }
        self.since.elapsed()
    }

    /// Fails once there has been none for `longest`.
    ///
    /// # Errors
    /// The file, and how far the work on it is.
    pub(crate) fn check(&mut self, longest: Duration) -> Result<(), JobError> {
        let quiet = self.quiet();
        if quiet <= longest { Ok(()) } else { Err(self.media.stuck(quiet)) }
    }
}
