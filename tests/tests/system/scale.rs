//! Tests of a pipeline at every size: in one process, in five, with replicas that join and leave; and of its services.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use deploy::client;
use deploy::up::broker::{self, Broker};
use futures::StreamExt;
use protocol::error::StageName;
use protocol::event::Event;
use protocol::message::{JobId, JobRequest};
use runtime::bus::Role;
use runtime::process::Exit;
use runtime::run::service::Status;
use runtime::subject::StreamName;
use tests::disk::Disk;
use tests::harness::{Rig, Setup, brokers, checkpoint, terminal, vidi};
use tests::media::video;
use tests::own::Place;

/// Longest time of anything that a test waits for.
const SOON: Duration = Duration::from_secs(60);

async fn answered(rig: &Rig, job: &str) -> anyhow::Result<Vec<u32>> {
    let clip = rig.media().join("clip.mp4");
    if !clip.is_file() {
        video(&clip, 12)?;
    }
    let request =
        JobRequest { max_new_tokens: 12, ..JobRequest::new(JobId::new(job)?, clip.to_string_lossy(), "a dog") };
    let events = rig.answer(&request).await?;
    match terminal(&events)? {
        Event::Result(result) => Ok(result.token_ids.clone()),
        other => anyhow::bail!("{other:?}; {}", rig.log()),
    }
}

