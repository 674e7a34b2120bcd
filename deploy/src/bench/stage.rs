//! `vidi bench --stage`: one stage alone, with 1, 2, 4 replicas, on a queue that never runs dry.
//!
//! Latency is the time from the broker's accepting a message to the stage's report that all its rows are published.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use config::Config;
use futures::StreamExt;
use protocol::error::StageName;
use protocol::message::{JobId, Modality};
use protocol::report::Report;
use protocol::rows::RowSet;
use protocol::wire;
use runtime::bus::events::now_ms;
use runtime::bus::{Bus, headers};
use runtime::process::Fatal;
use serde::Serialize;

use super::load::{LoadMessage, LoadSource};
use super::{busy, failed, quantile, shares};
use crate::client;
use crate::up::broker;
use crate::up::pipeline::{Layout, Pipeline};
use crate::up::supervisor::Logs;

/// Time without a report after which messages count as lost.
const PATIENCE: Duration = Duration::from_secs(120);
/// Interval at which the queue behind the stage is emptied, as no stage takes from it.
const EMPTY_EVERY: Duration = Duration::from_millis(200);
/// Messages that each replica processes before any counts: first pages, first allocations.
const WARM_UP: u64 = 4;

/// Figures of one number of replicas.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Processes of the stage.
    pub replicas: usize,
    /// Messages processed.
    pub messages: u64,
    /// Seconds from the first message sent to the last row reported, warm-up excluded.
    pub seconds: f64,
    /// Messages a second.
    pub messages_per_s: f64,
    /// Frames, windows or rows a second.
    pub items_per_s: f64,
    /// Bytes of input a second.
    pub bytes_per_s: f64,
    /// Share of the time that each replica had a message in flight.
    pub busy: Vec<f64>,
    /// Median latency, milliseconds, time in the queue included.
    pub p50_ms: f64,
    /// 99th percentile of it.
    pub p99_ms: f64,
}

/// Measures a stage with each number of replicas.
///
/// # Errors
/// When broker or stages do not start, or messages get lost.
pub async fn run(
    config: &Config,
    stage: StageName,
    source: &LoadSource<'_>,
    replicas: &[usize],
    messages: u64,
) -> Result<Vec<Row>, Fatal> {
    let mut rows = Vec::new();
    for &n in replicas {
        let dir = tempfile::tempdir().map_err(|e| failed(e.into()))?;
        let layout = Layout::Processes(Logs::Directory(dir.path().to_owned()));
        let options = broker::Options::default();
        let mut pipeline = Pipeline::start(config, dir.path(), &[(stage, n)], &layout, &options).await?;
        let bus = pipeline.bus().clone();
        let measured = tokio::select! {
            row = measure(&bus, stage, source, n, messages) => row.map_err(failed),
            fatal = pipeline.lost() => Err(fatal),
        };
        pipeline.stop().await;
        rows.push(measured?);
    }
    Ok(rows)
}

async fn measure(bus: &Bus, stage: StageName, source: &LoadSource<'_>, n: usize, messages: u64) -> anyhow::Result<Row> {
    ready(bus, stage, n).await?;
    push(bus, stage, source.pieces(bus, stage, WARM_UP * n as u64, "warm")?).await?;
    let pieces = source.pieces(bus, stage, messages, "load")?;
    let before = busy(bus, stage).await?;
    let (count, items) = (pieces.len() as f64, pieces.iter().map(|p| p.items).sum::<u64>());
    let bytes = pieces.iter().map(|p| p.body.len() as u64).sum::<u64>();
    let run = push(bus, stage, pieces).await?;
    let after = busy(bus, stage).await?;
    let seconds = run.seconds;
    Ok(Row {
        replicas: n,
        messages: count as u64,
        seconds,
        messages_per_s: count / seconds,
        items_per_s: items as f64 / seconds,
        bytes_per_s: bytes as f64 / seconds,
        busy: shares(&before, &after, seconds),
        p50_ms: quantile(run.latencies_ms.clone(), 0.5),
        p99_ms: quantile(run.latencies_ms, 0.99),
    })
}

