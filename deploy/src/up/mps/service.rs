//! The daemon beside the stages: started before them, started again when it dies, ended after them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use config::Device;
use runtime::run::Shutdown;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::choice::Choice;
use super::home::{Home, PROGRAM};
use super::keeper::SERVING;
use crate::up::child;
use crate::up::lifeline::{Ending, Kept};
use crate::up::lock::{Lock, Taken};

/// Time that a keeper has to end: longer than it gives the daemon.
const KEEPER_WAIT: Duration = Duration::from_secs(50);
/// Time that a keeper which was asked to end has for that, before its directory is another's.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// Time that processes which use a daemon that died have to end, before its server does.
const CLIENTS_WAIT: Duration = Duration::from_secs(10);
/// Pause before a daemon that died is started again; doubles up to [`LONGEST_PAUSE`] while it keeps dying.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A daemon that served this long has recovered: its next pause is the first one again.
const STABLE: Duration = Duration::from_secs(10);

/// Log line of a daemon that ended by itself and is started again.
pub const RESTARTING: &str = "MPS daemon lost, restarting it and the stages that use it";

/// The daemon that stages share a GPU by, for as long as their supervisor runs.
pub struct Mps {
    share: Share,
    /// What a user is told of it.
    said: String,
    stop: watch::Sender<bool>,
    /// What keeps a daemon of our own alive.
    task: Option<JoinHandle<()>>,
}

/// Use of the daemon by one process of a stage.
#[derive(Clone, Debug)]
pub struct Share {
    pipes: PathBuf,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    serving: watch::Sender<bool>,
    /// Processes that use the daemon now.
    clients: watch::Sender<usize>,
}

/// A process that uses the daemon, until dropped.
pub struct Client(Arc<State>);

impl Mps {
    /// Starts the daemon with its files below `home`, or takes the one that is there.
    ///
    /// # Errors
    /// Another daemon on the same directory; one that does not come to serve, with the end of its log.
    pub async fn start(choice: &Choice, home: &Home) -> anyhow::Result<Self> {
        let state = State { serving: watch::Sender::new(true), clients: watch::Sender::new(0) };
        let state = Arc::new(state);
        let (stop, stopping) = watch::channel(false);
        let (pipes, said, task) = match choice {
            Choice::Existing(pipes) => {
                let said = format!("mps: the daemon in {}, which stays as it is", pipes.display());
                (pipes.clone(), said, None)
            }
            Choice::Own(program) => {
                let keeper = Keeper::start(program, home).await?;
                let said = format!("mps: daemon {}, sockets and logs in {}", keeper.daemon, home.dir.display());
                let task = keep_alive(keeper, program.clone(), home.clone(), state.clone(), stopping);
                (home.pipes.clone(), said, Some(tokio::spawn(task)))
            }
        };
        Ok(Mps { share: Share { pipes, state }, said, stop, task })
    }

    /// What a process on a device has of it: none on the host's processors.
    pub fn share(&self, device: Device) -> Option<Share> {
        matches!(device, Device::Cuda(_)).then(|| self.share.clone())
    }

    /// What a user is told of it.
    pub fn said(&self) -> &str {
        &self.said
    }

    /// Ends a daemon of our own, and waits for its end.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Some(task) = self.task {
            // One that panicked has ended the daemon by dropping it.
            let _ = task.await;
        }
    }
}

impl Share {
    /// Directory of the daemon's sockets.
    pub fn pipes(&self) -> &Path {
        &self.pipes
    }

    /// Waits until the daemon serves.
    pub async fn serving(&self) {
        self.until(true).await;
    }

    /// Waits until the daemon is lost.
    pub async fn lost(&self) {
        self.until(false).await;
    }

    /// Notes that a process uses the daemon.
    pub fn client(&self) -> Client {
        self.state.clients.send_modify(|n| *n += 1);
        Client(self.state.clone())
    }

    async fn until(&self, serving: bool) {
        // The sender is part of `self`.
        let _ = self.state.serving.subscribe().wait_for(|&s| s == serving).await;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.0.clients.send_modify(|n| *n -= 1);
    }
}

/// The process that keeps a daemon of our own.
struct Keeper {
    process: Kept,
    /// What it says on its standard output.
    lines: Lines<BufReader<Receiver>>,
    /// Process id of the daemon, in words.
    daemon: String,
}

