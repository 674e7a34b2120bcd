//! Workers with several jobs: killed and stopped, jobs of theirs that end early, and jobs that go to whoever keeps their video.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use deploy::client;
use protocol::error::StageName;
use protocol::event::{CancelledBy, Event};
use protocol::message::{JobId, JobRequest};

use super::ends::{cancel_in, cancelled_by};
use super::killed::{owner_of, taken_over};
use super::load::true_setup;
use super::long_answer::{LongAnswer, SCENE};
use super::look;
use super::{Case, Row, Scale, Seen};
use crate::dice::Dice;
use crate::harness::{Rig, Setup, signal};
use crate::media::demo_video;

/// Jobs about one video at a time.
const TOGETHER: usize = 5;

fn kept(scale: &Scale, workers: usize) -> Setup {
    Setup { replicas: format!("llm={workers}"), keep_video: true, ..true_setup(scale) }
}

/// Submits jobs about one video, each with many questions, and waits until the first is being answered.
async fn together(rig: &Rig, long: &LongAnswer, name: &str) -> anyhow::Result<Vec<JobRequest>> {
    let mut requests = Vec::new();
    for n in 0..TOGETHER {
        let request = long.request(&format!("{name}-{n}"))?;
        client::submit(&rig.bus, &request).await?;
        requests.push(request);
    }
    look::wait_for(rig, &requests[0].job, |e| matches!(e, Event::Text { .. })).await?;
    Ok(requests)
}

/// SIGKILL of the worker that has several jobs about one video.
pub async fn owner_killed(scale: &Scale) -> Row {
    let expected = "every job answered truly, once, its text told once";
    let rounds = (scale.jobs / 16).clamp(1, 5);
    let bound_s = scale.bound(30.0 + 20.0 * rounds as f64);
    let case = Case { name: "the owner of several jobs killed".to_owned(), expected, bound_s };
    case.run(async {
        let rig = Rig::start(kept(scale, 1)).await?;
        let (video, truth) = rig.demo_video(SCENE.0, SCENE.1)?;
        let long = LongAnswer::new(&rig.bus, &video, &truth).await.with_context(|| look::tail(&rig))?;
        let mut begun = 0;
        for round in 0..rounds {
            let requests = together(&rig, &long, &format!("killed-{round}")).await?;
            for request in &requests {
                let events = look::log_of(&rig.bus, &request.job).await;
                begun += usize::from(events.iter().any(|e| matches!(e.event, Event::Planned { .. })));
            }
            signal(*rig.pids(StageName::Llm).first().context("no stage-llm")?, "KILL")?;
            answered(&rig, &long, &requests).await?;
        }
        look::empty(&rig).await?;
        let jobs = rounds * TOGETHER;
        let injected = format!("stage-llm killed {rounds} times at {TOGETHER} jobs, {begun} of {jobs} begun");
        Ok(Seen { injected, observed: format!("{jobs} true answers"), seconds: None })
    })
    .await
}

/// Of several jobs about one video, one cancelled, one that fails, and one over its deadline.
pub async fn ends(scale: &Scale) -> Row {
    let expected = "each has its own end, cancelled within a second; the others are answered truly";
    let case = Case { name: "ends of some of several jobs".to_owned(), expected, bound_s: scale.bound(1.5) };
    case.run(async {
        let rig = Rig::start(kept(scale, 1)).await?;
        let (video, truth) = rig.demo_video(SCENE.0, SCENE.1)?;
        let long = LongAnswer::new(&rig.bus, &video, &truth).await.with_context(|| look::tail(&rig))?;
        let name = video.to_string_lossy();
        // No question at all: it is refused by its owner.
        let empty = JobRequest::new(JobId::new("fails")?, name, "");
        let late = JobRequest { deadline_s: Some(0.7), ..long.request("late")? };
        let requests = together(&rig, &long, "ends").await?;
        for request in [&empty, &late] {
            client::submit(&rig.bus, request).await?;
        }
        let cancelled = cancel_in(&rig, &requests[2]).await?;
        ensure!(cancelled_by(&rig.events(&late.job).await?)? == CancelledBy::Deadline);
        let end = rig.events(&empty.job).await?;
        let Some(Event::Failed { .. }) = end.last().map(|e| &e.event) else { bail!("{end:?}") };
        let others: Vec<JobRequest> =
            requests.iter().filter(|request| request.job != requests[2].job).cloned().collect();
        answered(&rig, &long, &others).await?;
        look::empty(&rig).await?;
        let injected = format!("of {} jobs one cancelled, one without a question, one with a deadline", TOGETHER + 2);
        let observed = format!("{} true answers, cancelled after {:.2} s", others.len(), cancelled.as_secs_f64());
        Ok(Seen { injected, observed, seconds: Some(cancelled.as_secs_f64()) })
    })
    .await
}

