//! Stages as child processes: started, restarted when they die, drained at the end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use runtime::process::{Exit, Fatal};
use runtime::run::Shutdown;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};

use super::child;
use super::desired::Desired;
use super::merged::Process;
use super::mps::home::PIPES;
use super::mps::service::{Mps, Share};

/// Pause before a stage that died is restarted; doubles up to [`LONGEST_PAUSE`] while it keeps dying.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A stage that ran this long has recovered: its next pause is the first one again.
const STABLE: Duration = Duration::from_secs(10);
/// Time that a stage has to finish what is in flight when the supervisor stops.
const DRAIN_WAIT: Duration = Duration::from_secs(20);
/// Time that a stage has to drain when it is unloaded: the job in flight is answered first.
const UNLOAD_WAIT: Duration = Duration::from_secs(600);

/// Log line of a process that exited by itself and is restarted.
pub const RESTARTING: &str = "stage exited, restarting";

/// Destination of the stages' logs.
#[derive(Clone, Debug)]
pub enum Logs {
    /// Standard error of the supervisor.
    Inherit,
    /// `<stage>.log` in a directory.
    Directory(PathBuf),
}

/// Stages that run as child processes.
pub struct Supervisor {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    stop: watch::Sender<bool>,
    fatal: mpsc::UnboundedReceiver<Fatal>,
    desired: Desired,
}

/// One process of a stage, which is restarted when it dies.
struct Replica {
    process: Process,
    logs: Logs,
    /// Whether the broker ends with this process.
    own_broker: bool,
    /// The daemon by which it shares its GPU with others.
    share: Option<Share>,
    desired: Desired,
}

impl Supervisor {
    /// Starts processes; `own_broker` says whether their broker ends with this process, `mps` is the daemon by which those on
    /// GPUs share them.
    pub fn start(processes: &[Process], logs: &Logs, own_broker: bool, mps: Option<&Mps>) -> Self {
        let (stop, stopping) = watch::channel(false);
        let desired = Desired::new(processes.iter().map(|process| (process.stage, process.device)));
        let (report, fatal) = mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        for process in processes.iter().cloned() {
            let share = mps.and_then(|mps| mps.share(process.device));
            let replica = Replica { process, logs: logs.clone(), own_broker, share, desired: desired.clone() };
            tasks.push(tokio::spawn(keep_alive(replica, stopping.clone(), report.clone())));
        }
        Supervisor { tasks, stop, fatal, desired }
    }

    /// The desired state of the stages, to be changed.
    pub fn desired(&self) -> Desired {
        self.desired.clone()
    }

    /// Waits until a stage ends with a status after which starting it again cannot help.
    pub async fn fatal(&mut self) -> Fatal {
        match self.fatal.recv().await {
            Some(fatal) => fatal,
            None => std::future::pending().await,
        }
    }

