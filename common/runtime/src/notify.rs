//! Words to the service manager that started this process: that it is ready, and that it is alive.
//!
//! systemd hears datagrams of a few lines at the socket that `NOTIFY_SOCKET` names, as `sd_notify(3)` and
//! `sd_watchdog_enabled(3)` say. Container engines hear nothing, and look: at a file that is there once the process is
//! ready, and that is written again every few seconds while it is alive.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Socket of the service manager; a name that begins with `@` is none of a file.
const SOCKET: &str = "NOTIFY_SOCKET";
/// Microseconds within which the service manager wants a word, or it takes the process for hung.
const WATCHDOG_US: &str = "WATCHDOG_USEC";
/// Process that it wants it from; any, where it does not say.
const WATCHDOG_PID: &str = "WATCHDOG_PID";
/// Words sent in the time that it waits for one.
const PER_LIMIT: u32 = 3;
/// Time between two writes of the file.
const FILE_EVERY: Duration = Duration::from_secs(5);

/// Service manager that waits for words of this process, if there is one. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Notifier {
    socket: Option<Arc<UnixDatagram>>,
    /// Time within which it wants a word.
    limit: Option<Duration>,
    /// File that says that the process is ready, and by its time that it is alive.
    file: Option<Arc<PathBuf>>,
}

impl Notifier {
    /// Service manager that the environment names. A process that another of ours has started tells that one, and nobody
    /// else: its `Notifier` is the default.
    pub fn of_environment() -> Self {
        let Some(name) = std::env::var_os(SOCKET) else { return Notifier::default() };
        let of_this_process = |pid: String| pid.parse() == Ok(std::process::id());
        let wanted = std::env::var(WATCHDOG_PID).map_or(true, of_this_process);
        let limit = std::env::var(WATCHDOG_US).ok().filter(|_| wanted).and_then(|us| us.parse().ok());
        match Notifier::to(&name, limit.map(Duration::from_micros)) {
            Ok(notifier) => notifier,
            Err(error) => {
                tracing::warn!(%error, socket = ?name, "the service manager cannot be told of this process");
                Notifier::default()
            }
        }
    }

    /// Service manager at a socket, which wants a word within `limit`.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn to(name: &OsStr, limit: Option<Duration>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
        };
        socket.connect_addr(&address)?;
        // Whoever works must not wait for one who does not read.
        socket.set_nonblocking(true)?;
        let limit = limit.filter(|limit| !limit.is_zero());
        Ok(Notifier { socket: Some(Arc::new(socket)), limit, file: None })
    }

    /// The same with a file for who looks. What is there now is an earlier process's, and goes.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn and_file(self, file: PathBuf) -> io::Result<Self> {
        fs::write(&file, "")?;
        fs::remove_file(&file)?;
        Ok(Notifier { file: Some(Arc::new(file)), ..self })
    }

    /// Says that this process does its work from now on; `status` is a word for people.
    pub fn ready(&self, status: &str) {
        // Whoever hears that it is ready finds the file.
        self.write();
        self.tell(&format!("READY=1\nSTATUS={status}"));
    }

    /// Says that this process drains.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=draining");
    }

    /// Beat of a process that is asked for one.
    pub fn heartbeat(&self) -> Heartbeat {
        let of_socket = self.limit.map(|limit| limit / PER_LIMIT);
        let of_file = self.file.as_ref().map(|_| FILE_EVERY);
        let every = of_socket.into_iter().chain(of_file).min();
        Heartbeat { notifier: self.clone(), every, last: None }
    }

    fn tell(&self, text: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(text.as_bytes())
        {
            tracing::debug!(%error, text, "the service manager was not told");
        }
    }

    fn write(&self) {
        if let Some(file) = &self.file
            && let Err(error) = fs::write(&**file, "ready\n")
        {
            tracing::warn!(%error, file = %file.display(), "the file of a process that is alive was not written");
        }
    }
}

