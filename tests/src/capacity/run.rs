//! A scenario, run: jobs come, are followed to their ends, and what the stages and the brokers did meanwhile is counted.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use compute::random::SplitMix64;
use deploy::client::{self, Events};
use deploy::up::broker::MAX_PAYLOAD;
use protocol::error::StageName;
use protocol::event::Event;
use protocol::message::{JobId, JobRequest};
use runtime::bus::Bus;
use runtime::bus::events::now_ms;
use tokio::sync::Semaphore;

use super::monitor::{Did, cpu_seconds};
use super::report::{JobTimes, Report, StageShare};
use super::scenario::{Arrivals, Scenario};
use super::shard::{Busy, Shard, Watched};

/// Time after which a job counts as lost, besides what the load takes.
const LOST: Duration = Duration::from_secs(300);

/// Runs a scenario on brokers of its own, whose files lie below `dir`.
///
/// # Errors
/// A scenario that cannot be run; broker or stages that do not start; a job that never ends.
pub async fn run(scenario: &Scenario, dir: &Path) -> anyhow::Result<Report> {
    scenario.check()?;
    let mut brokers = Vec::new();
    for n in 0..scenario.brokers {
        brokers.push(Watched::start(&dir.join(format!("broker-{n}")), MAX_PAYLOAD).await?);
    }
    let mut shards = Vec::new();
    for n in 0..scenario.prefixes {
        let prefix = format!("capacity{n}.v1");
        shards.push(Shard::start(scenario, brokers[n % brokers.len()].url(), &prefix).await?);
    }
    // What starting took of the brokers is none of the load's.
    brokers.iter_mut().for_each(Watched::restart);
    let (before, own) = (busy(&shards).await?, cpu_seconds(std::process::id())?);
    let began = Instant::now();
    let jobs = load(scenario, &shards).await?;
    let window_s = began.elapsed().as_secs_f64();
    let (after, own_cpu_s) = (busy(&shards).await?, cpu_seconds(std::process::id())? - own);
    let mut did = Vec::new();
    for broker in &mut brokers {
        did.push(broker.did().await?);
    }
    let mut redelivered = 0;
    for shard in shards {
        // stage-llm counts jobs too that a busy worker gave to an idle one.
        let status = shard.status().await?;
        redelivered += status.iter().filter(|s| s.stage != StageName::Llm).map(|s| s.redelivered).sum::<u64>();
        shard.stop().await?;
    }
    let stages = shares(scenario, &before, &after, window_s);
    report(scenario, jobs, stages, did, (window_s, own_cpu_s, redelivered))
}

fn report(
    scenario: &Scenario,
    jobs: Vec<JobTimes>,
    stages: Vec<StageShare>,
    brokers: Vec<Did>,
    (window_s, own_cpu_s, redelivered): (f64, f64, u64),
) -> anyhow::Result<Report> {
    let cores = std::thread::available_parallelism()?.get();
    let mut report = Report {
        scenario: scenario.clone(),
        window_s,
        stages,
        broker: Did::sum(&brokers),
        brokers,
        own_cpu_s,
        cores,
        redelivered,
        jobs,
        model_bytes: 0,
        model_messages: 0,
    };
    report.fill_in()?;
    Ok(report)
}

async fn busy(shards: &[Shard]) -> anyhow::Result<Busy> {
    let mut all = Busy::default();
    for shard in shards {
        for (stage, us) in shard.busy().await?.0 {
            let sum = all.0.entry(stage).or_default();
            *sum = [sum[0] + us[0], sum[1] + us[1]];
        }
    }
    Ok(all)
}

/// Shares of the replicas' time, as counted.
fn shares(scenario: &Scenario, before: &Busy, after: &Busy, window_s: f64) -> Vec<StageShare> {
    let of = |busy: &Busy, stage: StageName| busy.0.get(&stage).copied().unwrap_or_default();
    let clock = scenario.clock();
    let share = |(stage, replicas): (StageName, usize)| {
        let replicas = replicas * scenario.prefixes;
        let [busy_us, computed_us] = [0, 1].map(|i| of(after, stage)[i].saturating_sub(of(before, stage)[i]) as f64);
        let all_us = window_s * 1e6 * replicas as f64;
        StageShare { stage, replicas, busy: busy_us / all_us, computed: computed_us / clock / all_us, model: [0.0; 2] }
    };
    scenario.replicas().into_iter().map(share).collect()
}

/// Offers all jobs, and follows them to their ends.
async fn load(scenario: &Scenario, shards: &[Shard]) -> anyhow::Result<Vec<JobTimes>> {
    let gap_s = 3600.0 / scenario.per_hour / scenario.clock();
    let mut numbers = SplitMix64::new(scenario.seed);
    let at_a_time = match scenario.arrivals {
        Arrivals::Open => Semaphore::MAX_PERMITS,
        Arrivals::Closed(n) => n,
    };
    let room = Arc::new(Semaphore::new(at_a_time));
    let began = tokio::time::Instant::now();
    let (mut asked, mut due_s) = (Vec::new(), 0.0);
    for n in 0..scenario.jobs {
        if scenario.arrivals == Arrivals::Open {
            // The times between independent arrivals have an exponential distribution.
            let even = (numbers.next() >> 11) as f64 / (1u64 << 53) as f64;
            due_s += -(1.0 - even).ln() * gap_s;
            tokio::time::sleep_until(began + Duration::from_secs_f64(due_s)).await;
        }
        let place = room.clone().acquire_owned().await?;
        let bus = shards[n % shards.len()].bus.clone();
        let (tokens, fps) = (scenario.video.answer_tokens, f64::from(scenario.video.fps));
        let patience = LOST + Duration::from_secs_f64(scenario.jobs as f64 * gap_s);
        asked.push(tokio::spawn(async move {
            let followed = tokio::time::timeout(patience, followed(&bus, n, tokens, fps)).await;
            drop(place);
            followed.with_context(|| format!("job {n} has not ended after {patience:?}"))?
        }));
    }
    let mut jobs = Vec::new();
    for job in asked {
        jobs.push(job.await??);
    }
    ensure!(jobs.len() == scenario.jobs, "{} jobs of {} were followed", jobs.len(), scenario.jobs);
    Ok(jobs)
}

/// Asks about a video of its own, and reads the job's events to the end.
async fn followed(bus: &Bus, n: usize, answer_tokens: u32, fps: f64) -> anyhow::Result<JobTimes> {
    let job = JobId::new(format!("capacity-{n}"))?;
    let request =
        JobRequest { max_new_tokens: answer_tokens, fps, ..JobRequest::new(job, format!("video-{n}"), "what happens") };
    let mut times = JobTimes { submitted_ms: now_ms(), ..JobTimes::default() };
    client::submit(bus, &request).await?;
    let mut events = Events::new(bus, &request.job);
    loop {
        let event = events.next().await.with_context(|| format!("following {}", request.job))?;
        times.events += 1;
        match event.event {
            Event::Planned { .. } => times.planned_ms = event.at_ms,
            Event::Text { .. } if times.first_token_ms == 0 => times.first_token_ms = event.at_ms,
            Event::Result(result) => {
                ensure!(result.token_ids.len() == answer_tokens as usize, "{} was cut short", request.job);
                times.ended_ms = event.at_ms;
                return Ok(times);
            }
            Event::Failed { error } => {
                times.ended_ms = event.at_ms;
                times.failed = Some(error.to_string());
                return Ok(times);
            }
            Event::Cancelled { by, .. } => anyhow::bail!("{} was cancelled by {by:?}", request.job),
            _ => {}
        }
    }
}
