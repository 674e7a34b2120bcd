//! Media that one host has and another does not: several stage-decode with media roots of their own on one broker.

#[expect(dead_code, reason = "the tests of stage-decode hold other reads as well")]
#[path = "../../stage-decode/tests/slow/share.rs"]
mod share;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use deploy::client;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::event::{Event, JobResult};
use protocol::message::{JobId, JobRequest};
use runtime::run::service::Status;
use share::{Hold, hold};
use tests::harness::{Rig, Setup, signal, terminal, vidi};
use tests::media::{ffmpeg, video};

/// Longest time of anything that a test waits for.
const SOON: Duration = Duration::from_secs(90);
/// Time between two reads of a file that is to be decoded for long.
const READ: Duration = Duration::from_millis(100);

/// Another stage-decode of a rig's pipeline, with a media root of its own, in which it runs.
struct Host {
    root: PathBuf,
    set: Vec<String>,
    child: Child,
}

impl Host {
    /// Starts one, and waits until the pipeline has `all` stage-decode.
    async fn start(rig: &Rig, name: &str, all: usize, set: &[&str]) -> anyhow::Result<Self> {
        let root = rig.dir.path().canonicalize()?.join(name);
        std::fs::create_dir_all(&root)?;
        let roots = format!("decode.media_roots=[{root:?}]");
        let own = [format!("bus.url={}", rig.broker.url()), roots];
        let set: Vec<String> = own.into_iter().chain(set.iter().map(|&set| set.to_owned())).collect();
        let child = Host::process(&root, &set)?;
        let host = Host { root, set, child };
        decoding(rig, all).await?;
        Ok(host)
    }

    fn process(root: &Path, set: &[String]) -> anyhow::Result<Child> {
        let log = std::fs::File::options().create(true).append(true).open(root.with_extension("log"))?;
        let child = Command::new(vidi()?)
            .args(set.iter().flat_map(|set| ["--set", set]))
            .args(["stage", "decode"])
            .current_dir(root)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(child)
    }

    /// Starts it again.
    fn restart(&mut self) -> anyhow::Result<()> {
        self.child = Host::process(&self.root, &self.set)?;
        Ok(())
    }

    fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.root.with_extension("log")).unwrap_or_default()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SIGTERM drains it; its exit status does not matter.
        let _ = signal(self.child.id(), "TERM");
        let _ = self.child.wait();
    }
}

