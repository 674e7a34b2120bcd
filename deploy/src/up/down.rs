//! The end of a `vidi up` that another process runs: the process that holds the state directory is asked to stop.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::lock::{Lock, Taken};
use super::note;

/// Pause between two looks whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// `vidi up` that was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Its process.
    pub pid: u32,
    /// Time that it took.
    pub took: Duration,
}

/// Asks the `vidi up` whose files are in the state directory to stop, and waits until it has; none where none runs.
///
/// # Errors
/// When it has not ended after `patience`, and when this user may not stop it.
pub async fn stop(patience: Duration) -> anyhow::Result<Option<Stopped>> {
    let dir = note::state_dir();
    if !dir.exists() {
        return Ok(None);
    }
    let started = Instant::now();
    let mut asked: Option<u32> = None;
    loop {
        // Held by the kernel's word for as long as it lives: no id of a process that ended is asked.
        let holder = match Lock::take(&dir, Duration::ZERO).await? {
            Taken::Ours(_) => return Ok(asked.map(|pid| Stopped { pid, took: started.elapsed() })),
            Taken::HeldBy(holder) => holder,
        };
        if asked.is_none() {
            let pid: u32 = holder.parse().with_context(|| {
                format!("stop failed: the lock on {} names no process, but {holder:?}", dir.display())
            })?;
            terminate(pid)?;
            asked = Some(pid);
        }
        if started.elapsed() >= patience {
            let pid = asked.unwrap_or_default();
            bail!(
                "`vidi up` (process {pid}) was asked to stop, and has not ended after {patience:?}: it finishes what is in flight; look at its log, or wait longer with --wait"
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn terminate(pid: u32) -> anyhow::Result<()> {
    let id = libc::pid_t::try_from(pid).ok().filter(|id| *id > 0);
    let id = id.with_context(|| format!("stop failed: {pid} is no process"))?;
    // SAFETY: kill takes two numbers and touches no memory of ours.
    let status = unsafe { libc::kill(id, libc::SIGTERM) };
    match status {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()).with_context(|| format!("stop failed: SIGTERM to process {pid}")),
    }
}
