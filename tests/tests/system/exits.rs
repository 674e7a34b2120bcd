//! How the `vidi` command ends: a status and a word for each kind of end, and what it shows of random weights.

mod names;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use deploy::client::{self, Events};
use protocol::event::Event;
use protocol::message::{JobId, JobRequest};
use runtime::bus::Role;
use runtime::process::Exit;
use tests::faults::look::followed;
use tests::harness::{Rig, Setup, root, signal, terminal, vidi};
use tests::media::video;
use tests::own::Place;

/// A command that starts nothing is done within this time.
const SOON: Duration = Duration::from_secs(60);
/// More tokens than a job of these tests can generate before it is ended.
const ENDLESS: &str = "8192";

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn expect(output: &Output, exit: Exit, says: &str) -> anyhow::Result<()> {
    ensure!(output.status.code() == Some(exit as i32), "{exit:?}: {}: {}", output.status, said(output));
    ensure!(said(output).contains(says), "{exit:?}: {}", said(output));
    Ok(())
}

fn run(args: &[&str]) -> anyhow::Result<Output> {
    let state = tempfile::tempdir()?;
    Ok(Command::new(vidi()?).env("VIDI_STATE", state.path()).args(args).stdin(Stdio::null()).output()?)
}

#[test]
fn the_readme_lists_every_exit_status_once_and_as_the_code_means_it() -> anyhow::Result<()> {
    let readme = std::fs::read_to_string(root().join("README.md"))?;
    ensure!(readme.contains("| 0 | done |"));
    for exit in Exit::ALL {
        let row = format!("| {} | {} |", exit as i32, exit.meaning());
        ensure!(readme.matches(&row).count() == 1, "README.md has no row, or several: {row}");
    }
    Ok(())
}

#[test]
fn what_does_not_fit_is_no_failed_job_and_no_wrong_command_line() -> anyhow::Result<()> {
    let small = ["--set", "compute.card_bytes=1000"];
    let fits = run(&["plan", "--weights", "random:tiny", "--video-seconds", "10"])?;
    ensure!(fits.status.success(), "{}", said(&fits));
    let plan = run(&[&["plan", "--weights", "random:tiny", "--video-seconds", "10"][..], &small].concat())?;
    expect(&plan, Exit::DoesNotFit, "not every video fits")?;
    let up = run(&[&["up", "--weights", "random:tiny"][..], &small].concat())?;
    expect(&up, Exit::DoesNotFit, "do not fit")?;
    expect(&run(&["plan", "--video-seconds", "long"])?, Exit::Usage, "long")?;
    expect(&run(&["status", "--set", "bus.url=nats://127.0.0.1:9"])?, Exit::Broker, "127.0.0.1:9")
}

/// A pipeline of random weights, asked by real `vidi ask` processes.
struct Asked {
    rig: Rig,
    clip: String,
}

impl Asked {
    async fn new(set: &[&str]) -> anyhow::Result<Self> {
        let set = ["model.weights=random:tiny"].iter().chain(set).map(|&s| s.to_owned()).collect();
        let rig = Rig::start(Setup { model: None, set, ..Setup::default() }).await?;
        let clip = rig.media().join("clip.mp4");
        video(&clip, 20)?;
        Ok(Asked { clip: clip.to_string_lossy().into_owned(), rig })
    }

    fn ask(&self, args: &[&str]) -> anyhow::Result<Output> {
        self.rig.run(&[&["ask", &self.clip, "a dog", "--quiet"][..], args].concat())
    }