async fn vision_until(rig: &Rig, done: impl Fn(&[Status]) -> bool) -> anyhow::Result<Vec<Status>> {
    let since = Instant::now();
    loop {
        let seen = client::status(&rig.bus, StageName::Vision).await?;
        if done(&seen) {
            return Ok(seen);
        }
        ensure!(since.elapsed() < SOON, "{seen:?}; {}", rig.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_answers_as_five_do() -> anyhow::Result<()> {
    let five = Rig::start(Setup::default()).await?;
    let expected = answered(&five, "five").await?;
    for broker in brokers() {
        let rig = Rig::start(Setup { broker, one_process: true, ..Setup::default() }).await?;
        ensure!(answered(&rig, "one").await? == expected, "another answer in one process");
        for stage in StageName::ALL {
            ensure!(rig.pids(stage).is_empty(), "stage-{stage} has a process of its own");
            ensure!(client::status(&rig.bus, stage).await?.len() == 1, "stage-{stage} is not seen once");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_is_found_by_any_of_several_servers_and_a_wrong_one_is_named() -> anyhow::Result<()> {
    for program in brokers() {
        let place = Place::new(None)?;
        let options = broker::Options { program, ..broker::Options::default() };
        let broker = Broker::start(&place.media().join("broker"), &options).await?;
        let clip = place.media().join("clip.mp4");
        video(&clip, 2)?;
        // Nobody listens on the port of discard; with a space, as people write lists.
        let servers = format!("bus.url=nats://127.0.0.1:9, {}", broker.url());
        let mut up = place.up("up", &["--set", &servers])?;
        up.ready(Role::Client).await?;
        let ask = ["ask", &clip.to_string_lossy(), "a dog", "--max-new-tokens", "8"];
        for set in [&["--set", &servers][..], &[]] {
            let output = place.command(&[&ask[..], set].concat())?.output()?;
            ensure!(output.status.success(), "{set:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        up.stop()?;
        for (servers, word) in [("nats://127.0.0.1:9,nats://here:port", "server 2 of 2"), ("http://x", "server 1 of 1")]
        {
            let output = place.command(&["status", "--set", &format!("bus.url={servers}")])?.output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(
                output.status.code() == Some(Exit::Usage as i32) && said.contains(word),
                "{}: {said}",
                output.status
            );
        }
    }
    Ok(())
}

/// `vidi up` and `vidi ask` with a broker of their own on a disk of 1 GiB, of which the streams as configured would take 7.
#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_fits_its_streams_to_a_small_disk() -> anyhow::Result<()> {
    for broker in brokers() {
        let Some(disk) = Disk::mount(1024)? else { return not_mounted() };
        let place = Place::within(tempfile::tempdir_in(disk.path())?, broker.clone())?;
        let clip = place.media().join("clip.mp4");
        video(&clip, 4)?;
        let ask = ["ask", &clip.to_string_lossy(), "a dog", "--max-new-tokens", "8"];
        let output = place.command(&ask)?.output()?;
        ensure!(output.status.success(), "{broker:?}: {}", String::from_utf8_lossy(&output.stderr));

        // Twice: the second one finds the streams of the first.
        for round in ["first", "second"] {
            let mut up = place.up(round, &[])?;
            let bus = up.ready(Role::Operator).await?;
            let log = up.log();
            let smaller = log.lines().any(|l| l.contains("streams made smaller") && l.contains("instead of 4.00 GiB"));
            ensure!(smaller, "{log}");
            let mut reserved = 0;
            for name in StreamName::ALL {
                reserved += bus.stream(name).await.get_info().await?.config.max_bytes;
            }
            ensure!(reserved > 500 << 20 && reserved < 1 << 30, "{reserved} bytes are reserved");
            let output = place.command(&ask)?.output()?;
            ensure!(output.status.success(), "{broker:?}: {}", String::from_utf8_lossy(&output.stderr));
            up.stop()?;
        }
    }
    Ok(())
}

#[test]
fn a_broker_without_room_is_told_with_directory_bytes_free_and_bytes_needed() -> anyhow::Result<()> {
    let Some(disk) = Disk::mount(100)? else { return not_mounted() };
    let place = Place::within(tempfile::tempdir_in(disk.path())?, None)?;
    let clip = place.media().join("clip.mp4");
    video(&clip, 1)?;
    let media = place.media().display().to_string();
    for args in [&["ask", &clip.to_string_lossy(), "a dog"][..], &["up", "--media-root", &media]] {
        let output = place.command(args)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(Exit::Broker as i32), "{}: {said}", output.status);
        let disk = disk.path().display().to_string();
        for word in [disk.as_str(), "MiB free", "213.3 MiB needed at least", "VIDI_STATE", "TMPDIR"] {
            ensure!(said.contains(word), "no {word:?} in {said}");
        }
    }
    Ok(())
}

/// Said where a disk of a test's own cannot be had; CI has one.
fn not_mounted() -> anyhow::Result<()> {
    ensure!(std::env::var_os("CI").is_none(), "mounting a tmpfs is not permitted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_joins_a_running_pipeline_takes_its_share_and_leaves_when_told() -> anyhow::Result<()> {
    let rig = Rig::start(Setup::default()).await?;
    let expected = answered(&rig, "alone").await?;
    let own = vision_until(&rig, |seen| seen.len() == 1).await?[0].instance.clone();
    let mut joined = tokio::process::Command::new(vidi()?)
        .args(["--set", &format!("bus.url={}", rig.broker.url())])
        .args(["--set", &format!("model.dir={}", checkpoint("tied").display()), "stage", "vision"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let two = vision_until(&rig, |seen| seen.len() == 2).await?;
    let other = two.iter().map(|s| &s.instance).find(|i| **i != own).context("no other instance")?.clone();

    // Twelve frames are several messages; a replica that is free takes the next one.
    for round in 0.. {
        ensure!(round < 10, "the replica took no message in 10 jobs");
        ensure!(answered(&rig, &format!("both-{round}")).await? == expected, "another answer with two");
        let seen = client::status(&rig.bus, StageName::Vision).await?;
        if seen.iter().any(|s| s.instance == other && s.processed > 0) {
            break;
        }
    }
    let drain = format!("{{\"instance\": \"{other}\"}}");
    let reply = rig.operator().await?.client().request("vidi.v1.control.drain", drain.into()).await?;
    let reply: serde_json::Value = serde_json::from_slice(&reply.payload)?;
    ensure!(reply["instance"] == other && reply["stopped"] == true, "{reply}");
    let status = tokio::time::timeout(SOON, joined.wait()).await.context("it does not end")??;
    ensure!(status.success(), "{status}");
    let left = vision_until(&rig, |seen| seen.len() == 1).await?;
    ensure!(left[0].instance == own, "{left:?}");
    ensure!(answered(&rig, "alone-again").await? == expected, "another answer once it had left");
    Ok(())
}

/// The requests are those of `nats micro info` and `nats micro stats`.
#[tokio::test(flavor = "multi_thread")]
async fn every_instance_is_a_service_that_says_what_it_is_and_how_it_fares() -> anyhow::Result<()> {
    for broker in brokers() {
        let rig = Rig::start(Setup { broker, replicas: "vision=2".to_owned(), ..Setup::default() }).await?;
        vision_until(&rig, |seen| seen.len() == 2).await?;
        answered(&rig, "one").await?;
        for stage in StageName::ALL {
            let processes = if stage == StageName::Vision { 2 } else { 1 };
            let infos = ask(&rig, &format!("$SRV.INFO.vidi-{stage}"), processes).await?;
            for info in &infos {
                let about = &info["metadata"];
                ensure!(info["type"] == "io.nats.micro.v1.info_response" && info["version"].is_string(), "{info}");
                ensure!(about["stage"] == stage.as_str() && about["wire"] == "1", "{info}");
                for key in ["instance", "model", "dtype", "budget_bytes", "max_payload"] {
                    ensure!(about[key].is_string(), "no {key} in {info}");
                }
            }
            // A job is counted once its worker has cleared up behind it, a moment after its result is there.
            let since = Instant::now();
            while processed(&ask(&rig, &format!("$SRV.STATS.vidi-{stage}"), processes).await?)? == 0 {
                ensure!(since.elapsed() < SOON, "stage-{stage} has processed no message");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    Ok(())
}

/// Number of messages that all instances have processed, after a check that each reports the figures for operators.
fn processed(stats: &[serde_json::Value]) -> anyhow::Result<u64> {
    let mut processed = 0;
    for stat in stats {
        let data = &stat["endpoints"][0]["data"];
        for key in ["in_flight", "processed", "failed", "redelivered", "queue_depth", "used_bytes", "busy_us"] {
            ensure!(data[key].is_u64(), "no {key} in {stat}");
        }
        processed += data["processed"].as_u64().unwrap_or(0);
    }
    Ok(processed)
}

/// The answers of so many instances to a request.
async fn ask(rig: &Rig, subject: &str, answers: usize) -> anyhow::Result<Vec<serde_json::Value>> {
    let inbox = rig.bus.client().new_inbox();
    let mut replies = rig.bus.client().subscribe(inbox.clone()).await?;
    rig.bus.client().publish_with_reply(subject.to_owned(), inbox, "".into()).await?;
    let mut heard = Vec::new();
    while heard.len() < answers {
        let reply = tokio::time::timeout(SOON, replies.next()).await;
        let reply = reply.with_context(|| format!("{} of {answers} answer {subject}", heard.len()))?;
        heard.push(serde_json::from_slice(&reply.context("no broker")?.payload)?);
    }
    Ok(heard)
}