/// Waits until so many stage-decode are there; how they are.
async fn decoding(rig: &Rig, all: usize) -> anyhow::Result<Vec<Status>> {
    let since = Instant::now();
    loop {
        let seen = client::status(&rig.bus, StageName::Decode).await?;
        if seen.len() == all {
            return Ok(seen);
        }
        ensure!(since.elapsed() < SOON, "{} of {all} stage-decode are there; {}", seen.len(), rig.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Stages hear soon of what a killed worker had.
const SOON_AGAIN: &str = "bus.ack_wait_s=2";

async fn rig(set: &[&str]) -> anyhow::Result<Rig> {
    let set = set.iter().map(|&set| set.to_owned()).collect();
    Rig::start(Setup { set, ..Setup::default() }).await
}

fn ask(job: &str, video: &str) -> anyhow::Result<JobRequest> {
    Ok(JobRequest { max_new_tokens: 6, ..JobRequest::new(JobId::new(job)?, video, "a dog") })
}

async fn result(rig: &Rig, job: &str, video: &str) -> anyhow::Result<JobResult> {
    let events = rig.answer(&ask(job, video)?).await?;
    match terminal(&events)? {
        Event::Result(result) => Ok((**result).clone()),
        other => bail!("{job}: {other:?}; {}", rig.log()),
    }
}

async fn failure(rig: &Rig, job: &str, video: &str) -> anyhow::Result<JobError> {
    let events = rig.answer(&ask(job, video)?).await?;
    match terminal(&events)? {
        Event::Failed { error } => Ok(error.clone()),
        other => bail!("{job}: {other:?}; {}", rig.log()),
    }
}

/// Waits until a job's video is planned, so that it is being decoded, or about to be.
async fn planned(rig: &Rig, request: &JobRequest) -> anyhow::Result<()> {
    client::submit(&rig.bus, request).await?;
    let mut events = client::Events::new(&rig.bus, &request.job);
    let until_planned = async {
        loop {
            match events.next().await?.event {
                Event::Planned { .. } => return Ok(()),
                event if event.is_terminal() => bail!("{event:?}"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(SOON, until_planned).await.context("not planned")?
}

#[tokio::test(flavor = "multi_thread")]
async fn each_file_is_decoded_by_the_instance_that_has_it() -> anyhow::Result<()> {
    let rig = rig(&[]).await?;
    let here = rig.media().canonicalize()?.join("here.mp4");
    video(&here, 4)?;
    let expected = result(&rig, "alone", &here.to_string_lossy()).await?.token_ids;
    let host = Host::start(&rig, "elsewhere", 2, &[]).await?;
    let there = host.root.join("there.mp4");
    std::fs::copy(&here, &there)?;
    let jobs = (0..14).map(|n| (format!("mixed-{n}"), if n % 2 == 0 { &here } else { &there }));
    let answers = jobs.map(async |(job, file)| {
        let answer = result(&rig, &job, &file.to_string_lossy()).await?;
        ensure!(answer.token_ids == expected, "{job}: another answer; {}", host.log());
        anyhow::Ok(())
    });
    futures::future::try_join_all(answers).await?;
    let seen = decoding(&rig, 2).await?;
    // Handed over, none was given back to come again, and none failed.
    ensure!(seen.iter().all(|s| s.processed >= 7 && s.redelivered == 0 && s.failed == 0), "{seen:?}; {}", host.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_nobody_has_is_not_found_and_the_error_says_who_was_asked() -> anyhow::Result<()> {
    let rig = rig(&[]).await?;
    let host = Host::start(&rig, "elsewhere", 2, &[]).await?;
    let missing = host.root.join("missing.mp4");
    let secret = rig.dir.path().canonicalize()?.join("secret.mp4");
    video(&secret, 1)?;
    // Which of them is asked first is chance.
    for n in 0..6 {
        let began = Instant::now();
        let error = failure(&rig, &format!("missing-{n}"), &missing.to_string_lossy()).await?;
        ensure!(error.kind == ErrorKind::MediaNotFound && error.stage == Some(StageName::Decode), "{error:?}");
        ensure!(began.elapsed() < SOON, "{:?}", began.elapsed());
        let media = rig.media().canonicalize()?;
        for root in [&media, &host.root] {
            ensure!(error.message.contains(&root.display().to_string()), "no {root:?} in {error}");
        }
        ensure!(error.details["asked"].as_array().map(Vec::len) == Some(2), "{error:?}");
        // Outside of everyone's roots nobody says whether there is a file.
        let mut told = Vec::new();
        for (name, path) in [("secret", &secret), ("nothing", &secret.with_file_name("nothing.mp4"))] {
            let error = failure(&rig, &format!("{name}-{n}"), &path.to_string_lossy()).await?;
            ensure!(error.kind == ErrorKind::ForbiddenPath, "{error:?}");
            told.push(error.message.replace(&path.display().to_string(), ""));
        }
        let sorted = |text: &str| {
            let mut words: Vec<String> = text.split([' ', ';', '.']).map(str::to_owned).collect();
            words.sort();
            words
        };
        ensure!(sorted(&told[0]) == sorted(&told[1]), "{told:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_file_went_with_its_host_is_answered_once_that_is_back() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    // Before the pipeline starts: its processes inherit what holds up reads.
    hold(&dir.path().join("nothing"), Hold::Each(READ));
    let rig = rig(&[SOON_AGAIN]).await?;
    let mut host = Host::start(&rig, "elsewhere", 2, &[SOON_AGAIN]).await?;
    let file = host.root.join("long.mp4");
    ffmpeg("-f lavfi -i testsrc2=s=320x180:r=25:d=40 -c:v libx264 -preset ultrafast -pix_fmt yuv420p", &file)?;
    hold(&file, Hold::Each(READ));
    let request = ask("outlived", &file.to_string_lossy())?;
    planned(&rig, &request).await?;
    host.kill()?;
    // Delivered again meanwhile to the one that does not have the file.
    tokio::time::sleep(Duration::from_secs(5)).await;
    ensure!(client::status(&rig.bus, StageName::Decode).await?.len() == 1, "it is not gone");
    hold(&file, Hold::Each(Duration::ZERO));
    host.restart()?;
    let events = rig.events(&request.job).await?;
    ensure!(matches!(terminal(&events)?, Event::Result(_)), "{events:?}; {}; {}", rig.log(), host.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_names_another_file_on_each_host_is_answered_about_the_one_that_was_planned_or_refused_by_name()
-> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    hold(&dir.path().join("nothing"), Hold::Each(READ));
    let patience = ["bus.worker_patience_s=8", SOON_AGAIN];
    let rig = rig(&patience).await?;
    // What this path leads to is each process's own affair.
    let path = "/proc/self/cwd/clip.mp4";
    let mut short = Host::start(&rig, "short", 2, &patience).await?;
    video(&short.root.join("clip.mp4"), 3)?;
    let expected = result(&rig, "short", path).await?;
    let long = Host::start(&rig, "long", 3, &patience).await?;
    let slow = long.root.join("clip.mp4");
    ffmpeg("-f lavfi -i testsrc2=s=320x180:r=25:d=40 -c:v libx264 -preset ultrafast -pix_fmt yuv420p", &slow)?;

    for n in 0..8 {
        let answer = result(&rig, &format!("either-{n}"), path).await?;
        let frames = answer.plan.image.as_ref().map_or(0, |image| image.frames);
        match answer.plan.content_id == expected.plan.content_id {
            true => ensure!(answer.token_ids == expected.token_ids, "mixed: {answer:?}"),
            false => ensure!(frames == 40, "mixed: {answer:?}"),
        }
    }

    // Planned from the word of one that is gone, when only the other one is left.
    drop(long);
    decoding(&rig, 2).await?;
    short.kill()?;
    let mut long = Host::start(&rig, "long", 2, &patience).await?;
    hold(&slow, Hold::Each(READ));
    let request = ask("gone", path)?;
    planned(&rig, &request).await?;
    long.kill()?;
    short.restart()?;
    let events = rig.events(&request.job).await?;
    let Event::Failed { error } = terminal(&events)? else { bail!("{events:?}") };
    ensure!(error.kind == ErrorKind::MediaNotFound, "{error:?}");
    for word in [expected.plan.content_id.as_str(), "another one has its path"] {
        ensure!(error.message.contains(word), "no {word:?} in {error}; {}", short.log());
    }
    Ok(())
}