    /// Starts `vidi ask` for an answer without end, and waits until the answer grows.
    async fn endless(&self, job: &str) -> anyhow::Result<Child> {
        let url = format!("bus.url={}", self.rig.broker.url());
        let asking = Command::new(vidi()?)
            .args(["ask", &self.clip, "a dog", "--json", "--job", job, "--max-new-tokens", ENDLESS, "--set", &url])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut events = Events::new(&self.rig.bus, &JobId::new(job)?);
        let grows = async {
            while !matches!(events.next().await?.event, Event::Text { .. }) {}
            anyhow::Ok(())
        };
        tokio::time::timeout(SOON, grows).await.with_context(|| self.rig.log())??;
        Ok(asking)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn vidi_ask_says_who_or_what_ended_its_job() -> anyhow::Result<()> {
    let asked = Asked::new(&[]).await?;
    let by = |output: &Output| -> anyhow::Result<String> {
        let object: serde_json::Value = serde_json::from_slice(&output.stdout).with_context(|| said(output))?;
        ensure!(object["error"].is_null() && !object["job"].is_null(), "{object}");
        Ok(object["cancelled"]["by"].as_str().with_context(|| object.to_string())?.to_owned())
    };

    let asking = asked.endless("elsewhere").await?;
    ensure!(asked.rig.run(&["cancel", "elsewhere"])?.status.success());
    let output = asking.wait_with_output()?;
    expect(&output, Exit::Cancelled, "cancelled: by a client")?;
    ensure!(by(&output)? == "client" && !said(&output).contains("deadline"), "{}", said(&output));

    let asking = asked.endless("interrupted").await?;
    signal(asking.id(), "INT")?;
    let output = asking.wait_with_output()?;
    expect(&output, Exit::Cancelled, "cancelled: by a client")?;
    ensure!(by(&output)? == "client", "{}", said(&output));

    let output = asked.ask(&["--json", "--max-new-tokens", ENDLESS, "--deadline", "0.5"])?;
    expect(&output, Exit::Deadline, "deadline: 0.5 s")?;
    ensure!(by(&output)? == "deadline", "{}", said(&output));

    let missing = asked.rig.media().join("missing.mp4");
    let output = asked.rig.run(&["ask", &missing.to_string_lossy(), "a dog", "--json"])?;
    expect(&output, Exit::JobFailed, "media_not_found")?;
    let object: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(object["error"]["kind"] == "media_not_found" && object["cancelled"].is_null(), "{object}");

    // What random weights generate is shown as that: on one line, with its length, and as no answer.
    let output = asked.ask(&["--max-new-tokens", "24"])?;
    let shown = String::from_utf8(output.stdout.clone())?;
    ensure!(output.status.success(), "{}", said(&output));
    ensure!(shown.lines().count() == 1 && shown.contains(" tokens of random:tiny, which is no answer: \""), "{shown}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_can_never_fit_ends_as_that() -> anyhow::Result<()> {
    // The tokens of 20 s of video are more.
    let asked = Asked::new(&["bus.token_bytes=400000"]).await?;
    expect(&asked.ask(&[])?, Exit::DoesNotFit, "does_not_fit")
}

/// Outputs that cannot be written: a full disk, and a pipe that nobody reads any more.
fn unwritable() -> anyhow::Result<[(&'static str, Stdio); 2]> {
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    Ok([("full", std::fs::File::options().write(true).open("/dev/full")?.into()), ("closed", writer.into())])
}

/// Checks that a command whose standard output cannot be written ended with this status and one sentence about it.
fn told(output: &Output, exit: Exit) -> anyhow::Result<()> {
    expect(output, exit, "standard output cannot be written")?;
    let said = said(output);
    let errors = said.lines().filter(|line| line.starts_with("error: ")).count();
    ensure!(errors == 1 && !said.contains("panicked") && !said.contains("backtrace"), "{said}");
    Ok(())
}

#[test]
fn a_standard_output_that_cannot_be_written_is_a_status_and_a_sentence() -> anyhow::Result<()> {
    let model = tests::harness::checkpoint("tied").display().to_string();
    let recording = root().join("tests/golden/recordings").display().to_string();
    let recording = tests::own::file_of(Path::new(&recording), "").context("no recording")?.display().to_string();
    let dir = tempfile::tempdir()?;
    let demo = dir.path().join("demo").display().to_string();
    let commands: [&[&str]; 9] = [
        &["config", "print"],
        &["inspect", &model],
        &["inspect", &model, "--all", "--json"],
        &["plan", "--weights", "random:tiny", "--video-seconds", "10"],
        &["demo-model", &demo],
        &["recording", "show", &recording],
        &["recording", "show", &recording, "--messages"],
        &["--help"],
        &["--version"],
    ];
    for args in commands {
        ensure!(run(args)?.status.success(), "{args:?}");
        for (how, stdout) in unwritable()? {
            let mut command = Command::new(vidi()?);
            let output = command.args(args).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn()?;
            told(&output.wait_with_output()?, Exit::Other).with_context(|| format!("{args:?}, {how}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_standard_error_that_cannot_be_written_changes_no_status() -> anyhow::Result<()> {
    let commands: [(&[&str], Exit); 3] = [
        (&["config", "nonsense"], Exit::Usage),
        (&["status", "--set", "bus.url=nats://127.0.0.1:9"], Exit::Broker),
        (&["plan", "--weights", "random:tiny", "--set", "compute.card_bytes=1000"], Exit::DoesNotFit),
    ];
    for (args, exit) in commands {
        for (how, stderr) in unwritable()? {
            let mut command = Command::new(vidi()?);
            let status = command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).status()?;
            ensure!(status.code() == Some(exit as i32), "{args:?}, {how}: {status}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn vidi_ask_says_that_its_answer_could_not_be_written() -> anyhow::Result<()> {
    let asked = Asked::new(&[]).await?;
    let missing = asked.rig.media().join("missing.mp4").display().to_string();
    let ask = |video: &str, args: &[&str], stdout: Stdio| -> anyhow::Result<Output> {
        let url = format!("bus.url={}", asked.rig.broker.url());
        let mut command = Command::new(vidi()?);
        command.args(["ask", video, "a dog", "--max-new-tokens", "8", "--set", &url]).args(args);
        Ok(command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn()?.wait_with_output()?)
    };
    for args in [&[][..], &["--json"]] {
        for (how, stdout) in unwritable()? {
            told(&ask(&asked.clip, args, stdout)?, Exit::Other).with_context(|| format!("{args:?}, {how}"))?;
        }
    }
    // How the job ended is the status; that it could not be told is said beside it.
    for (how, stdout) in unwritable()? {
        let output = ask(&missing, &["--json"], stdout)?;
        told(&output, Exit::JobFailed).with_context(|| how.to_owned())?;
        ensure!(said(&output).contains("media_not_found"), "{}", said(&output));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_whose_log_cannot_be_written_serves_and_restarts_its_stages() -> anyhow::Result<()> {
    for (how, stderr) in unwritable()? {
        let place = Place::new(None)?;
        let clip = place.media().join("clip.mp4");
        video(&clip, 2)?;
        let mut up = place.up_with("up", &[], Some(stderr))?;
        let bus = up.ready(Role::Client).await.with_context(|| how.to_owned())?;
        let mut request = JobRequest::new(JobId::new("before")?, clip.to_string_lossy(), "a dog");
        request.max_new_tokens = 8;
        for job in ["before", "after"] {
            request.job = JobId::new(job)?;
            client::submit(&bus, &request).await?;
            let events = followed(&bus, &request.job).await?;
            ensure!(matches!(terminal(&events)?, Event::Result(_)), "{how}: {events:?}");
            // The supervisor has something to log about each of them, and so has the next process.
            for stage in place.processes(Place::STAGE) {
                signal(stage, "KILL")?;
            }
        }
        up.stop()?;
    }
    Ok(())
}

/// deploy/demo.sh in a tree where everything that it starts is a script that writes down its arguments.
#[test]
fn the_demo_takes_the_model_that_answers_truly_unless_another_is_given() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let script = |path: &str, text: &str| -> anyhow::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().context("a directory")?)?;
        std::fs::write(&path, text)?;
        Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
    };
    script("deploy/demo.sh", &std::fs::read_to_string(root().join("deploy/demo.sh"))?)?;
    script("deploy/setup.sh", "#!/bin/sh\n")?;
    script("bin/cargo", "#!/bin/sh\n")?;
    script("target/release/vidi", "#!/bin/sh\nfor word in \"$@\"; do echo \"$word\"; done\n")?;
    let path = format!("{}:{}", dir.path().join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let demo = |args: &[&str]| -> anyhow::Result<Vec<String>> {
        let output = Command::new(dir.path().join("deploy/demo.sh"))
            .args(args)
            .env("PATH", &path)
            .env("HOME", dir.path())
            .env_remove("VIDI_MODEL")
            .output()?;
        ensure!(output.status.success(), "{}", said(&output));
        Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
    };
    let video = Path::new("/videos/x.mp4").to_string_lossy().into_owned();
    let trained = ["ask", &video, "a dog", "--model", "demo"];
    ensure!(demo(&[&video, "a dog"])? == trained, "{:?}", demo(&[&video, "a dog"]));
    let real = ["ask", &video, "a dog", "--model", "/models/vidi"];
    ensure!(demo(&[&video, "a dog", "/models/vidi"])? == real);
    Ok(())
}
