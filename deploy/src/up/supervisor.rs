//! Stages as child processes: started, started again when they die, drained at the end.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use config::layers;
use protocol::error::StageName;
use runtime::process::{Exit, Fatal};
use runtime::run::Shutdown;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};

/// Pause before a stage that died is started again; doubles up to [`LONGEST_PAUSE`] while it keeps dying.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A stage that ran this long has recovered.
const STABLE: Duration = Duration::from_secs(10);
/// A stage has this long to finish what it has in hand.
const DRAIN_WAIT: Duration = Duration::from_secs(20);

/// A stage that is unloaded has this long: the job in hand is answered first.
const UNLOAD_WAIT: Duration = Duration::from_secs(600);

/// Where the stages' logs go.
#[derive(Clone, Debug)]
pub enum Logs {
    /// To our own standard error.
    Inherit,
    /// To `<stage>.log` in a directory.
    Directory(PathBuf),
}

/// The running stages.
pub struct Supervisor {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    stop: watch::Sender<bool>,
    fatal: mpsc::UnboundedReceiver<Fatal>,
    roster: Roster,
}

/// Which stages shall have processes. The supervisor's tasks look at it; whoever loads and unloads stages changes it.
#[derive(Clone)]
pub struct Roster(Arc<BTreeMap<StageName, Entry>>);

struct Entry {
    /// Processes that the stage has when it is loaded.
    replicas: u64,
    loaded: watch::Sender<bool>,
    /// Processes that there are, those that drain included.
    running: watch::Sender<u64>,
}

impl Roster {
    fn new(replicas: &[(StageName, usize)]) -> Self {
        let entry =
            |n: usize| Entry { replicas: n as u64, loaded: watch::Sender::new(true), running: watch::Sender::new(0) };
        Roster(Arc::new(replicas.iter().map(|&(stage, n)| (stage, entry(n))).collect()))
    }

    /// Whether processes of this stage are kept here.
    pub fn has(&self, stage: StageName) -> bool {
        self.0.get(&stage).is_some_and(|e| e.replicas > 0)
    }

    /// Lets a stage have processes; returns how many are started.
    pub fn load(&self, stage: StageName) -> u64 {
        let Some(entry) = self.0.get(&stage) else { return 0 };
        if entry.loaded.send_replace(true) { 0 } else { entry.replicas }
    }

    /// Drains the processes of a stage and waits for their end; returns how many there were.
    pub async fn unload(&self, stage: StageName) -> u64 {
        let Some(entry) = self.0.get(&stage) else { return 0 };
        let processes = *entry.running.borrow();
        entry.loaded.send_replace(false);
        // The sender is in the roster, which we hold.
        let _ = entry.running.subscribe().wait_for(|&n| n == 0).await;
        processes
    }
}

/// One process to keep alive.
struct Post {
    stage: StageName,
    config: PathBuf,
    logs: Logs,
    roster: Roster,
}

impl Supervisor {
    /// Starts `replicas` processes of each stage; `config` is the file of their merged configuration.
    pub fn start(config: &Path, replicas: &[(StageName, usize)], logs: &Logs) -> Self {
        let (stop, stopping) = watch::channel(false);
        let roster = Roster::new(replicas);
        let (report, fatal) = mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        for &(stage, count) in replicas {
            for _ in 0..count {
                let post = Post { stage, config: config.to_owned(), logs: logs.clone(), roster: roster.clone() };
                tasks.push(tokio::spawn(keep_alive(post, stopping.clone(), report.clone())));
            }
        }
        Supervisor { tasks, stop, fatal, roster }
    }

    /// Which stages have processes, to be changed.
    pub fn roster(&self) -> Roster {
        self.roster.clone()
    }

    /// Waits until a stage says that it can never start.
    pub async fn fatal(&mut self) -> Fatal {
        match self.fatal.recv().await {
            Some(fatal) => fatal,
            None => std::future::pending().await,
        }
    }

    /// Drains every stage and waits for its end.
    pub async fn drain(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            // A task that panicked has no child any more.
            let _ = task.await;
        }
    }
}

/// How a process came to its end.
enum Ended {
    /// By itself.
    Alone(std::io::Result<std::process::ExitStatus>),
    /// Its stage was unloaded.
    Unloaded,
    /// The supervisor stops.
    Stopped,
}

