//! Killed and stopped workers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use deploy::client;
use deploy::up::supervisor::RESTARTING;
use protocol::error::{ErrorKind, StageName};
use protocol::event::Event;
use protocol::message::{JobId, JobRequest};
use runtime::subject::StreamName;

use super::load::{self, Load, true_setup};
use super::long_answer::{LongAnswer, SCENE};
use super::look;
use super::{Case, Row, Scale, Seen};
use crate::dice::Dice;
use crate::harness::{Rig, Setup, signal, terminal};

/// SIGKILL of random stages at random instants while many jobs are in flight.
pub async fn any_stage(scale: &Scale) -> Row {
    let expected =
        "every job answered truly, as in an undisturbed run, one terminal event each, nothing left in the streams";
    let case = Case {
        name: "kill -9 of each stage".to_owned(),
        expected,
        bound_s: scale.bound(30.0 + scale.jobs as f64 * 2.5),
    };
    case.run(async {
        let mut setup = Setup { replicas: "llm=2,vision=2".to_owned(), ..true_setup(scale) };
        // Of 100 jobs one may well lose its owner five times, by chance. The limit has cases of its own.
        setup.set.push("bus.max_deliver=100".to_owned());
        let rig = Rig::start(setup).await?;
        let load = Load::new(&rig).await?;
        let requests = load.submit(&rig.bus, "kill", scale.jobs).await?;
        let done = Arc::new(AtomicBool::new(false));
        let finished = done.clone();
        let mut dice = Dice::new(scale.seed);
        let mut kills: BTreeMap<&str, usize> = BTreeMap::new();
        let killing = async {
            while !finished.load(Ordering::Relaxed) {
                tokio::time::sleep(dice.pause(200, 1800)).await;
                let stage = StageName::ALL[dice.below(5)];
                let pids = rig.pids(stage);
                if !pids.is_empty() && signal(pids[dice.below(pids.len())], "KILL").is_ok() {
                    *kills.entry(stage.as_str()).or_default() += 1;
                }
            }
        };
        let answering = async {
            let mut outcome = anyhow::Ok(());
            for request in &requests {
                outcome = outcome.and(rig.events(&request.job).await.map(drop));
            }
            done.store(true, Ordering::Relaxed);
            outcome
        };
        let (outcome, ()) = tokio::join!(answering, killing);
        outcome?;
        load.check(&rig, &requests).await?;
        let total: usize = kills.values().sum();
        let injected = format!("{total} kills over {} jobs: {kills:?}", scale.jobs).replace('"', "");
        Ok(Seen { injected, observed: format!("{} right answers, streams empty", scale.jobs), seconds: None })
    })
    .await
}