    /// Kills every stage: nothing is in flight yet.
    pub async fn kill(self) {
        for task in self.tasks {
            task.abort();
            // It ends as one that was aborted, and its child with it.
            let _ = task.await;
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

/// Reason why a process ended, or is to end.
enum Ended {
    /// It exited by itself.
    Exited(std::io::Result<std::process::ExitStatus>),
    /// Its stage was unloaded.
    Unloaded,
    /// The daemon by which it shares its GPU is lost.
    Deserted,
    /// The supervisor stops.
    Stopped,
}

async fn keep_alive(replica: Replica, mut stopping: Shutdown, report: mpsc::UnboundedSender<Fatal>) {
    let desired = replica.desired.clone();
    let Process { stage, device, .. } = replica.process;
    let Some(state) = desired.of(stage, device) else { return };
    let mut loaded = state.loaded();
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::select! {
            _ = stopping.wait_for(|&s| s) => return,
            () = startable(&mut loaded, replica.share.as_ref()) => {}
        }
        let client = replica.share.as_ref().map(Share::client);
        let started = Instant::now();
        let mut child = match replica.spawn() {
            Ok(child) => child,
            Err(e) => {
                // The receiver ends with the supervisor.
                let _ = report.send(Fatal(Exit::Other, format!("stage-{stage}: {e:#}")));
                return;
            }
        };
        state.note_start();
        // Waiting for a child closes its standard input, which asks it to drain: kept open until that is meant.
        let stdin = child.stdin.take();
        let ended = tokio::select! {
            status = child.wait() => Ended::Exited(status),
            _ = stopping.wait_for(|&s| s) => Ended::Stopped,
            _ = loaded.wait_for(|&l| !l) => Ended::Unloaded,
            () = deserted(replica.share.as_ref()) => Ended::Deserted,
        };
        drop(stdin);
        settle(&replica, &ended, child, &mut stopping).await;
        drop(client);
        state.note_end();
        let status = match ended {
            Ended::Stopped => return,
            Ended::Unloaded | Ended::Deserted => continue,
            Ended::Exited(status) => status,
        };
        let code = status.as_ref().ok().and_then(|s| s.code());
        if let Some(exit) = Exit::final_of(code) {
            // The receiver ends with the supervisor.
            let _ = report.send(Fatal(exit, replica.last_words()));
            return;
        }
        if started.elapsed() >= STABLE {
            pause = FIRST_PAUSE;
        }
        let how = status.map_or_else(|e| e.to_string(), |s| s.to_string());
        tracing::warn!(%stage, %device, how, ?pause, "{RESTARTING}");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stopping.wait_for(|&s| s) => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Waits until a process is to run, and until the daemon serves by which it shares its GPU.
async fn startable(loaded: &mut watch::Receiver<bool>, share: Option<&Share>) {
    loop {
        // The sender is in `desired`.
        let _ = loaded.wait_for(|&l| l).await;
        if let Some(share) = share {
            share.serving().await;
        }
        if *loaded.borrow() {
            return;
        }
    }
}

/// Waits until the daemon is lost by which a process shares its GPU.
async fn deserted(share: Option<&Share>) {
    match share {
        Some(share) => share.lost().await,
        None => std::future::pending().await,
    }
}

/// Waits for the end of a process that is to end.
async fn settle(replica: &Replica, ended: &Ended, mut child: Child, stopping: &mut Shutdown) {
    match ended {
        Ended::Exited(_) => {}
        Ended::Stopped => drain(replica, child, tokio::time::sleep(DRAIN_WAIT)).await,
        Ended::Unloaded => {
            let patience = async {
                if tokio::time::timeout(UNLOAD_WAIT, stopping.wait_for(|&s| s)).await.is_ok() {
                    tokio::time::sleep(DRAIN_WAIT).await;
                }
            };
            drain(replica, child, patience).await;
        }
        // At once: what it computes now would fail with its GPU, and its job with that. Killed, it leaves the job to others.
        Ended::Deserted => kill(replica, &mut child).await,
    }
}

/// Waits for a stage that was asked to drain by the end of its standard input; kills it when `patience` ends.
async fn drain(replica: &Replica, mut child: Child, patience: impl Future<Output = ()>) {
    let started = Instant::now();
    tokio::select! {
        _ = child.wait() => return,
        () = patience => {}
    }
    let stage = replica.process.stage;
    tracing::warn!(%stage, after = ?started.elapsed(), "drain timed out, killing the stage");
    kill(replica, &mut child).await;
}

async fn kill(replica: &Replica, child: &mut Child) {
    if let Err(error) = child.kill().await {
        tracing::warn!(stage = %replica.process.stage, %error, "kill failed");
    }
}

impl Replica {
    fn spawn(&self) -> anyhow::Result<Child> {
        let stderr = match &self.logs {
            Logs::Inherit => Stdio::inherit(),
            Logs::Directory(dir) => {
                let path = self.log_file(dir);
                let file = File::options().create(true).append(true).open(&path);
                file.with_context(|| format!("log {}", path.display()))?.into()
            }
        };
        let mut command = child::vidi()?;
        command.envs(self.share.as_ref().map(|share| (PIPES, share.pipes())));
        command
            .args(["stage", self.process.stage.as_str(), "--supervised"])
            .arg(&self.process.config)
            .args(self.own_broker.then(|| format!("--broker-of={}", std::process::id())))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(stderr)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start")
    }

    fn log_file(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.log", self.process.stage))
    }

    /// The error that a stage ended with.
    fn last_words(&self) -> String {
        let Logs::Directory(dir) = &self.logs else {
            return format!("stage-{} cannot start: see its last line above", self.process.stage);
        };
        let log = std::fs::read_to_string(self.log_file(dir)).unwrap_or_default();
        let said = log.lines().rev().find_map(|l| l.strip_prefix("error: "));
        said.map_or_else(|| format!("stage-{} cannot start: {log}", self.process.stage), str::to_owned)
    }
}
