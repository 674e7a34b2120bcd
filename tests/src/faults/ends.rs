//! Jobs that end early: cancelled, past their deadline, without a client.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use deploy::client;
use protocol::error::StageName;
use protocol::event::{CancelledBy, Event};
use protocol::message::{JobId, JobRequest};
use runtime::bus::{Bus, Role};

use super::load::{self, Load, setup, true_setup};
use super::look;
use super::{Case, Row, Scale, Seen};
use crate::dice::Dice;
use crate::harness::{Rig, Setup, signal, terminal};

/// Longest time of one batch in these rigs: decoding, eight frames, 30 s of audio, or the rows of a prefill.
const BATCH_S: f64 = 0.5;

/// A job about a long video whose answer does not end.
///
/// # Errors
/// ffmpeg's.
pub(super) fn endless(rig: &Rig, name: &str) -> anyhow::Result<JobRequest> {
    let clip = rig.media().join("long-20.mp4");
    if !clip.is_file() {
        load::long_video(rig, 20)?;
    }
    let job = JobId::new(name)?;
    Ok(JobRequest { max_new_tokens: 8192, ..JobRequest::new(job, clip.to_string_lossy(), "a dog") })
}

/// The first tokens of an endless answer.
///
/// # Errors
/// When there is no answer.
pub(super) async fn short_answer(rig: &Rig, name: &str) -> anyhow::Result<Vec<u32>> {
    let request = JobRequest { max_new_tokens: 4, ..endless(rig, name)? };
    Ok(look::result(&rig.answer(&request).await?).with_context(|| look::tail(rig))?.token_ids.clone())
}

/// Who cancelled a job.
///
/// # Errors
/// Another end, or none.
pub(super) fn cancelled_by(events: &[protocol::event::JobEvent]) -> anyhow::Result<CancelledBy> {
    match terminal(events)? {
        Event::Cancelled { by, .. } => Ok(*by),
        other => bail!("{other:?}"),
    }
}

