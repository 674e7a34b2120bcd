//! `vidi up --mps`: the life of NVIDIA's Multi-Process Service beside the stages.
//!
//! There is no GPU here, and the control program does not run without one. A stand-in takes its place in PATH: a script that
//! makes the control socket, forks a child as the server, in a session of its own so that no process group reaches it, and
//! obeys `quit`. The `vidi up`, its keeper and its stages are real; those that are to be on a GPU wait in front of a checkpoint
//! that cannot be read to its end, before they would open one. So these tests show who is started, told, restarted and ended, and
//! in which order. They cannot show what NVIDIA's daemon itself does: whether CUDA finds it by the variable, what its clients
//! see when it dies, and what it gains.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use runtime::process::Exit;
use tests::harness::{checkpoint, signal};
use tests::own::{Own, Place};

/// Longest wait for anything to begin or to end.
const SOON: Duration = Duration::from_secs(90);
/// Variable by which CUDA finds the daemon.
const PIPES: &str = "CUDA_MPS_PIPE_DIRECTORY";
/// What stands for the control program. It notes in a journal beside its directory of sockets when it starts, with the number of
/// stages that run, and when it is told to quit, with the number of those that were told of it.
const STAND_IN: &str = r#"#!/usr/bin/env python3
import os, signal, socket, sys, time

pipes, logs = os.environ["CUDA_MPS_PIPE_DIRECTORY"], os.environ["CUDA_MPS_LOG_DIRECTORY"]
control = os.path.join(pipes, "control")
if sys.argv[1:] != ["-f"]:
    told = sys.stdin.read()
    asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asking.connect(control)
    asking.send(told.encode())
    asking.recv(1)
    sys.exit(0)

state = os.path.dirname(os.path.dirname(pipes))

def stages(told):
    found = 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = open(f"/proc/{pid}/cmdline", "rb").read()
            environment = open(f"/proc/{pid}/environ", "rb").read()
        except OSError:
            continue
        here = b"\0stage\0" in line and state.encode() in line
        found += here and (not told or f"CUDA_MPS_PIPE_DIRECTORY={pipes}".encode() in environment.split(b"\0"))
    return found

def note(text):
    with open(os.path.join(state, "journal"), "a") as journal:
        journal.write(text + "\n")

if os.environ.get("STAND_IN_FAILS"):
    print("no device that can be shared", flush=True)
    sys.exit(3)
note(f"start {os.getpid()} stages {stages(False)}")
server = os.fork()
if server == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.execvp("sleep", ["nvidia-cuda-mps-server", "100000"])
note(f"server {server}")
listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listening.bind(control)
listening.listen()
while True:
    client, _ = listening.accept()
    if client.recv(100).strip() == b"quit":
        break
    client.close()
note(f"quit {os.getpid()} clients {stages(True)}")
"#;

/// A place with the stand-in in PATH, and a checkpoint in front of which stages wait.
struct Shared {
    place: Place,
    bin: PathBuf,
    model: PathBuf,
}

/// Arguments and environment that are refused, the exit status, and words that are said.
type Refused<'a> = (&'a [&'a str], &'a [(&'a str, &'a Path)], Exit, &'a [&'a str]);

/// Line of the stand-in's journal: what, which process, how many stages.
type Entry = (String, u32, u32);

impl Shared {
    fn new() -> anyhow::Result<Self> {
        let place = Place::new(None)?;
        let [bin, model] = ["bin", "model"].map(|name| place.media().join(name));
        std::fs::create_dir(&bin)?;
        let program = bin.join("nvidia-cuda-mps-control");
        std::fs::write(&program, STAND_IN)?;
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
        std::fs::create_dir(&model)?;
        let made = Command::new("mkfifo").arg(model.join("config.json")).status()?;
        ensure!(made.success(), "mkfifo: {made}");
        Ok(Shared { place, bin, model })
    }

    fn path(&self) -> anyhow::Result<std::ffi::OsString> {
        let given = std::env::var_os("PATH").unwrap_or_default();
        Ok(std::env::join_paths([self.bin.clone()].into_iter().chain(std::env::split_paths(&given)))?)
    }

    /// `vidi up --mps` with stages of which vision and llm are on a GPU.
    fn command(&self, args: &[&str]) -> anyhow::Result<Command> {
        let model = format!("model.dir={}", self.model.display());
        let placed = ["--set", &model, "--set", "compute.device=cuda", "--set", "placement.audio=cpu"];
        let mut command = self.place.command(&[&placed[..], &["--set", "placement.fuse=cpu"], args].concat())?;
        command.env("PATH", self.path()?).env_remove(PIPES).env_remove("CUDA_VISIBLE_DEVICES");
        Ok(command)
    }

    fn up(&self, name: &str) -> anyhow::Result<Own> {
        self.place.up_of(name, self.command(&["up", "--mps"])?)
    }

