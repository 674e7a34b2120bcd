//! How the `vidi` command ends: a status and a word for each kind of end, and what it shows of random weights.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use deploy::client::Events;
use protocol::event::Event;
use protocol::message::JobId;
use runtime::process::Exit;
use tests::harness::{Rig, Setup, root, signal, video, vidi};

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

/// deploy/demo.sh in a tree where everything that it starts is a script that writes down its arguments.
#[test]
fn the_demo_asks_for_few_tokens_unless_it_has_a_model_that_answers() -> anyhow::Result<()> {
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
    let random = ["ask", &video, "a dog", "--weights", "random:tiny", "--max-new-tokens", "24"];
    ensure!(demo(&[&video, "a dog"])? == random, "{:?}", demo(&[&video, "a dog"]));
    let real = ["ask", &video, "a dog", "--model", "/models/vidi"];
    ensure!(demo(&[&video, "a dog", "/models/vidi"])? == real);
    Ok(())
}
