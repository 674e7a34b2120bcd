//! The note that `vidi up` leaves of what it runs, for clients on the same host that name no broker.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use config::{Config, layers};
use runtime::bus::{Bus, BusErrorKind, Role};
use runtime::process::Fatal;
use serde::{Deserialize, Serialize};

use super::lock::{Lock, Taken};
use super::private;

/// Name of the note's file in the state directory.
const NOTE: &str = "up.json";
/// A broker on this host that does not answer within this time is gone.
const CONNECT_WAIT: Duration = Duration::from_millis(500);

/// A `vidi up` that was killed has ended within this time.
const OWN_WAIT: Duration = Duration::from_secs(1);

/// Broker and subjects of a running `vidi up`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Note {
    /// Process id of the supervisor.
    pid: u32,
    /// Address of the broker, without the user that may stand in it: what `vidi up` may do is not for everybody.
    url: String,
    /// First part of every subject.
    prefix: String,
}

impl Note {
    /// The note that was left last, whether or not its process still runs.
    fn read() -> Option<Self> {
        serde_json::from_slice(&std::fs::read(state_dir().join(NOTE)).ok()?).ok()
    }

    /// Whether the process that left it still runs.
    fn is_current(&self) -> bool {
        Path::new("/proc").join(self.pid.to_string()).exists()
    }
}

/// The directory for what outlives a process: `VIDI_STATE`, else `vidi` below the user's state directory.
pub fn state_dir() -> PathBuf {
    let var = |name: &str| layers::variable(name).map(PathBuf::from);
    var("VIDI_STATE")
        .or_else(|| var("XDG_STATE_HOME").map(|d| d.join("vidi")))
        .or_else(|| var("HOME").map(|d| d.join(".local/state/vidi")))
        .unwrap_or_else(|| config::temp_dir().join("vidi"))
}

/// A connection to the pipeline that `vidi up` runs on this host; none where none runs.
///
/// # Errors
/// When its broker refuses this role.
pub async fn running(config: &Config, role: Role) -> Result<Option<Bus>, Fatal> {
    let Some(note) = Note::read().filter(Note::is_current) else { return Ok(None) };
    let mut bus = config.bus.clone();
    (bus.url, bus.prefix) = (note.url.into(), note.prefix);
    match Bus::connect(&bus, role, CONNECT_WAIT).await {
        Ok(bus) => Ok(Some(bus)),
        Err(e) if e.kind() == BusErrorKind::Credentials => Err(e.into()),
        // Its broker is gone, or not there yet.
        Err(_) => Ok(None),
    }
}

/// Makes the state directory this process's own. To be asked before anything is read, written or started there; the lock
/// is to be kept until all of that is gone.
///
/// # Errors
/// The process that has it.
pub async fn own_state() -> anyhow::Result<Lock> {
    let dir = state_dir();
    match Lock::take(&dir, OWN_WAIT).await? {
        Taken::Ours(lock) => Ok(lock),
        Taken::HeldBy(pid) => bail!(
            "another `vidi up` runs (process {pid}) with its files in {}: stop it, or set VIDI_STATE to another directory",
            dir.display()
        ),
    }
}

/// Writes the note of this process, whose [state directory](own_state) it is; returns its path.
///
/// # Errors
/// When it cannot be written.
pub fn leave(bus: &Bus) -> anyhow::Result<PathBuf> {
    let path = state_dir().join(NOTE);
    let note = Note {
        pid: std::process::id(),
        url: bus.config().url.without_users().exposed().to_owned(),
        prefix: bus.subjects().prefix().to_owned(),
    };
    private::write(&path, &serde_json::to_vec(&note)?)?;
    Ok(path)
}