async fn keep_alive(post: Post, mut stopping: Shutdown, report: mpsc::UnboundedSender<Fatal>) {
    let roster = post.roster.clone();
    let entry = &roster.0[&post.stage];
    let mut loaded = entry.loaded.subscribe();
    let mut pause = FIRST_PAUSE;
    loop {
        // The sender is in the roster, which we hold.
        tokio::select! {
            _ = stopping.wait_for(|&s| s) => return,
            _ = loaded.wait_for(|&l| l) => {}
        }
        let started = Instant::now();
        let mut child = match post.spawn() {
            Ok(child) => child,
            Err(e) => {
                // The receiver ends with the supervisor.
                let _ = report.send(Fatal(Exit::Other, format!("stage-{}: {e:#}", post.stage)));
                return;
            }
        };
        entry.running.send_modify(|n| *n += 1);
        // Waiting for a child closes its standard input, which here would ask it to drain: held until we mean it.
        let lifeline = child.stdin.take();
        let ended = tokio::select! {
            status = child.wait() => Ended::Alone(status),
            _ = stopping.wait_for(|&s| s) => Ended::Stopped,
            _ = loaded.wait_for(|&l| !l) => Ended::Unloaded,
        };
        drop(lifeline);
        match &ended {
            Ended::Alone(_) => {}
            Ended::Stopped => drain(&post, child, tokio::time::sleep(DRAIN_WAIT)).await,
            Ended::Unloaded => {
                let patience = async {
                    if tokio::time::timeout(UNLOAD_WAIT, stopping.wait_for(|&s| s)).await.is_ok() {
                        tokio::time::sleep(DRAIN_WAIT).await;
                    }
                };
                drain(&post, child, patience).await;
            }
        }
        entry.running.send_modify(|n| *n -= 1);
        let status = match ended {
            Ended::Stopped => return,
            Ended::Unloaded => continue,
            Ended::Alone(status) => status,
        };
        let code = status.as_ref().ok().and_then(|s| s.code());
        if let Some(exit) = Exit::final_of(code) {
            // The receiver ends with the supervisor.
            let _ = report.send(Fatal(exit, post.last_words()));
            return;
        }
        if started.elapsed() >= STABLE {
            pause = FIRST_PAUSE;
        }
        let how = status.map_or_else(|e| e.to_string(), |s| s.to_string());
        tracing::warn!(stage = %post.stage, how, ?pause, "stage ended; starting it again");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stopping.wait_for(|&s| s) => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The end of standard input has asked a stage to drain; one that has not when patience ends is killed.
async fn drain(post: &Post, mut child: Child, patience: impl Future<Output = ()>) {
    let started = Instant::now();
    tokio::select! {
        _ = child.wait() => return,
        () = patience => {}
    }
    tracing::warn!(stage = %post.stage, "did not drain within {:?}; killed", started.elapsed());
    if let Err(error) = child.kill().await {
        tracing::warn!(stage = %post.stage, %error, "could not be killed");
    }
}

/// Reads `--replicas`: `stage=count`, one process of each stage that is not named.
///
/// # Errors
/// What cannot be read.
pub fn replicas(given: &[String]) -> Result<Vec<(StageName, usize)>, String> {
    let mut all = StageName::ALL.map(|s| (s, 1)).to_vec();
    for item in given {
        let (name, count) = item.split_once('=').ok_or(format!("--replicas: {item:?} is not stage=count"))?;
        let stage: StageName = name.parse().map_err(|e| format!("--replicas: {e}"))?;
        let count: usize = count.parse().map_err(|e| format!("--replicas: {item:?}: {e}"))?;
        all.retain(|(s, _)| *s != stage);
        all.push((stage, count));
    }
    Ok(all)
}

impl Post {
    fn spawn(&self) -> anyhow::Result<Child> {
        let program = std::env::current_exe().context("own executable")?;
        let stderr = match &self.logs {
            Logs::Inherit => Stdio::inherit(),
            Logs::Directory(dir) => {
                let path = self.log_file(dir);
                let file = File::options().create(true).append(true).open(&path);
                file.with_context(|| format!("log {}", path.display()))?.into()
            }
        };
        // candle reads /proc/cpuinfo at every product of matrices unless this is set.
        let threads = std::env::var("RAYON_NUM_THREADS")
            .unwrap_or_else(|_| std::thread::available_parallelism().map_or(1, usize::from).to_string());
        let mut command = Command::new(program);
        // The configuration is merged; what it was merged of is none of a stage's business.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with(layers::PREFIX)) {
            command.env_remove(name);
        }
        command
            .env("RAYON_NUM_THREADS", threads)
            .args(["stage", self.stage.as_str(), "--supervised"])
            .arg(&self.config)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(stderr)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start")
    }

    fn log_file(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.log", self.stage))
    }

    /// What the stage said before it ended for good.
    fn last_words(&self) -> String {
        let Logs::Directory(dir) = &self.logs else {
            return format!("stage-{} cannot start; its last line above says why", self.stage);
        };
        let log = std::fs::read_to_string(self.log_file(dir)).unwrap_or_default();
        let said = log.lines().rev().find_map(|l| l.strip_prefix("error: "));
        said.map_or_else(|| format!("stage-{} cannot start: {log}", self.stage), str::to_owned)
    }
}
