//! Process between a supervisor and the daemon: `vidi mps-keeper`, which leaves nothing of the daemon, however the supervisor
//! or the daemon ends.
//!
//! The kernel ends a child with its parent, but not the child's children, and the daemon has one: nvidia-cuda-mps-server,
//! which works on the GPU. This process inherits it when the daemon ends, and ends it.

use std::fs;
use std::os::fd::RawFd;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use runtime::process::{Exit, Fatal};
use runtime::run::Shutdown;
use runtime::{answer, remark};
use tokio::io::AsyncWriteExt;
use tokio::process::Child;

use super::home::{Home, serves};

/// Line on standard output once the daemon serves.
pub const SERVING: &str = "serving";
/// Time that the daemon has to make its control socket.
const START_WAIT: Duration = Duration::from_secs(30);
/// Time that the daemon has to end once it is told to quit. It waits for its clients, which may drain for 30 s when their
/// supervisor was killed.
const QUIT_WAIT: Duration = Duration::from_secs(40);
/// Time that what the daemon leaves has to end after SIGKILL.
const SWEEP_WAIT: Duration = Duration::from_secs(5);
/// Pause before something is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Starts the daemon and keeps it until `shutdown`. Says on standard output that it serves, and in another line how it ended,
/// if it did so by itself; its server then lives on until `shutdown`, for clients that are to end before it.
///
/// # Errors
/// What keeps the daemon from being started.
pub async fn keep(program: &Path, home: &Home, mut shutdown: Shutdown) -> Result<(), Fatal> {
    let wrong = |e: anyhow::Error| Fatal(Exit::Other, format!("{e:#}"));
    inherit_orphans().and_then(|()| own_descriptors()).map_err(|e| wrong(e.into()))?;
    let mut daemon = start(program, home).map_err(wrong)?;
    let ended = tokio::select! {
        how = served(&mut daemon, home) => Some(how),
        _ = shutdown.wait_for(|&s| s) => None,
    };
    match ended {
        Some(how) => {
            // Whoever does not read it any more has ended, which ends this process too.
            let _ = answer!("{how}; {}", home.log_tail());
            // The sender lives as long as this process.
            let _ = shutdown.wait_for(|&s| s).await;
        }
        None => quit(program, home, &mut daemon).await,
    }
    // One that has ended is not there to be killed.
    let _ = daemon.kill().await;
    sweep().await;
    Ok(())
}

fn start(program: &Path, home: &Home) -> anyhow::Result<Child> {
    let output = home.output()?;
    let mut command = home.command(program);
    command.arg("-f").stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    // SAFETY: between fork and exec, one system call that is async-signal-safe and touches no memory but errno. The thread that
    // the child is tied to is the main one, on which the runtime runs this.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command.spawn().with_context(|| format!("cannot start {}", program.display()))
}

/// Says when the daemon serves, and returns how it ended, or that it does not begin to serve.
async fn served(daemon: &mut Child, home: &Home) -> String {
    let until = Instant::now() + START_WAIT;
    while !serves(&home.pipes) {
        match daemon.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return format!("ended at its start ({status})"),
            Err(e) => return format!("cannot be waited for: {e}"),
        }
        if Instant::now() > until {
            return format!("has no control socket in {} after {START_WAIT:?}", home.pipes.display());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    // Whoever does not read it any more has ended, which ends this process too.
    let _ = answer!("{SERVING} {}", daemon.id().unwrap_or_default());
    match daemon.wait().await {
        Ok(status) => format!("ended ({status})"),
        Err(e) => format!("cannot be waited for: {e}"),
    }
}

/// Tells the daemon to quit, by its control program, and waits for its end.
async fn quit(program: &Path, home: &Home, daemon: &mut Child) {
    let told = async {
        let mut control = home.command(program);
        control.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let mut control = control.spawn()?;
        if let Some(mut stdin) = control.stdin.take() {
            stdin.write_all(b"quit\n").await?;
        }
        control.wait().await?;
        daemon.wait().await
    };
    match tokio::time::timeout(QUIT_WAIT, told).await {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => remark!("MPS daemon cannot be told to quit, killing it: {e}"),
        Err(_) => remark!("MPS daemon has not quit after {QUIT_WAIT:?}, killing it; {}", home.log_tail()),
    }
}

/// Ends what the daemon has left.
async fn sweep() {
    let until = Instant::now() + SWEEP_WAIT;
    loop {
        let left = children();
        if left.is_empty() || Instant::now() > until {
            return;
        }
        for pid in left {
            // SAFETY: kill takes two numbers; a child that was not waited for keeps its id.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        // SAFETY: waits for any child that has ended, and writes no status.
        while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Children of this process, inherited ones too.
fn children() -> Vec<libc::pid_t> {
    let own = format!("PPid:\t{}", std::process::id());
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &libc::pid_t| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == own)
    })
    .collect()
}

/// Makes this process the parent of its descendants whose parents end.
fn inherit_orphans() -> std::io::Result<()> {
    // SAFETY: a system call on numbers.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Keeps this process's descriptors from the daemon: the lock that it has inherited is free when it ends, and no later.
fn own_descriptors() -> std::io::Result<()> {
    let all = fs::read_dir("/proc/self/fd")?;
    let numbers = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
    for descriptor in numbers.filter(|&number| number > 2) {
        // SAFETY: a system call on numbers; a descriptor that is gone by now is refused, which does no harm.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}