    fn journal(&self) -> Vec<Entry> {
        let text = std::fs::read_to_string(self.place.state().join("journal")).unwrap_or_default();
        let entry = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            Some((
                words.first()?.to_string(),
                words.get(1)?.parse().ok()?,
                words.get(3).map_or(Ok(0), |n| n.parse()).ok()?,
            ))
        };
        text.lines().filter_map(entry).collect()
    }

    /// Processes of a kind in the order of the journal.
    fn noted(&self, what: &str) -> Vec<u32> {
        self.journal().into_iter().filter(|(noted, ..)| noted == what).map(|(_, pid, _)| pid).collect()
    }

    /// Stages that run, each with its name and the directory that it was told of.
    fn stages(&self) -> Vec<(u32, String, Option<String>)> {
        let named = |pid: u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            let name = line.split('\0').skip_while(|word| *word != "stage").nth(1)?.to_owned();
            let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
            let environment = String::from_utf8_lossy(&environment).into_owned();
            let told = environment.split('\0').find_map(|entry| entry.strip_prefix(&format!("{PIPES}=")));
            Some((pid, name, told.map(str::to_owned)))
        };
        self.place.processes(Place::STAGE).into_iter().filter_map(named).collect()
    }

    /// Waits until all stages run; returns those that were told of a directory, and that.
    async fn told(&self, up: &mut Own) -> anyhow::Result<(Vec<(u32, String)>, String)> {
        let all = until("five stages", up, |_| Some(self.stages()).filter(|stages| stages.len() == 5)).await?;
        let mut told: Vec<(String, u32, String)> =
            all.into_iter().filter_map(|(pid, name, told)| Some((name, pid, told?))).collect();
        told.sort();
        let pipes = told.first().context("no stage was told")?.2.clone();
        ensure!(told.iter().all(|(.., of)| *of == pipes), "{told:?}");
        Ok((told.into_iter().map(|(name, pid, _)| (pid, name)).collect(), pipes))
    }

    /// Checks that nothing of the service is left, within a bound.
    async fn nothing_left(&self) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            let daemons = [self.noted("start"), self.noted("server")].concat();
            let mut left: Vec<u32> = daemons.into_iter().filter(|&pid| lives(pid)).collect();
            left.extend(self.place.processes("mps-keeper"));
            left.extend(self.place.processes(Place::STAGE));
            if left.is_empty() {
                return Ok(());
            }
            ensure!(since.elapsed() < SOON, "processes {left:?} are left; {:?}", self.journal());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Whether a process runs: one that has ended and was not waited for does not.