/// SIGSTOP of a worker that has several jobs, until another has taken the first one over, then SIGCONT.
pub async fn two_owners(scale: &Scale) -> Row {
    let expected = "one terminal event each, the text told once, the true answers of an undisturbed run";
    let case = Case { name: "two owners for several jobs".to_owned(), expected, bound_s: scale.bound(90.0) };
    case.run(async {
        let rig = Rig::start(kept(scale, 2)).await?;
        let (video, truth) = rig.demo_video(SCENE.0, SCENE.1)?;
        let long = LongAnswer::new(&rig.bus, &video, &truth).await.with_context(|| look::tail(&rig))?;
        let rounds = (scale.jobs / 32).clamp(1, 3);
        for round in 0..rounds {
            let requests = together(&rig, &long, &format!("stopped-{round}")).await?;
            let owner = owner_of(&rig, &requests[0].job).await?;
            signal(owner, "STOP")?;
            let over = taken_over(&rig, &requests[0].job).await;
            signal(owner, "CONT")?;
            ensure!(over?, "the answer was faster; {}", look::tail(&rig));
            answered(&rig, &long, &requests).await?;
            // Time for the other owner to interfere.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            answered(&rig, &long, &requests).await?;
        }
        look::empty(&rig).await?;
        let injected = format!("the owner of {TOGETHER} jobs stopped until the first was taken over, {rounds} times");
        Ok(Seen { injected, observed: "one end each, text told once".to_owned(), seconds: None })
    })
    .await
}

/// Waits for the end of each job, and checks that it has the true answers, told once.
async fn answered(rig: &Rig, long: &LongAnswer, requests: &[JobRequest]) -> anyhow::Result<()> {
    for request in requests {
        rig.events(&request.job).await?;
        let events = look::log_of(&rig.bus, &request.job).await;
        long.check(&events).with_context(|| format!("{}; {}", request.job, look::tail(rig)))?;
    }
    Ok(())
}

/// Many jobs over few videos and three workers, one of which is killed in the middle.
pub async fn affinity(scale: &Scale) -> Row {
    let (jobs, videos) = (scale.jobs, scale.jobs.div_ceil(10).clamp(3, 10));
    let expected = "every job answered truly, once; of those that come one after the other, all but the first of a video find it \
                    kept while no worker dies";
    let bound_s = scale.bound(60.0 + jobs as f64 * 3.0);
    let case = Case { name: "jobs go to whoever keeps their video".to_owned(), expected, bound_s };
    case.run(async {
        let rig = Rig::start(kept(scale, 3)).await?;
        let mut questions = Vec::new();
        for seed in (1..).take(videos) {
            let (video, truth) = demo_video(&rig.media(), seed, SCENE.1)?;
            let question = truth.questions.first().context("a scene without questions")?;
            let mut request = JobRequest::new(JobId::new("kind")?, video.to_string_lossy(), question.query.clone());
            (request.task, request.max_new_tokens) = (question.task.clone(), 24);
            let first = JobRequest { job: JobId::new(format!("first-{seed}"))?, ..request.clone() };
            let ids = look::result(&rig.answer(&first).await?).with_context(|| look::tail(&rig))?.token_ids.clone();
            questions.push((request, ids));
        }
        let one_by_one = one_by_one(&rig, &questions[..videos.min(3)], jobs / 4).await?;
        let mut dice = Dice::new(scale.seed);
        let mut asked = Vec::new();
        for n in 0..jobs {
            let (kind, ids) = &questions[dice.below(videos)];
            let request = JobRequest { job: JobId::new(format!("many-{n}"))?, ..kind.clone() };
            client::submit(&rig.bus, &request).await?;
            asked.push((request, ids));
        }
        let until = Instant::now() + Duration::from_secs(120);
        while look::log_of(&rig.bus, &asked[jobs / 4].0.job).await.last().is_none_or(|e| !e.event.is_terminal()) {
            ensure!(Instant::now() < until, "not answered; {}", look::tail(&rig));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        signal(*rig.pids(StageName::Llm).first().context("no stage-llm")?, "KILL")?;
        let mut hits = 0;
        for (request, ids) in &asked {
            rig.events(&request.job).await?;
            let events = look::log_of(&rig.bus, &request.job).await;
            let result = look::result(&events).with_context(|| format!("{}; {}", request.job, look::tail(&rig)))?;
            ensure!(result.token_ids == **ids, "{}: {:?} is not {ids:?}", request.job, result.token_ids);
            look::told_once(&events, &result.text)?;
            hits += usize::from(found_kept(&events));
        }
        look::empty(&rig).await?;
        let injected = format!("{jobs} jobs over {videos} videos and 3 workers, one of them killed");
        let observed = format!("{jobs} true answers, {hits} found their video kept; one by one {one_by_one}");
        Ok(Seen { injected, observed, seconds: None })
    })
    .await
}

/// Asks about a few videos in turn, each job once the one before is answered; all but the first of each find it kept.
async fn one_by_one(rig: &Rig, questions: &[(JobRequest, Vec<u32>)], jobs: usize) -> anyhow::Result<String> {
    let (mut hits, mut seen, mut missed) = (0, BTreeSet::new(), Vec::new());
    for n in 0..jobs.max(2 * questions.len()) {
        let (kind, _) = &questions[n % questions.len()];
        let request = JobRequest { job: JobId::new(format!("turn-{n}"))?, ..kind.clone() };
        let events = rig.answer(&request).await?;
        look::result(&events)?;
        let is_first = seen.insert(kind.video.clone());
        hits += usize::from(found_kept(&events));
        if !is_first && !found_kept(&events) {
            missed.push(n);
        }
    }
    // A worker has what it keeps said within a second; the first round brings each video to one worker.
    ensure!(missed.is_empty(), "{missed:?} did not find their video kept; {}", look::tail(rig));
    Ok(format!("{hits} of {}", jobs.max(2 * questions.len())))
}

/// Whether a job found its video kept, in memory or on disk.
fn found_kept(events: &[protocol::event::JobEvent]) -> bool {
    events.iter().rev().any(|e| match &e.event {
        Event::Result(result) => serde_json::json!(result.cached) != serde_json::json!(false),
        _ => false,
    })
}
