//! Test pipeline of a real broker, real stage processes and real videos.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use config::{BusConfig, Config};
use demo_video::truth::Truth;
use deploy::client::{self, Events};
use deploy::up::broker::{self, Broker};
use protocol::error::StageName;
use protocol::event::{Event, JobEvent};
use protocol::message::{JobId, JobRequest};
use runtime::bus::{Bus, Role};
use tempfile::TempDir;

pub use crate::built::vidi;
use crate::media;

/// Longest time that a job of a test may take.
const JOB_WAIT: Duration = Duration::from_secs(180);
/// Longest time that a pipeline may take to start.
const READY_WAIT: Duration = Duration::from_secs(120);

/// Root directory of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the sources are there")
}

/// Directory of a golden checkpoint.
pub fn checkpoint(name: &str) -> PathBuf {
    root().join("tests/golden/checkpoints").join(name)
}

/// Brokers to test with: the current release, and the old one that Debian ships if it is installed.
pub fn brokers() -> Vec<Option<PathBuf>> {
    let old = std::env::var_os("VIDI_NATS_SERVER_OLD").map(PathBuf::from).filter(|p| p.is_file());
    std::iter::once(None).chain(old.map(Some)).collect()
}

/// Differences of a test's pipeline from the default one.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Executable of the broker; none for the default one.
    pub broker: Option<PathBuf>,
    /// `max_payload` of the broker.
    pub max_payload: usize,
    /// Checkpoint directory; none if `set` asks for random weights.
    pub model: Option<PathBuf>,
    /// `section.key=value` settings of the stages.
    pub set: Vec<String>,
    /// Environment variables of `vidi up`.
    pub env: Vec<(String, String)>,
    /// `--replicas`.
    pub replicas: String,
    /// `--place`.
    pub place: String,
    /// `--one-process`.
    pub one_process: bool,
    /// `llm.keep_video`; off by default, since most tests are about all stages working on every job.
    pub keep_video: bool,
    /// Bytes on disk that the broker may reserve for its streams; none for its own limit.
    pub max_file_store: Option<u64>,
    /// Configuration file of the broker; none for a broker without users and permissions.
    pub broker_config: Option<PathBuf>,
}

impl Setup {
    /// Settings of a client for a broker at `url`: those of the stages.
    ///
    /// # Errors
    /// A setting that is not valid.
    pub fn bus(&self, url: &str) -> anyhow::Result<BusConfig> {
        let config = Config::load(None, [], &self.set).map_err(anyhow::Error::msg)?;
        Ok(BusConfig { url: url.into(), ..config.bus })
    }

    /// Options of a broker on a port; 0 lets the server choose.
    pub fn broker(&self, port: u16) -> broker::Options {
        broker::Options {
            program: self.broker.clone(),
            port,
            max_payload: self.max_payload,
            max_file_store: self.max_file_store,
            config: self.broker_config.clone(),
            ..broker::Options::default()
        }
    }
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            broker: None,
            max_payload: 1 << 20,
            model: Some(checkpoint("tied")),
            set: Vec::new(),
            env: Vec::new(),
            replicas: String::new(),
            place: String::new(),
            one_process: false,
            keep_video: false,
            max_file_store: None,
            broker_config: None,
        }
    }
}

/// Broker and `vidi up` of one test, in a directory of their own.
pub struct Rig {
    /// Directory of media root, state and logs; removed at the end.
    pub dir: TempDir,
    /// Its broker.
    pub broker: Broker,
    /// Connection of a client.
    pub bus: Bus,
    up: Child,
    setup: Setup,
}

impl Rig {
    /// A video that `vidi demo-video` makes below the media root, and its truth.
    ///
    /// # Errors
    /// The command's.
    pub fn demo_video(&self, seed: u64, seconds: u32) -> anyhow::Result<(PathBuf, Truth)> {
        media::demo_video(&self.media(), seed, seconds)
    }

    /// Starts broker and stages and waits until all are ready.
    ///
    /// # Errors
    /// The part that does not start, with the log.
    pub async fn start(setup: Setup) -> anyhow::Result<Self> {
        Rig::start_in(tempfile::tempdir()?, setup).await
    }

    /// [`start`](Self::start) in an existing directory.
    ///
    /// # Errors
    /// As `start`.
    pub async fn start_in(dir: TempDir, setup: Setup) -> anyhow::Result<Self> {
        let options = setup.broker(0);
        let broker = Broker::start(&dir.path().join("broker"), &options).await?;
        let url = broker.url().to_owned();
        let rig = Rig::on(dir, setup, broker, &url).await?;
        rig.wait_ready().await?;
        Ok(rig)
    }

