//! `vidi bench --pipeline`: whole jobs on a video, 1, 2, 4 of them at a time.
//!
//! Latency is the time from a job's submission to its result, time in the queue included.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use config::Config;
use futures::StreamExt;
use protocol::error::StageName;
use protocol::event::{Event, JobResult};
use protocol::file_uri;
use protocol::message::{JobId, JobRequest};
use runtime::bus::Bus;
use runtime::bus::events::now_ms;
use runtime::process::Fatal;
use serde::Serialize;

use super::{Busy, busy, failed, quantile, shares};
use crate::client::{self, Events};
use crate::up::broker;
use crate::up::pipeline::{Layout, Pipeline};
use crate::up::supervisor::Logs;

/// Questions of every job.
#[derive(Clone, Debug)]
pub struct Question {
    /// The video, which stage-decode opens.
    pub video: PathBuf,
    /// The question; several are asked together.
    pub queries: Vec<String>,
    /// Length of an answer at most.
    pub max_new_tokens: u32,
}

/// Figures of one number of concurrent jobs.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Jobs submitted and not yet answered, at any time.
    pub concurrent: usize,
    /// Jobs answered.
    pub jobs: usize,
    /// Answers for which the video's keys and values were there already.
    pub cached: usize,
    /// Seconds from the first submission to the last result, warm-up excluded.
    pub seconds: f64,
    /// Jobs a second.
    pub jobs_per_s: f64,
    /// Sampled frames a second.
    pub frames_per_s: f64,
    /// Image and audio tokens a second that the language model answered about.
    pub media_tokens_per_s: f64,
    /// Generated tokens a second.
    pub answer_tokens_per_s: f64,
    /// Median latency, milliseconds.
    pub p50_ms: f64,
    /// 99th percentile of it.
    pub p99_ms: f64,
    /// Share of the time that each process of each stage had a message in flight.
    pub busy: BTreeMap<StageName, Vec<f64>>,
}

/// Measures a pipeline of its own with each number of concurrent jobs, `jobs` jobs each.
///
/// # Errors
/// When broker or stages do not start, or a job is not answered.
pub async fn run(
    config: &Config,
    question: &Question,
    replicas: &[(StageName, usize)],
    concurrent: &[usize],
    jobs: usize,
) -> Result<Vec<Row>, Fatal> {
    let dir = tempfile::tempdir().map_err(|e| failed(e.into()))?;
    let layout = Layout::Processes(Logs::Directory(dir.path().to_owned()));
    let mut pipeline = Pipeline::start(config, dir.path(), replicas, &layout, &broker::Options::default()).await?;
    let ready = pipeline.ready().await;
    let bus = pipeline.bus().clone();
    let all = async {
        ready?;
        let mut rows = Vec::new();
        // First pages, first allocations.
        asked(&bus, question, "warm").await.map_err(failed)?;
        for &n in concurrent {
            rows.push(measure(&bus, question, n, jobs).await.map_err(failed)?);
        }
        Ok(rows)
    };
    let measured = tokio::select! {
        rows = all => rows,
        fatal = pipeline.lost() => Err(fatal),
    };
    pipeline.stop().await;
    measured
}

async fn measure(bus: &Bus, question: &Question, concurrent: usize, jobs: usize) -> anyhow::Result<Row> {
    let before = all_busy(bus).await?;
    let started = Instant::now();
    let asked = futures::stream::iter(0..jobs).map(|i| {
        let name = format!("{concurrent}-{i}");
        async move {
            let submitted = Instant::now();
            let result = asked(bus, question, &name).await?;
            anyhow::Ok((submitted.elapsed().as_secs_f64() * 1e3, result))
        }
    });
    let answers: Vec<anyhow::Result<(f64, JobResult)>> = asked.buffer_unordered(concurrent).collect().await;
    let seconds = started.elapsed().as_secs_f64();
    let after = all_busy(bus).await?;
    let (latencies, results): (Vec<f64>, Vec<JobResult>) =
        answers.into_iter().collect::<anyhow::Result<Vec<_>>>()?.into_iter().unzip();
    let rate = |of: fn(&JobResult) -> u64| results.iter().map(of).sum::<u64>() as f64 / seconds;
    Ok(Row {
        concurrent,
        jobs: results.len(),
        cached: results.iter().filter(|r| r.cached.is_known()).count(),
        seconds,
        jobs_per_s: results.len() as f64 / seconds,
        frames_per_s: rate(|r| r.plan.image.as_ref().map_or(0, |i| i.frames)),
        media_tokens_per_s: rate(|r| {
            r.plan.image.as_ref().map_or(0, |i| i.tokens) + r.plan.audio.as_ref().map_or(0, |a| a.tokens)
        }),
        answer_tokens_per_s: rate(|r| r.answer_tokens() as u64),
        p50_ms: quantile(latencies.clone(), 0.5),
        p99_ms: quantile(latencies, 0.99),
        busy: after
            .iter()
            .map(|(stage, after)| (*stage, shares(before.get(stage).unwrap_or(&Busy::new()), after, seconds)))
            .collect(),
    })
}

async fn all_busy(bus: &Bus) -> anyhow::Result<BTreeMap<StageName, Busy>> {
    let mut all = BTreeMap::new();
    for stage in StageName::ALL {
        all.insert(stage, busy(bus, stage).await?);
    }
    Ok(all)
}

/// Asks once, and waits for the answer.
async fn asked(bus: &Bus, question: &Question, name: &str) -> anyhow::Result<JobResult> {
    let job = JobId::new(format!("bench-{}-{name}", now_ms()))?;
    let request = JobRequest {
        max_new_tokens: question.max_new_tokens,
        ..JobRequest::new(job, file_uri::text(&question.video), "").with_queries(question.queries.clone())
    };
    client::submit(bus, &request).await?;
    let mut events = Events::new(bus, &request.job);
    loop {
        match events.next().await.context("following a job failed")?.event {
            Event::Result(result) => return Ok(*result),
            Event::Failed { error } => bail!("{}: {error}", request.job),
            Event::Cancelled { by, .. } => bail!("{} was cancelled by {by:?}", request.job),
            _ => {}
        }
    }
}
