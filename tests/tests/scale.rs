//! Tests of a pipeline at every size: in one process, in five, with replicas that join and leave; and of its services.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use deploy::client;
use futures::StreamExt;
use protocol::error::StageName;
use protocol::event::Event;
use protocol::message::{JobId, JobRequest};
use runtime::run::service::Status;
use tests::harness::{Rig, Setup, brokers, checkpoint, terminal, video, vidi};

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