    /// Starts the stages, for a broker that is there and clients find at `url`, and waits for none of them.
    ///
    /// # Errors
    /// If `vidi up` cannot be started, or the broker does not take a client.
    pub async fn on(dir: TempDir, setup: Setup, broker: Broker, url: &str) -> anyhow::Result<Self> {
        std::fs::create_dir(dir.path().join("media"))?;
        let up = spawn_up(dir.path(), &setup, url)?;
        let bus = Bus::connect(&setup.bus(url)?, Role::Client, READY_WAIT).await?;
        Ok(Rig { dir, broker, bus, up, setup })
    }

    /// Connection of an operator.
    ///
    /// # Errors
    /// When the broker does not take it.
    pub async fn operator(&self) -> anyhow::Result<Bus> {
        Ok(Bus::connect(self.bus.config(), Role::Operator, READY_WAIT).await?)
    }

    /// Waits until every stage is ready.
    ///
    /// # Errors
    /// The stages that are ready after two minutes, if any is missing, and the log.
    pub async fn wait_ready(&self) -> anyhow::Result<()> {
        let until = Instant::now() + READY_WAIT;
        loop {
            let ready = client::ready(&self.bus).await?;
            if ready.len() == StageName::ALL.len() {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("pipeline not ready after {READY_WAIT:?}: only {ready:?} are; {}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The media root.
    pub fn media(&self) -> PathBuf {
        self.dir.path().join("media")
    }

    /// Log of `vidi up` and its stages.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("up.log")).unwrap_or_default()
    }

    /// Runs a `vidi` command against this pipeline.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<Output> {
        Ok(Command::new(vidi()?)
            .args(["--set", &format!("bus.url={}", self.broker.url())])
            .args(self.setup.set.iter().flat_map(|s| ["--set", s]))
            .args(args)
            .stdin(Stdio::null())
            .output()?)
    }

    /// Submits a job and follows it to its end.
    ///
    /// # Errors
    /// When it does not end within three minutes.
    pub async fn answer(&self, request: &JobRequest) -> anyhow::Result<Vec<JobEvent>> {
        client::submit(&self.bus, request).await?;
        self.events(&request.job).await
    }

    /// All events of a job up to the terminal one, however late the call.
    ///
    /// # Errors
    /// When it does not end within three minutes.
    pub async fn events(&self, job: &JobId) -> anyhow::Result<Vec<JobEvent>> {
        let mut events = Events::new(&self.bus, job);
        let mut heard: Vec<JobEvent> = Vec::new();
        let all = async {
            loop {
                heard.push(events.next().await?);
                if heard.last().is_some_and(|e| e.event.is_terminal()) {
                    return anyhow::Ok(());
                }
            }
        };
        match tokio::time::timeout(JOB_WAIT, all).await {
            Ok(outcome) => outcome?,
            Err(_) => bail!("{job} not ended after {JOB_WAIT:?}; events so far {heard:?}; {}", self.log()),
        }
        Ok(heard)
    }

    /// Process ids of a stage.
    pub fn pids(&self, stage: StageName) -> Vec<u32> {
        children(self.up.id())
            .into_iter()
            .filter(|(_, args)| args.windows(2).any(|w| w[0] == "stage" && w[1] == stage.as_str()))
            .map(|(pid, _)| pid)
            .collect()
    }

    /// Kills the broker with SIGKILL and starts it again on the same port and files.
    ///
    /// # Errors
    /// If it does not start again.
    pub async fn restart_broker(&mut self) -> anyhow::Result<()> {
        self.restart_broker_with(self.setup.max_payload).await
    }

    /// Kills the broker with SIGKILL and starts it again on the same port without its files.
    ///
    /// # Errors
    /// If it does not start again.
    pub async fn restart_broker_empty(&mut self) -> anyhow::Result<()> {
        self.kill_broker().await?;
        std::fs::remove_dir_all(self.dir.path().join("broker"))?;
        self.broker = self.next_broker().await?;
        Ok(())
    }

    /// Starts a broker behind one that has ended, on the same port and files.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn next_broker(&self) -> anyhow::Result<Broker> {
        let port = self.broker.url().rsplit(':').next().unwrap_or_default().parse()?;
        Broker::start(&self.dir.path().join("broker"), &self.setup.broker(port)).await
    }

    /// Kills the broker with SIGKILL.
    ///
    /// # Errors
    /// If it is not there.
    pub async fn kill_broker(&self) -> anyhow::Result<()> {
        signal(self.broker.pid().context("broker is gone")?, "KILL")?;
        self.broker.ended().await;
        Ok(())
    }

    /// Stops `vidi up` with SIGTERM; the time until it has ended.
    ///
    /// # Errors
    /// If it has not ended after a minute.
    pub async fn stop(&mut self) -> anyhow::Result<Duration> {
        let asked = Instant::now();
        signal(self.up.id(), "TERM")?;
        while self.up.try_wait()?.is_none() {
            ensure!(
                asked.elapsed() < Duration::from_secs(60),
                "`vidi up` has not ended after a minute; {}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(asked.elapsed())
    }

    /// [`restart_broker`](Self::restart_broker) with another `max_payload`.
    ///
    /// # Errors
    /// As `restart_broker`.
    pub async fn restart_broker_with(&mut self, max_payload: usize) -> anyhow::Result<()> {
        self.setup.max_payload = max_payload;
        self.kill_broker().await?;
        self.broker = self.next_broker().await?;
        Ok(())
    }
}

/// `vidi up` of another pipeline on the broker of a [`Rig`], in a directory of its own.
pub struct Beside {
    /// Connection of a client.
    pub bus: Bus,
    dir: TempDir,
    up: Child,
}

impl Beside {
    /// Starts the stages below a prefix, with the media root of the rig, and waits until all are ready.
    ///
    /// # Errors
    /// The stages that are ready after two minutes, if any is missing, and the log.
    pub async fn start(rig: &Rig, prefix: &str, mut setup: Setup) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join("media"))?;
        let roots = format!("decode.media_roots=[{:?}]", rig.media());
        // Both pipelines' streams have to fit the broker.
        let streams = ["bus.stream_bytes=33554432", "bus.queue_bytes=8388608", "bus.token_bytes=12582912"];
        setup.set.extend([format!("bus.prefix={prefix}"), roots]);
        setup.set.extend(streams.map(str::to_owned));
        let up = spawn_up(dir.path(), &setup, rig.broker.url())?;
        let bus = Bus::connect(&setup.bus(rig.broker.url())?, Role::Client, READY_WAIT).await?;
        let beside = Beside { bus, dir, up };
        let until = Instant::now() + READY_WAIT;
        while client::ready(&beside.bus).await?.len() < StageName::ALL.len() {
            ensure!(Instant::now() < until, "not ready after {READY_WAIT:?}; {}", beside.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(beside)
    }

    /// Log of its `vidi up` and stages.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("up.log")).unwrap_or_default()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = signal(self.up.id(), "TERM");
        let _ = self.up.wait();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.up.try_wait() {
            return;
        }
        // SIGTERM drains it, so that no stage outlives the test; its exit status does not matter.
        let _ = signal(self.up.id(), "TERM");
        let _ = self.up.wait();
    }
}

fn spawn_up(dir: &Path, setup: &Setup, url: &str) -> anyhow::Result<Child> {
    let log = std::fs::File::create(dir.join("up.log"))?;
    let mut command = Command::new(vidi()?);
    command
        .env("VIDI_STATE", dir.join("state"))
        .envs(setup.env.iter().cloned())
        .args(["--set", &format!("bus.url={url}")])
        .args(["--set", &format!("llm.keep_video={}", setup.keep_video)])
        .args(setup.set.iter().flat_map(|s| ["--set", s]))
        .arg("up")
        .arg("--media-root")
        .arg(dir.join("media"));
    if let Some(model) = &setup.model {
        command.arg("--model").arg(model);
    }
    if !setup.replicas.is_empty() {
        command.args(["--replicas", &setup.replicas]);
    }
    if !setup.place.is_empty() {
        command.args(["--place", &setup.place]);
    }
    if setup.one_process {
        command.arg("--one-process");
    }
    Ok(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?)
}

/// Sends a signal by its name.
///
/// # Errors
/// If there is no such process.
pub fn signal(pid: u32, name: &str) -> anyhow::Result<()> {
    let status = Command::new("kill").args(["-s", name, &pid.to_string()]).stderr(Stdio::null()).status()?;
    ensure!(status.success(), "kill -s {name} {pid}: {status}");
    Ok(())
}

/// Child processes of a process and their arguments.
fn children(parent: u32) -> Vec<(u32, Vec<String>)> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    processes
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|l| l.strip_prefix("PPid:").is_some_and(|p| p.trim() == parent.to_string()))
        })
        .map(|pid| {
            let args = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let args = args.split(|&b| b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
            (pid, args)
        })
        .collect()
}

/// The terminal event of a job, after a check that it is the only one and that no event is missing.
///
/// # Errors
/// The defect of the sequence.
pub fn terminal(events: &[JobEvent]) -> anyhow::Result<&Event> {
    for (i, event) in events.iter().enumerate() {
        ensure!(event.seq == i as u64, "event {i} has seq {}: {events:?}", event.seq);
    }
    let ends: Vec<&JobEvent> = events.iter().filter(|e| e.event.is_terminal()).collect();
    ensure!(ends.len() == 1, "{} terminal events", ends.len());
    ensure!(events.last().is_some_and(|e| e.event.is_terminal()), "events after the terminal one");
    Ok(&ends[0].event)
}