/// Cancels at random instants from submission on.
pub async fn cancel(scale: &Scale) -> Row {
    let expected = "cancelled, every stage idle for the job and its messages gone within 1 s and the batch in flight";
    let case = Case { name: "cancel at random instants".to_owned(), expected, bound_s: scale.bound(1.0 + BATCH_S) };
    case.run(async {
        let rig = Rig::start(setup(scale)).await?;
        let answer = short_answer(&rig, "undisturbed").await?;
        let mut dice = Dice::new(scale.seed);
        let mut slowest = Duration::ZERO;
        let mut stopped = 0;
        for i in 0..scale.cancels {
            let request = endless(&rig, &format!("cancel-{i}"))?;
            client::submit(&rig.bus, &request).await?;
            let instant = dice.pause(0, 2500);
            tokio::time::sleep(instant).await;
            let asked = Instant::now();
            let replies = client::cancel(&rig.bus, &request.job);
            let (replies, events) = tokio::join!(replies, rig.events(&request.job));
            ensure!(cancelled_by(&events?)? == CancelledBy::Client);
            stopped += replies?.iter().filter(|r| r.stopped).count();
            // Until no stream holds anything of the job.
            loop {
                let left = look::left_over(&rig.bus).await?;
                if left.is_empty() {
                    break;
                }
                ensure!(asked.elapsed().as_secs() < 10, "{left:?} is left; {}", look::tail(&rig));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            slowest = slowest.max(asked.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        for i in 0..scale.cancels {
            let job = JobId::new(format!("cancel-{i}"))?;
            cancelled_by(&look::log_of(&rig.bus, &job).await)?;
        }
        ensure!(short_answer(&rig, "after").await? == answer, "another answer");
        look::empty(&rig).await?;
        let injected = format!("{} cancels 0 to 2.5 s after submission", scale.cancels);
        let observed =
            format!("all cancelled, {stopped} batches stopped; slowest to be gone {:.2} s", slowest.as_secs_f64());
        Ok(Seen { injected, observed, seconds: Some(slowest.as_secs_f64()) })
    })
    .await
}

/// Cancel of jobs without a worker: one that is queued, one whose owner is stopped.
pub async fn cancel_without_a_worker(scale: &Scale) -> Row {
    let expected = "cancelled within a second each; the job in flight goes on";
    let case = Case {
        name: "cancel of a waiting job, and of one with a dead owner".to_owned(),
        expected,
        bound_s: scale.bound(1.0 + BATCH_S),
    };
    case.run(async {
        let rig = Rig::start(setup(scale)).await?;
        let working = endless(&rig, "working")?;
        let waiting = endless(&rig, "waiting")?;
        client::submit(&rig.bus, &working).await?;
        look::wait_for(&rig, &working.job, |e| matches!(e, Event::Planned { .. })).await?;
        client::submit(&rig.bus, &waiting).await?;
        look::wait_for(&rig, &waiting.job, |e| matches!(e, Event::Queued { .. })).await?;
        let mut slowest = cancel_in(&rig, &waiting).await?;
        let going_on = look::log_of(&rig.bus, &working.job).await;
        ensure!(!going_on.iter().any(|e| e.event.is_terminal()), "the job in flight ended too");
        // A stopped worker keeps its job and answers nobody.
        let owner = *rig.pids(StageName::Llm).first().context("no stage-llm")?;
        signal(owner, "STOP")?;
        let took = cancel_in(&rig, &working).await;
        signal(owner, "CONT")?;
        slowest = slowest.max(took?);
        short_answer(&rig, "after").await?;
        look::empty(&rig).await?;
        cancelled_by(&look::log_of(&rig.bus, &working.job).await)?;
        let injected = "one job queued, one whose owner was stopped".to_owned();
        let observed = format!("both cancelled, slowest {:.2} s", slowest.as_secs_f64());
        Ok(Seen { injected, observed, seconds: Some(slowest.as_secs_f64()) })
    })
    .await
}

/// Cancels a job; the time until its end.
///
/// # Errors
/// When it is not cancelled.
pub(super) async fn cancel_in(rig: &Rig, request: &JobRequest) -> anyhow::Result<Duration> {
    let asked = Instant::now();
    let (replies, events) = tokio::join!(client::cancel(&rig.bus, &request.job), rig.events(&request.job));
    replies?;
    ensure!(cancelled_by(&events?)? == CancelledBy::Client);
    Ok(asked.elapsed())
}

/// Deadlines of jobs in flight and of queued ones.
pub async fn deadline(scale: &Scale) -> Row {
    let expected = "each cancelled by its deadline, at most a second and the batch in flight late";
    let case = Case { name: "deadlines".to_owned(), expected, bound_s: scale.bound(1.0 + BATCH_S) };
    case.run(async {
        let rig = Rig::start(Setup { replicas: "llm=2".to_owned(), ..setup(scale) }).await?;
        let mut requests = Vec::new();
        for (i, deadline_s) in [2.0, 2.5, 3.0, 1.5].into_iter().enumerate() {
            requests.push(JobRequest { deadline_s: Some(deadline_s), ..endless(&rig, &format!("deadline-{i}"))? });
        }
        let submitted = Instant::now();
        let mut unix_ms = Vec::new();
        for request in &requests {
            unix_ms.push(runtime::bus::events::now_ms());
            client::submit(&rig.bus, request).await?;
        }
        let mut latest: f64 = 0.0;
        for (request, at) in requests.iter().zip(unix_ms) {
            let events = rig.events(&request.job).await?;
            ensure!(cancelled_by(&events)? == CancelledBy::Deadline, "{:?}", events.last());
            let ended = events.last().map_or(0, |e| e.at_ms);
            latest = latest.max((ended - at) as f64 / 1e3 - request.deadline_s.unwrap_or_default());
        }
        look::empty(&rig).await?;
        short_answer(&rig, "after").await?;
        let injected = "4 jobs of 1.5 to 3 s, two owners: two in flight, two queued".to_owned();
        let observed =
            format!("all by deadline, at most {latest:.2} s late, {:.1} s in all", submitted.elapsed().as_secs_f64());
        Ok(Seen { injected, observed, seconds: Some(latest) })
    })
    .await
}

/// Clients that disconnect after submission.
pub async fn client_gone(scale: &Scale) -> Row {
    let expected = "every job answered as in an undisturbed run, its events available to a client that reconnects, nothing left in the streams";
    let case = Case { name: "client gone".to_owned(), expected, bound_s: scale.bound(40.0 + scale.jobs as f64 * 2.0) };
    case.run(async {
        let rig = Rig::start(true_setup(scale)).await?;
        let load = Load::new(&rig).await?;
        let jobs = scale.jobs.min(30);
        let mut requests = Vec::new();
        for i in 0..jobs {
            let bus = Bus::connect(rig.bus.config(), Role::Client, Duration::from_secs(5)).await?;
            let request = load.request(&format!("gone-{i}"), i);
            let mut events = client::Events::new(&bus, &request.job);
            client::submit(&bus, &request).await?;
            if i % 2 == 0 {
                events.next().await?;
            }
            requests.push(request);
        }
        load.check(&rig, &requests).await?;
        let injected = format!("{jobs} clients, gone after submission or the first event");
        Ok(Seen { injected, observed: format!("{jobs} right answers"), seconds: None })
    })
    .await
}