/// Words that a process is alive, as often as its service manager wants them.
pub struct Heartbeat {
    notifier: Notifier,
    /// Time between two words; none where nobody waits for them.
    every: Option<Duration>,
    last: Option<Instant>,
}

impl Heartbeat {
    /// Says that the process is alive, unless that was said just now.
    pub fn beat(&mut self) {
        let Some(every) = self.every else { return };
        if self.last.is_none_or(|last| last.elapsed() >= every) {
            self.last = Some(Instant::now());
            self.notifier.tell("WATCHDOG=1");
            // Before it is ready it has none.
            if self.notifier.file.as_ref().is_some_and(|file| file.exists()) {
                self.notifier.write();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service manager's socket.
    fn listening(address: &SocketAddr) -> UnixDatagram {
        let socket = UnixDatagram::bind_addr(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let bytes = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..bytes].to_vec()).unwrap()
    }

    #[test]
    fn a_service_manager_hears_at_either_kind_of_address_who_is_ready_alive_and_leaving() {
        let id = std::process::id();
        let path = std::env::temp_dir().join(format!("vidi-notify-{id}"));
        let abstract_name = format!("vidi-notify-{id}");
        let addresses = [
            (path.clone().into_os_string(), SocketAddr::from_pathname(&path).unwrap()),
            (format!("@{abstract_name}").into(), SocketAddr::from_abstract_name(&abstract_name).unwrap()),
        ];
        for (name, address) in addresses {
            let socket = listening(&address);
            let notifier = Notifier::to(&name, Some(Duration::from_millis(60))).unwrap();
            notifier.ready("stage-vision");
            assert_eq!(heard(&socket), "READY=1\nSTATUS=stage-vision");
            let (mut heartbeat, since) = (notifier.heartbeat(), Instant::now());
            for _ in 0..3 {
                while since.elapsed() < Duration::from_millis(60) {
                    heartbeat.beat();
                }
                heartbeat.beat();
            }
            notifier.stopping();
            let mut beats = 0;
            let last = loop {
                match heard(&socket).as_str() {
                    "WATCHDOG=1" => beats += 1,
                    other => break other.to_owned(),
                }
            };
            assert_eq!(last, "STOPPING=1\nSTATUS=draining");
            // At 0, 20 and 40 ms at the latest, and not each time that it could have been.
            assert!((2..10).contains(&beats), "{beats}");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_is_there_once_a_process_is_ready_and_grows_old_once_it_does_not_beat() {
        let file = std::env::temp_dir().join(format!("vidi-alive-{}", std::process::id()));
        fs::write(&file, "of an earlier process").unwrap();
        let notifier = Notifier::default().and_file(file.clone()).unwrap();
        let mut heartbeat = notifier.heartbeat();
        heartbeat.beat();
        assert!(!file.exists(), "not ready yet");
        notifier.ready("stage-vision");
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(600);
        let age = |file: &PathBuf| fs::metadata(file).unwrap().modified().unwrap().elapsed().unwrap();
        fs::File::open(&file).unwrap().set_modified(long_ago).unwrap();
        assert!(age(&file) >= Duration::from_secs(600));
        Heartbeat { last: None, ..heartbeat }.beat();
        assert!(age(&file) < Duration::from_secs(60));
        fs::remove_file(&file).unwrap();
        assert!(Notifier::default().and_file("/proc/nowhere/alive".into()).is_err());
    }

    #[test]
    fn without_a_service_manager_or_without_its_wish_nothing_is_said() {
        Notifier::default().ready("nobody hears");
        let name = format!("vidi-notify-none-{}", std::process::id());
        assert!(Notifier::to(format!("@{name}").as_ref(), None).is_err());
        let socket = listening(&SocketAddr::from_abstract_name(&name).unwrap());
        let notifier = Notifier::to(format!("@{name}").as_ref(), None).unwrap();
        notifier.heartbeat().beat();
        notifier.stopping();
        assert_eq!(heard(&socket), "STOPPING=1\nSTATUS=draining");
    }
}