fn lives(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

/// Waits until something is there.
async fn until<T>(what: &str, up: &mut Own, mut seen: impl FnMut(&Own) -> Option<T>) -> anyhow::Result<T> {
    let since = Instant::now();
    loop {
        if let Some(seen) = seen(up) {
            return Ok(seen);
        }
        ensure!(up.runs()?, "vidi up ended before {what}: {}", up.log());
        ensure!(since.elapsed() < SOON, "no {what} after {SOON:?}: {}", up.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for a line with that beginning.
async fn says(up: &mut Own, beginning: &str) -> anyhow::Result<()> {
    until(beginning, up, |up| up.log().lines().any(|line| line.starts_with(beginning)).then_some(())).await
}

fn names(told: &[(u32, String)]) -> Vec<&str> {
    told.iter().map(|(_, name)| name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_is_there_before_the_stages_on_a_gpu_are_told_of_it_and_quits_after_them() -> anyhow::Result<()> {
    let shared = Shared::new()?;
    let mut up = shared.up("up")?;
    let (told, pipes) = shared.told(&mut up).await?;
    ensure!(names(&told) == ["llm", "vision"], "{told:?}");
    ensure!(Path::new(&pipes) == shared.place.state().canonicalize()?.join("mps/pipe"), "{pipes}");
    let (daemon, server) = (shared.noted("start"), shared.noted("server"));
    ensure!(shared.journal()[0] == ("start".to_owned(), daemon[0], 0), "{:?}", shared.journal());
    ensure!(daemon.len() == 1 && lives(daemon[0]) && lives(server[0]), "{:?}", shared.journal());
    // It is said on standard output, once the broker has answered.
    says(&mut up, &format!("mps: daemon process {}, sockets and logs in", daemon[0])).await?;
    up.stop()?;
    ensure!(shared.journal().last() == Some(&("quit".to_owned(), daemon[0], 0)), "{:?}", shared.journal());
    shared.nothing_left().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_is_started_again_before_the_stages_that_used_it() -> anyhow::Result<()> {
    let shared = Shared::new()?;
    let mut up = shared.up("up")?;
    let (first, _) = shared.told(&mut up).await?;
    let untold = || -> Vec<u32> {
        shared.stages().into_iter().filter(|(.., told)| told.is_none()).map(|(pid, ..)| pid).collect()
    };
    let others = untold();
    for kill in ["KILL", "TERM"] {
        let before = shared.noted("start");
        let (told, _) = shared.told(&mut up).await?;
        signal(*before.last().context("no daemon")?, kill)?;
        let starts = || shared.journal().into_iter().filter(|(what, ..)| what == "start");
        let (_, _, running) = until("daemon again", &mut up, |_| starts().nth(before.len())).await?;
        // Those that had used it have ended by then, and the others have not.
        ensure!(running == 3, "{running} stages while the daemon starts again; {}", up.log());
        let dead = *shared.noted("server").get(before.len() - 1).context("no server")?;
        ensure!(!lives(dead), "the server of the daemon that died lives");
        let (now, _) = shared.told(&mut up).await?;
        ensure!(names(&now) == names(&told) && now.iter().all(|new| !told.contains(new)), "{now:?} after {told:?}");
    }
    ensure!(untold() == others, "stages that do not use it: {:?} after {others:?}", untold());
    ensure!(first.len() == 2 && up.log().contains(deploy::up::mps::service::RESTARTING), "{}", up.log());
    up.kill()?;
    shared.nothing_left().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_that_is_killed_leaves_nothing_and_the_next_one_starts_anew() -> anyhow::Result<()> {
    let shared = Shared::new()?;
    for round in 1..=2 {
        let mut up = shared.up(&format!("up-{round}"))?;
        let (told, _) = shared.told(&mut up).await?;
        ensure!(names(&told) == ["llm", "vision"] && shared.noted("start").len() == round, "{told:?}");
        up.kill()?;
        shared.nothing_left().await.with_context(|| format!("round {round}"))?;
    }
    let quits: Vec<u32> = shared.noted("quit");
    ensure!(quits == shared.noted("start"), "a daemon was not told to quit: {:?}", shared.journal());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_there_is_used_and_left_alone() -> anyhow::Result<()> {
    let shared = Shared::new()?;
    let pipes = shared.place.media().join("theirs");
    std::fs::create_dir(&pipes)?;
    let theirs = std::os::unix::net::UnixListener::bind(pipes.join("control"))?;
    let mut command = shared.command(&["up", "--mps"])?;
    command.env(PIPES, &pipes);
    let mut up = shared.place.up_of("up", command)?;
    says(&mut up, &format!("mps: the daemon in {}", pipes.display())).await?;
    let (_, told) = shared.told(&mut up).await?;
    ensure!(Path::new(&told) == pipes, "{told}");
    up.kill()?;
    shared.nothing_left().await?;
    ensure!(shared.journal().is_empty(), "another one was started: {:?}", shared.journal());
    drop(theirs);
    Ok(())
}

#[test]
fn what_cannot_be_shared_is_refused_before_anything_starts() -> anyhow::Result<()> {
    let shared = Shared::new()?;
    let deep = shared.place.media().join("x".repeat(100));
    let [cpu, few] = ["compute.device=cpu", "placement.vision=cpu"].map(str::to_owned);
    let model = format!("model.dir={}", checkpoint("tied").display());
    let cases: [Refused; 5] = [
        (&["--set", &cpu, "up", "--mps"], &[], Exit::Usage, &["--mps (up.mps) shares a GPU", "compute.device"]),
        (
            &["--set", &model, "up", "--mps", "--one-process", "--place", "audio=cuda,fuse=cuda"],
            &[],
            Exit::Usage,
            &["--one-process"],
        ),
        (
            &["--set", &few, "up", "--mps"],
            &[("PATH", Path::new("/nonexistent"))],
            Exit::Usage,
            &["nvidia-cuda-mps-control", "driver"],
        ),
        (
            &["up", "--mps"],
            &[("VIDI_STATE", &deep)],
            Exit::Usage,
            &["control_privileged", "may have 107", "VIDI_STATE"],
        ),
        (
            &["up", "--mps"],
            &[("STAND_IN_FAILS", Path::new("1"))],
            Exit::Other,
            &["nvidia-cuda-mps-control ended at its start (exit status: 3)", "no device that can be shared"],
        ),
    ];
    for (args, env, exit, words) in cases {
        let output = shared.command(args)?.envs(env.iter().copied()).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(exit as i32), "{args:?}: {}: {said}", output.status);
        ensure!(words.iter().all(|word| said.contains(word)), "{args:?}: {said}");
        for what in [Place::BROKER, Place::STAGE, "mps-keeper"] {
            ensure!(shared.place.processes(what).is_empty(), "{args:?}: {what} was started");
        }
    }
    Ok(())
}

#[test]
fn the_flag_is_above_the_environment_above_a_file() -> anyhow::Result<()> {
    let shared = Shared::new()?;
    let file = shared.place.media().join("vidi.toml");
    std::fs::write(&file, "[up]\nmps = true\n")?;
    let file = file.to_string_lossy().into_owned();
    let said = |args: &[&str], variable: &str| -> anyhow::Result<String> {
        let output = shared.place.command(args)?.env("VIDI_UP_MPS", variable).output()?;
        Ok(String::from_utf8([output.stdout, output.stderr].concat())?)
    };
    for (args, variable, mps) in [
        (&["config", "print"][..], "", "mps = false"),
        (&["--config", &file, "config", "print"], "", "mps = true"),
        (&["--config", &file, "config", "print"], "false", "mps = false"),
        (&["config", "print"], "true", "mps = true"),
        (&["up", "--mps"], "false", "--mps (up.mps) shares a GPU"),
    ] {
        let said = said(args, variable)?;
        ensure!(said.contains(mps), "{args:?} {variable}: no {mps:?} in {said}");
    }
    Ok(())
}
