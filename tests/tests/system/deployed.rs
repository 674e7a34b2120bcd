//! The files by which people run services: Kubernetes, compose and systemd read them, their configurations are ours, and what they
//! rely on in a process is true of it.

#![allow(clippy::print_stderr, reason = "a test: it says why it was skipped")]

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use config::Config;
use deploy::up::broker::{self, Broker};
use runtime::bus::{Bus, Role};
use runtime::metrics::names;
use tests::harness::{checkpoint, root, vidi};

/// Longest time of anything that a test waits for.
const SOON: Duration = Duration::from_secs(60);

/// Runs a command; what it said on both outputs.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(said)
}

/// A program that deploy/setup.sh test installs.
fn installed(name: &str) -> anyhow::Result<PathBuf> {
    let program = root().join(".vidi/deploy/bin").join(name);
    ensure!(program.is_file(), "{} is not there: run deploy/setup.sh test", program.display());
    Ok(program)
}

/// Process that ends with this.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Names of our metrics in a query.
fn asked_for(query: &str) -> impl Iterator<Item = &str> {
    query
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("vidi_") || word.starts_with("process_"))
}

#[test]
fn kubernetes_and_compose_read_their_files_and_the_queries_in_them_are_of_metrics_that_there_are() -> anyhow::Result<()>
{
    let said = run(Command::new(installed("python")?).arg(root().join("tests/manifests.py")))?;
    let scaling = std::fs::read_to_string(root().join("deploy/kubernetes/base/scaling.yaml"))?;
    let queries = said.lines().filter_map(|line| line.strip_prefix("query: "));
    let queries: Vec<&str> =
        queries.chain(scaling.lines().filter_map(|line| line.trim().strip_prefix("query: "))).collect();
    ensure!(queries.len() > 20, "{said}");
    for query in queries {
        ensure!(asked_for(query).count() > 0, "{query}");
        for name in asked_for(query) {
            // That these are told by a pipeline that runs: tests/seen.rs.
            ensure!(names::is_known(name), "{query}: no metric {name}");
        }
    }
    Ok(())
}

#[test]
fn the_configurations_of_kubernetes_compose_and_systemd_are_valid() -> anyhow::Result<()> {
    for file in ["kubernetes/base/vidi.toml", "compose/vidi.toml", "systemd/vidi.toml"] {
        let file = root().join("deploy").join(file);
        let config = Config::load(Some(&file), [], &[]).map_err(anyhow::Error::msg)?;
        let spool = config.http.spool.with_context(|| format!("{}: no spool", file.display()))?;
        // Or nobody could ask about an upload.
        ensure!(config.decode.media_roots.iter().any(|root| spool.starts_with(root)), "{}: {spool:?}", file.display());
        ensure!(config.bus.user == "{stage}", "{}", file.display());
    }
    Ok(())
}

#[test]
fn the_image_is_built_as_its_linter_would_have_it() -> anyhow::Result<()> {
    run(Command::new(installed("hadolint")?).arg(root().join("deploy/docker/Dockerfile")))?;
    Ok(())
}

/// Directory with the units, whose command is the one that was built.
fn units(dir: &Path) -> anyhow::Result<()> {
    run(Command::new("cp").arg("-r").arg(root().join("deploy/systemd/.")).arg(dir))?;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "service") {
            let text = std::fs::read_to_string(&path)?;
            let here = text
                .replace("/usr/local/bin/vidi", &vidi()?.display().to_string())
                .replace("/usr/sbin/nats-server", "/bin/true");
            std::fs::write(&path, here)?;
        }
    }
    Ok(())
}

const UNITS: [&str; 8] = [
    "vidi.target",
    "vidi-broker.service",
    "vidi-gateway.service",
    "vidi-stage@decode.service",
    "vidi-stage@vision.service",
    "vidi-stage@audio.service",
    "vidi-stage@fuse.service",
    "vidi-stage@llm.service",
];
/// Largest exposure that `systemd-analyze security` may find, in tenths: of the decoder, and of the others.
const EXPOSURE: (u32, u32) = (13, 17);

