//! Stages as child processes: started, started again when they die, drained at the end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use common::error::StageName;
use common::process::{Exit, Fatal};
use common::run::Shutdown;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// Pause before a stage that died is started again; doubles up to [`LONGEST_PAUSE`] while it keeps dying.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A stage that ran this long has recovered.
const STABLE: Duration = Duration::from_secs(10);
/// A stage has this long to finish what it has in hand.
const DRAIN_WAIT: Duration = Duration::from_secs(20);

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
    stop: tokio::sync::watch::Sender<bool>,
    fatal: mpsc::UnboundedReceiver<Fatal>,
}

/// One process to keep alive.
struct Post {
    stage: StageName,
    config: PathBuf,
    logs: Logs,
}

impl Supervisor {
    /// Starts `replicas` processes of each stage with a configuration file.
    pub fn start(config: &Path, replicas: &[(StageName, usize)], logs: &Logs) -> Self {
        let (stop, stopping) = tokio::sync::watch::channel(false);
        let (report, fatal) = mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        for &(stage, count) in replicas {
            for _ in 0..count {
                let post = Post { stage, config: config.to_owned(), logs: logs.clone() };
                tasks.push(tokio::spawn(keep_alive(post, stopping.clone(), report.clone())));
            }
        }
        Supervisor { tasks, stop, fatal }
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

async fn keep_alive(post: Post, mut stopping: Shutdown, report: mpsc::UnboundedSender<Fatal>) {
    let mut pause = FIRST_PAUSE;
    while !*stopping.borrow() {
        let started = Instant::now();
        let mut child = match post.spawn() {
            Ok(child) => child,
            Err(e) => {
                // The receiver ends with the supervisor.
                let _ = report.send(Fatal(Exit::Other, format!("stage-{}: {e:#}", post.stage)));
                return;
            }
        };
        // Waiting for a child closes its standard input, which here would ask it to drain: held until we mean it.
        let lifeline = child.stdin.take();
        let ended = tokio::select! {
            status = child.wait() => Some(status),
            _ = stopping.wait_for(|&s| s) => None,
        };
        let Some(status) = ended else {
            drop(lifeline);
            return drain(&post, child).await;
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

/// The end of standard input asks a stage to drain; one that does not is killed.
async fn drain(post: &Post, mut child: Child) {
    if tokio::time::timeout(DRAIN_WAIT, child.wait()).await.is_err() {
        tracing::warn!(stage = %post.stage, "did not drain within {DRAIN_WAIT:?}; killed");
        if let Err(error) = child.kill().await {
            tracing::warn!(stage = %post.stage, %error, "could not be killed");
        }
    }
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
        Command::new(program)
            .env("RAYON_NUM_THREADS", threads)
            .args(["stage", self.stage.as_str(), "--supervised", "--config"])
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