impl Keeper {
    /// Starts it and waits until its daemon serves.
    async fn start(program: &Path, home: &Home) -> anyhow::Result<Self> {
        let lock = match Lock::take(&home.dir, LOCK_WAIT).await? {
            Taken::Ours(lock) => lock,
            Taken::HeldBy(pid) => bail!(
                "process {pid} still keeps an MPS daemon in {} after {LOCK_WAIT:?}: end that process, or leave --mps out",
                home.dir.display()
            ),
        };
        home.prepare()?;
        let (reader, writer) = std::io::pipe()?;
        let mut command = child::vidi()?;
        command
            .args(["mps-keeper", "--program"])
            .arg(program)
            .arg("--state")
            .arg(home.dir.parent().unwrap_or(&home.dir))
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::inherit())
            // The terminal's Ctrl-C must not reach the daemon: the stages drain first, on its GPU.
            .process_group(0);
        let process =
            Kept::start(command, lock, Ending::Asked(KEEPER_WAIT)).await.context("cannot start mps-keeper")?;
        let lines = BufReader::new(Receiver::from_owned_fd(reader.into())?).lines();
        let mut keeper = Keeper { process, lines, daemon: String::new() };
        let first = keeper.next().await;
        match first.strip_prefix(SERVING) {
            Some(pid) => keeper.daemon = format!("process{pid}"),
            None => {
                keeper.process.stop().await;
                bail!("{PROGRAM} {first}");
            }
        }
        Ok(keeper)
    }

    /// What it says next, or how it ended.
    async fn next(&mut self) -> String {
        match self.lines.next_line().await {
            Ok(Some(line)) => line,
            Ok(None) | Err(_) => format!("is lost: its keeper {}", self.process.ended().await),
        }
    }
}

/// Starts the daemon again when it dies, once the processes that used it have ended, until `stopping`.
async fn keep_alive(mut keeper: Keeper, program: PathBuf, home: Home, state: Arc<State>, mut stopping: Shutdown) {
    let mut pause = FIRST_PAUSE;
    loop {
        let since = Instant::now();
        let lost = tokio::select! {
            how = keeper.next() => Some(how),
            // One whose sender is gone stops too.
            _ = stopping.wait_for(|&s| s) => None,
        };
        let Some(how) = lost else { return keeper.process.stop().await };
        state.serving.send_replace(false);
        tracing::warn!(how, "{RESTARTING}");
        // Its server goes after them: a job whose process is killed is another's, one whose GPU fails is lost.
        let mut clients = state.clients.subscribe();
        let ended = tokio::time::timeout(CLIENTS_WAIT, clients.wait_for(|&n| n == 0)).await.is_ok();
        if !ended {
            tracing::warn!(after = ?CLIENTS_WAIT, "stages that use the MPS daemon have not ended");
        }
        keeper.process.stop().await;
        if since.elapsed() >= STABLE {
            pause = FIRST_PAUSE;
        }
        keeper = loop {
            let again = async {
                tokio::time::sleep(pause).await;
                Keeper::start(&program, &home).await
            };
            let started = tokio::select! {
                started = again => started,
                _ = stopping.wait_for(|&s| s) => return,
            };
            pause = (pause * 2).min(LONGEST_PAUSE);
            match started {
                Ok(keeper) => break keeper,
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), ?pause, "MPS daemon does not start, retrying")
                }
            }
        };
        tracing::info!(daemon = keeper.daemon, "MPS daemon serves again");
        state.serving.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stages_on_a_gpu_are_told_of_a_daemon_and_those_on_the_cpu_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::below(dir.path()).unwrap();
        let pipes = PathBuf::from("/their/pipes");
        let mps = Mps::start(&Choice::Existing(pipes.clone()), &home).await.unwrap();
        assert!(mps.share(Device::Cpu).is_none());
        for gpu in [Device::Cuda(0), Device::Cuda(7)] {
            let share = mps.share(gpu).unwrap();
            assert_eq!(share.pipes(), pipes);
            // Somebody else's is theirs to keep alive.
            share.serving().await;
            let lost = tokio::time::timeout(Duration::from_millis(50), share.lost()).await;
            assert!(lost.is_err());
        }
        assert!(mps.said().contains("/their/pipes") && mps.said().contains("stays as it is"), "{}", mps.said());
        mps.stop().await;
        assert!(!home.dir.exists(), "something was made for a daemon that is not ours");
    }
}