#[test]
fn systemd_reads_the_units_and_finds_them_shut() -> anyhow::Result<()> {
    let analyze = || {
        let mut command = Command::new("systemd-analyze");
        command.env("SYSTEMD_COLORS", "0");
        command
    };
    analyze().arg("--version").output().context("systemd-analyze is not there: run deploy/setup.sh test")?;
    let dir = tempfile::tempdir()?;
    units(dir.path())?;
    let path = |unit: &str| dir.path().join(unit);
    // The empty end stands for the system's own units.
    let search = format!("{}:", dir.path().display());
    let verified =
        analyze().env("SYSTEMD_UNIT_PATH", &search).args(["verify", "--man=no"]).args(UNITS.map(path)).output()?;
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    let about_us: Vec<&str> = said.lines().filter(|line| line.contains("vidi")).collect();
    ensure!(verified.status.success() && about_us.is_empty(), "{said}");
    for unit in UNITS.iter().filter(|unit| unit.ends_with(".service")) {
        let most = if unit.contains("decode") { EXPOSURE.0 } else { EXPOSURE.1 };
        let mut command = analyze();
        command.env("SYSTEMD_UNIT_PATH", &search).args(["security", "--offline=true", "--no-pager"]);
        run(command.arg(format!("--threshold={most}")).arg(path(unit)))?;
    }
    Ok(())
}

