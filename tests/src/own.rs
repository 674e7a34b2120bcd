//! `vidi up` with a broker of its own, in a directory that outlives it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use config::BusConfig;
use runtime::bus::{Bus, Role};

use crate::harness::{checkpoint, signal, vidi};

/// Longest time that a pipeline may take to start.
const READY_WAIT: Duration = Duration::from_secs(120);

/// Directory of state, media and logs of several `vidi up`, one after another or at once.
pub struct Place {
    dir: tempfile::TempDir,
    broker: Option<PathBuf>,
}

/// A running `vidi up` of a [`Place`].
pub struct Own {
    child: Child,
    log: PathBuf,
    state: PathBuf,
}

impl Place {
    /// An empty one; `broker` is the executable of the brokers that are started there, none for the default one.
    ///
    /// # Errors
    /// The file system's.
    pub fn new(broker: Option<PathBuf>) -> anyhow::Result<Self> {
        Place::within(tempfile::tempdir()?, broker)
    }

    /// [`new`](Self::new) in a directory that is there.
    ///
    /// # Errors
    /// The file system's.
    pub fn within(dir: tempfile::TempDir, broker: Option<PathBuf>) -> anyhow::Result<Self> {
        std::fs::create_dir(dir.path().join("media"))?;
        Ok(Place { dir, broker })
    }

    /// The state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The media root, which is the directory of temporary files too.
    pub fn media(&self) -> PathBuf {
        self.dir.path().join("media")
    }

    /// A `vidi` command there, with the golden checkpoint.
    ///
    /// # Errors
    /// If it has not been built.
    pub fn command(&self, args: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(vidi()?);
        command.env("VIDI_STATE", self.state()).env("TMPDIR", self.media());
        if let Some(broker) = &self.broker {
            command.env("VIDI_NATS_SERVER", broker);
        }
        command.args(["--set", &format!("model.dir={}", checkpoint("tied").display()), "--set", "bus.ack_wait_s=1"]);
        command.args(args).stdin(Stdio::null());
        Ok(command)
    }

    /// Starts `vidi up` with standard output and standard error in a file of that name.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn up(&self, name: &str, args: &[&str]) -> anyhow::Result<Own> {
        self.up_with(name, args, None)
    }

    /// [`up`](Self::up) with standard error elsewhere.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn up_with(&self, name: &str, args: &[&str], stderr: Option<Stdio>) -> anyhow::Result<Own> {
        let mut command = self.command(args)?;
        command.arg("up");
        self.start(name, command, stderr)
    }

    /// [`up`](Self::up) by a [`command`](Self::command) of which `up` is a part.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn up_of(&self, name: &str, command: Command) -> anyhow::Result<Own> {
        self.start(name, command, None)
    }

    fn start(&self, name: &str, mut command: Command, stderr: Option<Stdio>) -> anyhow::Result<Own> {
        let log = self.dir.path().join(format!("{name}.log"));
        let file = std::fs::File::create(&log)?;
        command.arg("--media-root").arg(self.media()).stdout(file.try_clone()?);
        command.stderr(stderr.unwrap_or_else(|| file.into()));
        Ok(Own { child: command.spawn()?, log, state: self.state() })
    }

    /// Processes whose command line names this place, with their arguments: brokers, stages, but no `vidi up` that was
    /// told of it by its environment alone.
    pub fn processes(&self, what: &str) -> Vec<u32> {
        let here = self.dir.path().to_string_lossy().into_owned();
        let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
        let pids = all.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(&here) && line.contains(what) && !line.contains(" up ")
        })
        .collect()
    }

    /// Waits until no process of a kind is there; returns how long that took.
    ///
    /// # Errors
    /// Those that are left after `patience`.
    pub async fn empty(&self, what: &str, patience: Duration) -> anyhow::Result<Duration> {
        let since = Instant::now();
        loop {
            let left = self.processes(what);
            if left.is_empty() {
                return Ok(since.elapsed());
            }
            ensure!(since.elapsed() < patience, "{what}: processes {left:?} are left after {patience:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Processes that serve stages.
    pub const STAGE: &str = " stage ";
    /// Brokers.
    pub const BROKER: &str = "nats-server";
}

impl Own {
    /// What it said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it says that it is ready; returns a connection to its broker as a role.
    ///
    /// # Errors
    /// Its end, or that it is not ready after two minutes, with what it said.
    pub async fn ready(&mut self, role: Role) -> anyhow::Result<Bus> {
        let since = Instant::now();
        while !self.log().lines().any(|line| line.starts_with("ready: broker")) {
            if let Some(status) = self.child.try_wait()? {
                bail!("vidi up ended ({status}): {}", self.log());
            }
            ensure!(since.elapsed() < READY_WAIT, "not ready after {READY_WAIT:?}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let note: serde_json::Value = serde_json::from_slice(&std::fs::read(self.state.join("up.json"))?)?;
        let url = note["url"].as_str().context("up.json has no url")?.into();
        Ok(Bus::connect(&BusConfig { url, ..BusConfig::default() }, role, READY_WAIT).await?)
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// If it is gone.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits for its end, and says what it said.
    ///
    /// # Errors
    /// The system's.
    pub fn ended(mut self) -> anyhow::Result<(ExitStatus, String)> {
        Ok((self.child.wait()?, self.log()))
    }

    /// Stops it with SIGTERM and waits for its end.
    ///
    /// # Errors
    /// Another end than a good one.
    pub fn stop(self) -> anyhow::Result<()> {
        signal(self.pid(), "TERM")?;
        let (status, log) = self.ended()?;
        ensure!(status.success(), "{status}: {log}");
        Ok(())
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// The system's.
    pub fn runs(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // Of a test that failed: whatever it runs ends with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Path of a file below a directory, by the beginning of its name.
pub fn file_of(dir: &Path, beginning: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?;
    entries.flatten().find(|e| e.file_name().to_string_lossy().starts_with(beginning)).map(|e| e.path())
}
