//! Tests of unloading: idle stages end, and start again for the next job.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use deploy::client;
use deploy::up::idle::COMPUTING;
use protocol::control::Verb;
use protocol::error::StageName;
use protocol::event::Event;
use protocol::message::{JobId, JobRequest};
use tests::harness::{Rig, Setup, brokers, terminal};
use tests::media::video;

/// Longest time until processes have ended or started.
const SOON: Duration = Duration::from_secs(60);

fn request(job: &str, rig: &Rig) -> anyhow::Result<JobRequest> {
    let clip = rig.media().join("clip.mp4");
    if !clip.is_file() {
        video(&clip, 4)?;
    }
    Ok(JobRequest { max_new_tokens: 8, ..JobRequest::new(JobId::new(job)?, clip.to_string_lossy(), "a dog") })
}

async fn answered(rig: &Rig, job: &str) -> anyhow::Result<Vec<u32>> {
    let events = rig.answer(&request(job, rig)?).await?;
    match terminal(&events)? {
        Event::Result(result) => Ok(result.token_ids.clone()),
        other => anyhow::bail!("{other:?}; {}", rig.log()),
    }
}

fn running(rig: &Rig) -> Vec<StageName> {
    StageName::ALL.into_iter().filter(|&s| !rig.pids(s).is_empty()).collect()
}

async fn wait_for(rig: &Rig, stages: &[StageName]) -> anyhow::Result<()> {
    let since = Instant::now();
    while running(rig) != stages {
        ensure!(since.elapsed() < SOON, "{:?} run, not {stages:?}; {}", running(rig), rig.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn unloaded_stages_have_no_process_and_the_next_job_starts_them_again() -> anyhow::Result<()> {
    for broker in brokers() {
        let rig = Rig::start(Setup { broker, replicas: "vision=2".to_owned(), ..Setup::default() }).await?;
        let before = answered(&rig, "before").await?;

        let reply = client::load(&rig.operator().await?, Verb::Unload, None).await?;
        // What the reply says has happened by then.
        ensure!(running(&rig) == [StageName::Decode], "{:?} run after {reply:?}", running(&rig));
        ensure!(reply.stages.len() == 4 && COMPUTING.iter().all(|s| reply.stages.contains(s)), "{reply:?}");
        ensure!(reply.processes == 5 && reply.error.is_none(), "{reply:?}");
        let nothing = client::load(&rig.operator().await?, Verb::Unload, None).await?;
        ensure!(nothing.stages.is_empty() && nothing.processes == 0, "{nothing:?}");
        // They do not start again without a job.
        tokio::time::sleep(Duration::from_secs(2)).await;
        ensure!(running(&rig) == [StageName::Decode], "{:?} came back by themselves", running(&rig));

        ensure!(answered(&rig, "after").await? == before, "another answer");
        wait_for(&rig, &StageName::ALL).await?;
        ensure!(rig.pids(StageName::Vision).len() == 2, "{:?}", rig.pids(StageName::Vision));

        // One stage alone, by its name, from the command line and in JSON.
        let said = rig.run(&["unload", "vision"])?;
        ensure!(String::from_utf8_lossy(&said.stdout).contains("ended vision (2 processes)"), "{said:?}");
        ensure!(rig.pids(StageName::Vision).is_empty() && !rig.pids(StageName::Llm).is_empty());
        let operator = rig.operator().await?;
        let load = operator.client().request("vidi.v1.control.load", "{\"stage\": \"vision\"}".into()).await?;
        let load: serde_json::Value = serde_json::from_slice(&load.payload)?;
        ensure!(load["stages"] == serde_json::json!(["vision"]) && load["processes"] == 2, "{load}");
        wait_for(&rig, &StageName::ALL).await?;
        ensure!(answered(&rig, "again").await? == before, "another answer");
        let wrong = operator.client().request("vidi.v1.control.unload", "{\"stage\": \"no stage\"}".into()).await?;
        let wrong: serde_json::Value = serde_json::from_slice(&wrong.payload)?;
        ensure!(wrong["error"].is_string() && wrong["processes"] == 0, "{wrong}");
        ensure!(running(&rig) == StageName::ALL, "{:?} run after an invalid request", running(&rig));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_flight_is_answered_before_its_stages_leave() -> anyhow::Result<()> {
    let rig = Rig::start(Setup::default()).await?;
    let job = JobRequest { max_new_tokens: 64, ..request("in-hand", &rig)? };
    client::submit(&rig.bus, &job).await?;
    let mut events = client::Events::new(&rig.bus, &job.job);
    while !matches!(events.next().await?.event, Event::Planned { .. }) {}
    client::load(&rig.operator().await?, Verb::Unload, None).await?;
    let events = rig.events(&job.job).await?;
    ensure!(matches!(terminal(&events)?, Event::Result(_)), "{events:?}");
    let planned = events.iter().filter(|e| matches!(e.event, Event::Planned { .. })).count();
    ensure!(planned == 1, "the job was begun {planned} times");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stages_that_are_idle_for_as_long_as_configured_leave_by_themselves() -> anyhow::Result<()> {
    let set = vec!["up.idle_unload_s=1.5".to_owned()];
    let rig = Rig::start(Setup { set, ..Setup::default() }).await.context("with idle_unload_s")?;
    wait_for(&rig, &[StageName::Decode]).await?;
    answered(&rig, "first").await?;
    wait_for(&rig, &[StageName::Decode]).await?;
    answered(&rig, "second").await?;
    Ok(())
}
