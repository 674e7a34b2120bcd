//! Locks on directories: one process at a time, for as long as it lives, however it ends.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

/// Name of the lock's file in its directory. It stays there: a file that is removed can be locked twice.
const FILE: &str = "lock";
/// Pause before a lock that somebody holds is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// A lock on a directory. It is free again once this is dropped and the last process that inherited it has ended; the
/// kernel sees to that, so no end of a process leaves it behind.
#[derive(Debug)]
pub struct Lock(File);

/// Outcome of asking for a lock.
#[derive(Debug)]
pub enum Taken {
    /// It is ours.
    Ours(Lock),
    /// Another process holds it: what that wrote there, which is its process id.
    HeldBy(String),
}

impl Lock {
    /// Takes the lock of a directory, which is made for this user alone if it is missing. Waits up to `patience` for a
    /// process that is about to end.
    ///
    /// # Errors
    /// The file system's, with the path.
    pub async fn take(dir: &Path, patience: Duration) -> anyhow::Result<Taken> {
        let named = || format!("lock on {}", dir.display());
        DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(named)?;
        let mut options = File::options();
        options.create(true).truncate(false).read(true).write(true).mode(0o600);
        let mut file = options.open(dir.join(FILE)).with_context(named)?;
        let until = Instant::now() + patience;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(e)) => return Err(e).with_context(named),
                Err(TryLockError::WouldBlock) if Instant::now() < until => tokio::time::sleep(AGAIN).await,
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    file.read_to_string(&mut holder).with_context(named)?;
                    return Ok(Taken::HeldBy(holder.trim().to_owned()));
                }
            }
        }
        let mut lock = Lock(file);
        lock.note(std::process::id()).with_context(named)?;
        Ok(Taken::Ours(lock))
    }

    /// Writes down whose it is, for whoever is refused.
    ///
    /// # Errors
    /// The file system's.
    pub fn note(&mut self, pid: u32) -> std::io::Result<()> {
        self.0.set_len(0)?;
        self.0.rewind()?;
        writeln!(self.0, "{pid}")
    }

    /// Descriptor that a child process inherits to hold the lock too.
    pub fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_is_locked_once_and_says_by_whom_until_the_lock_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("new/state");
        let Taken::Ours(first) = Lock::take(&state, Duration::ZERO).await.unwrap() else { panic!("nobody holds it") };
        match Lock::take(&state, Duration::from_millis(50)).await.unwrap() {
            Taken::HeldBy(pid) => assert_eq!(pid, std::process::id().to_string()),
            Taken::Ours(_) => panic!("locked twice"),
        }
        drop(first);
        assert!(matches!(Lock::take(&state, Duration::ZERO).await.unwrap(), Taken::Ours(_)));
    }
}
