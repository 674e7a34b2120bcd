//! Directories of a daemon of the Multi-Process Service, and whether one serves there.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use tokio::process::Command;

/// Name of the control program, which is the daemon too.
pub const PROGRAM: &str = "nvidia-cuda-mps-control";
/// Variable by which CUDA finds the daemon's sockets.
pub const PIPES: &str = "CUDA_MPS_PIPE_DIRECTORY";
/// Where they are without that variable.
pub const DEFAULT_PIPES: &str = "/tmp/nvidia-mps";
/// Variable with the directory of the daemon's logs.
const LOGS: &str = "CUDA_MPS_LOG_DIRECTORY";
/// Variable that chooses and renumbers GPUs.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
/// Socket to which clients connect.
const CONTROL: &str = "control";
/// The longest name of the daemon's sockets.
const LONGEST: &str = "control_privileged";
/// Bytes that the path of a UNIX socket may have, without the zero behind it.
const SOCKET_PATH_BYTES: usize = 107;
/// The daemon's own log, and what it writes to its standard output and standard error.
const LOG_FILES: [&str; 2] = ["control.log", "output.log"];
/// Lines of each of them that an error shows.
const TAIL_LINES: usize = 3;

/// Directories of a daemon of our own.
#[derive(Clone, Debug)]
pub struct Home {
    /// The directory that both are in.
    pub dir: PathBuf,
    /// Its sockets and pipes.
    pub pipes: PathBuf,
    /// Its logs.
    pub logs: PathBuf,
}

impl Home {
    /// Directories below an existing one; nothing is made yet.
    ///
    /// # Errors
    /// A path that is too long for sockets, with both figures.
    pub fn below(dir: &Path) -> anyhow::Result<Self> {
        let dir = dir.canonicalize().with_context(|| format!("{}", dir.display()))?.join("mps");
        let home = Home { pipes: dir.join("pipe"), logs: dir.join("log"), dir };
        let longest = home.pipes.join(LONGEST);
        let (bytes, state) = (longest.as_os_str().len(), home.dir.parent().unwrap_or(&home.dir).as_os_str().len());
        ensure!(
            bytes <= SOCKET_PATH_BYTES,
            "the state directory's path is too long for --mps (up.mps): its socket {} has {bytes} bytes, and a UNIX socket's path may \
             have {SOCKET_PATH_BYTES}: take a directory of at most {} bytes (VIDI_STATE), or leave --mps out",
            longest.display(),
            (state + SOCKET_PATH_BYTES).saturating_sub(bytes)
        );
        Ok(home)
    }

    /// Makes them for this user alone, and removes what a daemon that was killed has left: its socket outlives it.
    ///
    /// # Errors
    /// The file system's, with the path.
    pub fn prepare(&self) -> anyhow::Result<()> {
        for dir in [&self.pipes, &self.logs] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| format!("{}", dir.display()))?;
        }
        let named = || format!("{}", self.pipes.display());
        for entry in std::fs::read_dir(&self.pipes).with_context(named)? {
            let path = entry.with_context(named)?.path();
            std::fs::remove_file(&path).with_context(|| format!("{}", path.display()))?;
        }
        Ok(())
    }

    /// The control program, told of these directories.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env(PIPES, &self.pipes).env(LOGS, &self.logs);
        // The daemon renumbers its GPUs for its clients, and the variable renumbers them once more there: by numbers, `1` would
        // lead both to a GPU that does not exist. A client keeps it in any case, so that it never computes on another GPU.
        if std::env::var_os(VISIBLE).is_some_and(|gpus| !is_by_uuid(&gpus)) {
            command.env_remove(VISIBLE);
        }
        command
    }

    /// File for what the daemon writes to its standard output and standard error.
    ///
    /// # Errors
    /// The file system's, with the path.
    pub fn output(&self) -> anyhow::Result<std::fs::File> {
        let path = self.logs.join(LOG_FILES[1]);
        let file = std::fs::File::options().create(true).append(true).open(&path);
        file.with_context(|| format!("log {}", path.display()))
    }

    /// The last lines of its logs, in one line, as a part of a sentence about it.
    pub fn log_tail(&self) -> String {
        let mut tail: Vec<String> = Vec::new();
        for name in LOG_FILES {
            let log = std::fs::read(self.logs.join(name)).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
            tail.extend(lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| (*line).to_owned()));
        }
        if tail.is_empty() {
            return format!("nothing is in {}", self.logs.display());
        }
        format!("its log in {} ends with: {}", self.logs.display(), tail.join(" | "))
    }
}

/// Whether a daemon listens on the control socket of a directory. The socket's file outlives its daemon, so that it is asked:
/// with a socket of another type, which the kernel refuses for its type where somebody listens, and of which nobody hears.
pub fn serves(pipes: &Path) -> bool {
    let asked = UnixDatagram::unbound().and_then(|socket| socket.connect(pipes.join(CONTROL)));
    match asked {
        Ok(()) => true,
        Err(e) => e.raw_os_error() == Some(libc::EPROTOTYPE),
    }
}

/// Whether GPUs are named by their UUIDs, which no renumbering changes.
fn is_by_uuid(gpus: &OsStr) -> bool {
    gpus.as_bytes().split(|&b| b == b',').all(|gpu| gpu.starts_with(b"GPU-") || gpu.starts_with(b"MIG-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_daemon_serves_while_its_socket_is_listened_to_and_not_where_it_has_left_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!serves(dir.path()), "nothing is there");
        let listener = UnixListener::bind(dir.path().join("control")).unwrap();
        assert!(serves(dir.path()));
        listener.set_nonblocking(true).unwrap();
        let heard = listener.accept().map(drop).unwrap_err();
        assert_eq!(heard.kind(), std::io::ErrorKind::WouldBlock, "the daemon hears of being asked");
        drop(listener);
        assert!(dir.path().join("control").exists() && !serves(dir.path()));
        std::fs::write(dir.path().join("control_lock"), "").unwrap();
        std::fs::remove_file(dir.path().join("control")).unwrap();
        std::fs::write(dir.path().join("control"), "no socket").unwrap();
        assert!(!serves(dir.path()));
    }

    #[test]
    fn a_path_that_has_no_room_for_a_socket_is_refused_with_what_it_may_have() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let of_bytes = |bytes: usize| {
            let state = base.join("x".repeat(bytes - base.as_os_str().len() - 1));
            std::fs::create_dir(&state).unwrap();
            Home::below(&state)
        };
        // 107 without "/mps/pipe/control_privileged".
        let home = of_bytes(79).unwrap();
        assert_eq!(home.pipes.join(LONGEST).as_os_str().len(), SOCKET_PATH_BYTES);
        home.prepare().unwrap();
        UnixListener::bind(home.pipes.join(LONGEST)).unwrap();
        home.prepare().unwrap();
        assert_eq!(std::fs::read_dir(&home.pipes).unwrap().count(), 0, "a socket is left");
        let said = of_bytes(80).unwrap_err().to_string();
        for words in ["has 108 bytes", "may have 107", "at most 79 bytes", "VIDI_STATE", "leave --mps out"] {
            assert!(said.contains(words), "no {words:?} in {said}");
        }
    }

    #[test]
    fn gpus_are_known_to_the_daemon_by_uuid_alone() {
        for (gpus, by_uuid) in
            [("GPU-1", true), ("GPU-1,MIG-2", true), ("0", false), ("1,0", false), ("GPU-1,0", false), ("", false)]
        {
            assert_eq!(is_by_uuid(OsStr::new(gpus)), by_uuid, "{gpus}");
        }
    }
}