/// SIGKILL of the worker each time that it takes the same message.
async fn each_time(scale: &Scale, stage: StageName, kind: ErrorKind) -> anyhow::Result<Seen> {
    let mut setup = true_setup(scale);
    // The supervisor restarts a stage that keeps dying with growing delays: few deliveries keep the case short.
    setup.set.push("bus.max_deliver=2".to_owned());
    // Eight frames per message, so that a message takes time.
    setup.max_payload = 8 << 20;
    let rig = Rig::start(setup).await?;
    let load = Load::new(&rig).await?;
    let long = load::long_video(&rig, 12)?;
    let mut request = JobRequest::new(JobId::new("deadly")?, long.to_string_lossy(), "a dog");
    request.max_new_tokens = 1000;
    let (stream, consumer) = match stage {
        StageName::Llm => (StreamName::Line, "priority-5".to_owned()),
        other => (StreamName::input_of(other), other.to_string()),
    };
    let stream = rig.bus.stream(stream).await;
    let delivered_before = stream.consumer_info(&consumer).await?.delivered.consumer_sequence;
    client::submit(&rig.bus, &request).await?;
    let started = Instant::now();
    let (mut kills, mut seen) = (0, delivered_before);
    let end = loop {
        let events = look::log_of(&rig.bus, &request.job).await;
        if events.last().is_some_and(|e| e.event.is_terminal()) {
            break terminal(&events)?.clone();
        }
        ensure!(started.elapsed().as_secs() < 55, "not ended after {kills} kills; {}", look::tail(&rig));
        // One kill per delivery: a worker that is still starting has no message.
        let delivered = stream.consumer_info(&consumer).await.map_or(seen, |i| i.delivered.consumer_sequence);
        if delivered > seen
            && let Some(&pid) = rig.pids(stage).first()
        {
            seen = delivered;
            // Time to begin, so that the kill hits the work and not the delivery.
            tokio::time::sleep(Duration::from_millis(15)).await;
            kills += usize::from(signal(pid, "KILL").is_ok());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    let Event::Failed { error } = end else { bail!("{end:?} after {kills} kills") };
    ensure!(error.kind == kind && error.stage == Some(stage), "{error:?}");
    let seconds = started.elapsed().as_secs_f64();
    let buried = look::dead(&rig.bus).await?;
    ensure!(buried.iter().any(|s| s.ends_with(&format!("{stage}.deadly"))), "not kept: {buried:?}");
    rig.wait_ready().await?;
    let neighbours = load.submit(&rig.bus, "after", 3).await?;
    load.check(&rig, &neighbours).await?;
    let injected = format!("stage-{stage} killed {kills} times, whenever it had a message in flight");
    Ok(Seen { injected, observed: format!("failed: {error}"), seconds: Some(seconds) })
}

/// Message that kills its workers.
pub async fn by_a_message(scale: &Scale) -> Row {
    let expected =
        "its job fails as poison_message naming the stage, the message is kept in VIDI_DEAD, later jobs are answered";
    let case = Case { name: "a message that kills every worker".to_owned(), expected, bound_s: scale.bound(55.0) };
    case.run(each_time(scale, StageName::Vision, ErrorKind::PoisonMessage)).await
}

/// Job that kills its owners.
pub async fn by_a_job(scale: &Scale) -> Row {
    let expected = "the job fails as worker_lost at llm, the request is kept in VIDI_DEAD, later jobs are answered";
    let case = Case { name: "a job that kills every owner".to_owned(), expected, bound_s: scale.bound(55.0) };
    case.run(each_time(scale, StageName::Llm, ErrorKind::WorkerLost)).await
}

/// SIGSTOP of an owner until another has taken its job over, then SIGCONT.
pub async fn two_owners(scale: &Scale) -> Row {
    let expected = "one terminal event, the text told once, the true answers of an undisturbed run";
    let case = Case { name: "two owners for one job".to_owned(), expected, bound_s: scale.bound(60.0) };
    case.run(async {
        let rig = Rig::start(Setup { replicas: "llm=2".to_owned(), ..true_setup(scale) }).await?;
        let (video, truth) = rig.demo_video(SCENE.0, SCENE.1)?;
        let long = LongAnswer::new(&rig.bus, &video, &truth).await.with_context(|| look::tail(&rig))?;
        let mut takeovers = 0;
        let rounds = (scale.jobs / 16).clamp(1, 5);
        for round in 0..rounds {
            let request = long.request(&format!("two-{round}"))?;
            client::submit(&rig.bus, &request).await?;
            look::wait_for(&rig, &request.job, |e| matches!(e, Event::Text { .. })).await?;
            let owner = owner_of(&rig, &request.job).await?;
            signal(owner, "STOP")?;
            let taken_over = taken_over(&rig, &request.job).await;
            signal(owner, "CONT")?;
            takeovers += usize::from(taken_over?);
            ended_by_one(&rig, &long, &request).await?;
        }
        ensure!(takeovers == rounds, "{takeovers} takeovers in {rounds} rounds");
        counted_anew(&rig, &long).await?;
        look::empty(&rig).await?;
        let injected = format!(
            "the owner of {rounds} jobs of {} tokens stopped until taken over, then continued; one job delivered twice \
             with one number",
            long.tokens()
        );
        Ok(Seen { injected, observed: "one end each, text told once".to_owned(), seconds: None })
    })
    .await
}

/// Waits until another owner has taken a job over, whose `planned` event is the second one, or the job has ended; whether
/// it was taken over.
pub(super) async fn taken_over(rig: &Rig, job: &JobId) -> anyhow::Result<bool> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let events = look::log_of(&rig.bus, job).await;
        let plans = events.iter().filter(|e| matches!(e.event, Event::Planned { .. })).count();
        if plans > 1 || events.last().is_some_and(|e| e.event.is_terminal()) {
            return Ok(plans > 1);
        }
        ensure!(Instant::now() < until, "no takeover within 60 s; {}", look::tail(rig));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A job that is delivered to a second owner with the number of the first delivery, while the first owner is in the middle of it:
/// the queue forgets that it delivered it, as on a full disk. The first one stands still until it is taken over, or it could have
/// answered before.
async fn counted_anew(rig: &Rig, long: &LongAnswer) -> anyhow::Result<()> {
    let request = long.request("counted-anew")?;
    client::submit(&rig.bus, &request).await?;
    look::wait_for(rig, &request.job, |e| matches!(e, Event::Text { .. })).await?;
    let owner = owner_of(rig, &request.job).await?;
    signal(owner, "STOP")?;
    let js = async_nats::jetstream::new(rig.bus.client().clone());
    let deleted = js.delete_consumer_from_stream("priority-5", StreamName::Line.on(rig.bus.subjects())).await;
    let taken_over = taken_over(rig, &request.job).await;
    signal(owner, "CONT")?;
    deleted?;
    ensure!(taken_over?, "answered before the second delivery; {}", look::tail(rig));
    ended_by_one(rig, long, &request).await
}

/// Waits for the end of a job that two owners have, and checks that only one of them told of it.
async fn ended_by_one(rig: &Rig, long: &LongAnswer, request: &JobRequest) -> anyhow::Result<()> {
    rig.events(&request.job).await?;
    // Time for the other owner to interfere.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    long.check(&look::log_of(&rig.bus, &request.job).await).with_context(|| look::tail(rig))
}

/// Process id of the owner of a job.
pub(super) async fn owner_of(rig: &Rig, job: &JobId) -> anyhow::Result<u32> {
    let reply = rig.bus.client().request(rig.bus.subjects().owner(job), Default::default()).await?;
    let instance = String::from_utf8(reply.payload.to_vec())?;
    let pid = instance.split('-').nth(1).context("an instance name is stage-pid-digits")?;
    Ok(pid.parse()?)
}

/// Start of five stages with three processes each at the same time, repeatedly.
pub async fn start_together(scale: &Scale) -> Row {
    let expected = "all ready and a job answered each time";
    let case = Case {
        name: "all stages start together".to_owned(),
        expected,
        bound_s: scale.bound(20.0 + scale.starts as f64 * 15.0),
    };
    case.run(async {
        let mut slowest = Duration::ZERO;
        for _ in 0..scale.starts {
            let started = Instant::now();
            let replicas = StageName::ALL.map(|s| format!("{s}=3")).join(",");
            let rig = Rig::start(Setup { replicas, ..true_setup(scale) }).await?;
            let load = Load::new(&rig).await?;
            let first = load.submit(&rig.bus, "first", 1).await?;
            load.check(&rig, &first).await?;
            slowest = slowest.max(started.elapsed());
            let ended = rig.log().matches(RESTARTING).count();
            ensure!(ended == 0, "{ended} stages ended; {}", look::tail(&rig));
        }
        let injected = format!("15 processes started at once, {} times", scale.starts);
        let observed = format!("ready and answered each time, at most {:.1} s", slowest.as_secs_f64());
        Ok(Seen { injected, observed, seconds: None })
    })
    .await
}