async fn ready(bus: &Bus, stage: StageName, n: usize) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    while client::status(bus, stage).await?.len() < n {
        if Instant::now() > until {
            bail!("{n} replicas of stage-{stage} are not ready after {PATIENCE:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

struct Run {
    seconds: f64,
    latencies_ms: Vec<f64>,
}

/// Output rows of one job and modality: which message results in each, and which have come.
#[derive(Default)]
struct OutputRows {
    /// First row of each message's output, and the index of the message.
    starts: Vec<(u64, usize)>,
    done: RowSet,
}

/// Publishes messages and waits for the last row that comes of them.
async fn push(bus: &Bus, stage: StageName, pieces: Vec<LoadMessage>) -> anyhow::Result<Run> {
    let mut reports = bus.client().subscribe(bus.subjects().all_reports()).await?;
    bus.client().flush().await?;
    let mut outputs: HashMap<(JobId, Modality), OutputRows> = HashMap::new();
    let mut missing = 0;
    for (i, p) in pieces.iter().enumerate() {
        outputs.entry((p.job.clone(), p.modality)).or_default().starts.push((p.start, i));
        missing += p.rows;
    }
    outputs.values_mut().for_each(|rows| rows.starts.sort_unstable());
    let behind = if stage == StageName::Fuse { StageName::Llm } else { StageName::Fuse };
    let mut jobs: Vec<JobId> = pieces.iter().map(|p| p.job.clone()).collect();
    jobs.dedup();
    let started = Instant::now();
    // Unix milliseconds at which the broker took each message.
    let stored: Arc<Mutex<Vec<u64>>> = Arc::default();
    let publisher = tokio::spawn(publish(bus.clone(), stage, pieces, stored.clone()));
    let mut emptied = Instant::now();
    let mut latencies_ms = Vec::new();
    while missing > 0 {
        let message = tokio::time::timeout(PATIENCE, reports.next()).await;
        let message = message
            .with_context(|| format!("no report within {PATIENCE:?}, {missing} rows are missing"))?
            .context("reading reports failed: the connection is closed")?;
        let report: Report = wire::decode(&message.payload)?;
        let Some(job) = bus.subjects().job_of(&message.subject) else { continue };
        for d in report.done.iter().filter(|_| report.stage == stage) {
            let Some(rows) = outputs.get_mut(&(job.clone(), d.modality)) else { continue };
            for new in rows.done.insert(d.offset..d.offset + d.rows) {
                missing -= (new.end - new.start).min(missing);
                let Some(at) = rows.starts.partition_point(|&(start, _)| start <= new.start).checked_sub(1) else {
                    continue;
                };
                let taken =
                    stored.lock().map_err(|_| anyhow::anyhow!("publisher panicked"))?.get(rows.starts[at].1).copied();
                latencies_ms.push(report.at_ms.saturating_sub(taken.unwrap_or(report.at_ms)) as f64);
            }
        }
        if emptied.elapsed() > EMPTY_EVERY {
            emptied = Instant::now();
            empty(bus, behind, &jobs).await;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    publisher.await??;
    empty(bus, behind, &jobs).await;
    Ok(Run { seconds, latencies_ms })
}

async fn empty(bus: &Bus, queue: StageName, jobs: &[JobId]) {
    for job in jobs {
        bus.purge(queue, job).await;
    }
}

async fn publish(
    bus: Bus,
    stage: StageName,
    pieces: Vec<LoadMessage>,
    stored: Arc<Mutex<Vec<u64>>>,
) -> anyhow::Result<()> {
    for p in pieces {
        let wanted = std::future::pending();
        bus.store(bus.subjects().input(stage, &p.job), &p.id, &headers(&p.job), p.body, wanted)
            .await
            .map_err(|stop| anyhow::anyhow!("publish of {} failed: {stop:?}", p.id))?;
        stored.lock().map_err(|_| anyhow::anyhow!("reader panicked"))?.push(now_ms());
    }
    Ok(())
}