/// A service manager's socket, and what comes in there.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(path: &Path) -> anyhow::Result<Self> {
        let socket = UnixDatagram::bind(path)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(Manager(socket))
    }

    /// Next word; none when nothing comes for two seconds.
    fn next(&self) -> anyhow::Result<Option<String>> {
        let mut buffer = [0; 512];
        match self.0.recv(&mut buffer) {
            Ok(bytes) => Ok(Some(String::from_utf8(buffer[..bytes].to_vec())?)),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for a word that begins so; the others that came before it.
    fn until(&self, begin: &str) -> anyhow::Result<Vec<String>> {
        let (since, mut before) = (Instant::now(), Vec::new());
        loop {
            match self.next()? {
                Some(word) if word.starts_with(begin) => return Ok(before),
                Some(word) => before.push(word),
                None => ensure!(since.elapsed() < SOON, "no {begin} but {before:?}"),
            }
        }
    }
}

fn signal(child: &Child, signal: &str) -> anyhow::Result<()> {
    run(Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()))?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_tells_systemd_and_a_file_that_it_is_ready_that_it_is_alive_and_that_it_leaves() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Broker::start(&dir.path().join("broker"), &broker::Options::default()).await?;
    let config = config::BusConfig { url: broker.url().into(), ..config::BusConfig::default() };
    let manager = Manager::listen(&dir.path().join("notify"))?;
    let alive = dir.path().join("alive");
    std::fs::write(&alive, "of an earlier process")?;
    let mut command = Command::new(vidi()?);
    command.args(["--set", &format!("bus.url={}", broker.url()), "stage", "fuse", "--alive"]).arg(&alive);
    command.args(["--set", &format!("model.dir={}", checkpoint("tied").display())]);
    command.env("NOTIFY_SOCKET", dir.path().join("notify")).env("WATCHDOG_USEC", "1500000");
    let mut stage = Ended(command.stdin(Stdio::null()).spawn()?);
    // There is nothing for it to do: its queue is not there.
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(manager.next()?.is_none(), "it is ready before its queue is there");
    ensure!(!alive.exists(), "the file of an earlier process is still there");
    Bus::connect(&config, Role::Operator, SOON).await?.ensure_streams().await?;
    manager.until("READY=1\nSTATUS=stage-fuse, instance fuse-")?;
    ensure!(alive.exists(), "ready, and no file");
    for _ in 0..3 {
        ensure!(manager.until("WATCHDOG=1")?.is_empty(), "another word");
    }
    // A process that stands still says nothing: systemd would end it.
    signal(&stage.0, "STOP")?;
    while manager.next()?.is_some() {}
    signal(&stage.0, "CONT")?;
    manager.until("WATCHDOG=1")?;
    signal(&stage.0, "TERM")?;
    manager.until("STOPPING=1")?;
    let ended = stage.0.wait()?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn vidi_up_tells_systemd_once_that_all_is_ready_and_its_stages_tell_nothing() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let manager = Manager::listen(&dir.path().join("notify"))?;
    let mut command = Command::new(vidi()?);
    command.env("VIDI_STATE", dir.path().join("state")).env("NOTIFY_SOCKET", dir.path().join("notify"));
    command.args(["up", "--model"]).arg(checkpoint("tied")).current_dir(dir.path());
    let mut up = Ended(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
    ensure!(manager.until("READY=1\nSTATUS=broker and stages")?.is_empty(), "a stage told too");
    signal(&up.0, "TERM")?;
    ensure!(manager.until("STOPPING=1")?.is_empty(), "a stage told too");
    let ended = up.0.wait()?;
    ensure!(ended.success() && manager.next()?.is_none(), "{ended}");
    Ok(())
}

/// A command in the sandbox of stage-decode, as far as that can be made without systemd.
fn sandboxed(media: &Path, writable: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(installed("python")?);
    command.arg(root().join("tests/sandbox.py")).arg(media).arg(writable);
    Ok(command)
}

/// Whether this system lets bubblewrap make the namespaces of a sandbox.
fn has_namespaces() -> anyhow::Result<bool> {
    let mut command = Command::new("bwrap");
    command.args(["--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "--proc", "/proc", "true"]);
    Ok(command.output().context("bwrap is not there: run deploy/setup.sh test")?.status.success())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_decoder_decodes_in_its_sandbox_in_which_nothing_else_can_be_read_or_written() -> anyhow::Result<()> {
    if !has_namespaces()? {
        eprintln!("skipped: this system gives bubblewrap no namespaces");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let place = |name: &str| -> anyhow::Result<PathBuf> {
        let path = dir.path().join(name);
        std::fs::create_dir(&path)?;
        run(Command::new("chmod").arg("777").arg(&path))?;
        Ok(path)
    };
    run(Command::new("chmod").arg("755").arg(dir.path()))?;
    let (media, writable, outside) = (place("media")?, place("run")?, place("outside")?);
    std::fs::write(outside.join("secret"), "nobody's")?;
    for attempt in [
        format!("cat {}/secret", outside.display()),
        format!("touch {}/new", media.display()),
        "touch /usr/new".to_owned(),
        format!("touch {0}/own && chown 10002 {0}/own", writable.display()),
        "python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'".to_owned(),
    ] {
        let tried = sandboxed(&media, &writable)?.args(["/bin/sh", "-c", &attempt]).output()?;
        ensure!(!tried.status.success(), "{attempt}: {tried:?}");
    }
    let works = format!("touch {}/own && ls {}", writable.display(), media.display());
    run(sandboxed(&media, &writable)?.args(["/bin/sh", "-c", &works]))?;

    for (name, codecs) in [
        ("h264.mp4", "-c:v libx264 -c:a aac"),
        ("h265.mkv", "-c:v libx265 -x265-params log-level=none -c:a libmp3lame"),
        ("vp9.webm", "-c:v libvpx-vp9 -c:a libopus"),
        ("mpeg4.avi", "-c:v mpeg4 -c:a libmp3lame"),
    ] {
        let args = format!("-f lavfi -i testsrc=s=320x240:d=4 -f lavfi -i sine=d=4 {codecs}");
        tests::media::ffmpeg(&args, &media.join(name))?;
    }
    let broker = Broker::start(&dir.path().join("broker"), &broker::Options::default()).await?;
    let mut settings = vec![format!("bus.url={}", broker.url()), format!("model.dir={}", checkpoint("tied").display())];
    settings.push(format!("decode.media_roots=[{media:?}]"));
    let set: Vec<&str> = settings.iter().flat_map(|one| ["--set", one]).collect();
    let mut stages = Vec::new();
    for stage in ["decode", "vision", "audio", "fuse", "llm"] {
        let mut command = if stage == "decode" { sandboxed(&media, &writable)? } else { Command::new("env") };
        command.arg(vidi()?).args(&set).args(["stage", stage, "--alive"]).arg(writable.join(stage));
        stages.push(Ended(command.env("XDG_CACHE_HOME", &writable).stdin(Stdio::null()).spawn()?));
    }
    let since = Instant::now();
    while !["decode", "vision", "audio", "fuse", "llm"].iter().all(|stage| writable.join(stage).exists()) {
        ensure!(since.elapsed() < SOON, "not ready: {:?}", std::fs::read_dir(&writable)?.collect::<Vec<_>>());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for file in std::fs::read_dir(&media)? {
        let path = file?.path();
        let mut ask = Command::new(vidi()?);
        ask.args(&set).arg("ask").arg(&path).args(["a dog", "--max-new-tokens", "4", "--json"]);
        let answer: serde_json::Value = serde_json::from_str(run(&mut ask)?.lines().next().context("no answer")?)?;
        let plan = &answer["plan"];
        ensure!(plan["image"].is_object() && plan["audio"].is_object(), "{}: {answer}", path.display());
        ensure!(plan["image"]["replaced"].as_array().is_none_or(Vec::is_empty), "{}: {answer}", path.display());
    }
    Ok(())
}
