//! The Python client: its wheel is built, and its tests run with what is in that, against one pipeline with the demo model.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use tests::harness::{Rig, Setup, root, vidi};

/// Length of the video, seconds.
const SECONDS: u32 = 8;

/// Python with the packages of the client's tests.
fn python() -> anyhow::Result<PathBuf> {
    let python = root().join(".vidi/clients/bin/python");
    ensure!(python.is_file(), "{} is not there: run deploy/setup.sh test", python.display());
    Ok(python)
}

/// Runs Python; its standard output.
fn run(args: &[&str], dir: &Path, env: &[(&str, &str)]) -> anyhow::Result<String> {
    let mut command = Command::new(python()?);
    command.args(args).current_dir(dir).envs(env.iter().copied()).stdin(Stdio::null());
    let output = command.env("PYTHONDONTWRITEBYTECODE", "1").output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "python {args:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

/// Names of the files of the package in a directory.
fn files(dir: &Path) -> anyhow::Result<BTreeSet<String>> {
    let there = std::fs::read_dir(dir.join("vidi_client")).with_context(|| dir.display().to_string())?;
    let names = there.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: Result<BTreeSet<String>, std::io::Error> = names.collect();
    Ok(names?.into_iter().filter(|name| name != "__pycache__").collect())
}

/// Builds the wheel and installs it, both without a network; the directory that it is installed in.
fn installed(dir: &Path) -> anyhow::Result<PathBuf> {
    let source = root().join("deploy/python");
    let (wheels, target) = (dir.join("wheels"), dir.join("installed"));
    let pip = ["-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir"];
    let [from, to, into] = [&source, &wheels, &target].map(|path| path.to_string_lossy());
    let offline = ["--no-deps", "--no-index"];
    let build = [&pip[..], &["wheel"], &offline, &["--no-build-isolation", "--wheel-dir", &to, &from]].concat();
    run(&build, dir, &[])?;
    let made = std::fs::read_dir(&wheels)?.collect::<Result<Vec<_>, _>>()?;
    let [wheel] = &made[..] else { anyhow::bail!("not one wheel: {made:?}") };
    let wheel = wheel.path();
    run(&[&pip[..], &["install"], &offline, &["--target", &into, &wheel.to_string_lossy()]].concat(), dir, &[])?;
    let (there, due) = (files(&target)?, files(&source)?);
    ensure!(there == due && there.contains("py.typed"), "the wheel has {there:?} and not {due:?}");
    Ok(target)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_in_its_wheel_passes_its_tests_against_a_pipeline() -> anyhow::Result<()> {
    let set = vec!["http.address=127.0.0.1:0".to_owned()];
    let rig = Rig::start(Setup { model: Some("demo".into()), keep_video: true, set, ..Setup::default() }).await?;
    let installed = installed(rig.dir.path())?;
    rig.demo_video(1, SECONDS)?;
    let log = rig.log();
    let url = log.lines().find_map(|line| line.strip_prefix("gateway: ")).context("no gateway in the log")?;
    let (media, command) = (rig.media(), vidi()?);
    let [media, command, installed] = [&media, &command, &installed].map(|path| path.to_string_lossy());
    let env = [
        ("PIPELINE_URL", url),
        ("PIPELINE_NATS", rig.broker.url()),
        ("PIPELINE_MEDIA", &media),
        ("PIPELINE_VIDI", &command),
        ("PYTHONPATH", &installed),
    ];
    let tests = root().join("deploy/python/tests");
    let (tests, temporary) = (tests.to_string_lossy(), rig.dir.path().join("pytest"));
    let args = ["-m", "pytest", "--durations=5", "--basetemp", &temporary.to_string_lossy(), &tests];
    let said = run(&args, rig.dir.path(), &env).with_context(|| rig.log())?;
    println!("{said}");
    // Tests that an older server cannot pass are skipped there; this one is of the same tree.
    ensure!(said.contains(" passed") && !said.contains("SKIPPED"), "{said}");
    Ok(())
}
