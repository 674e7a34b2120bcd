//! `vidi bench`: one stage alone, with 1, 2, 4 replicas, against a queue that never runs dry.
//!
//! The load is made of messages as the stages before it send them, with random content: what a message costs does not
//! depend on what it shows. Latency is from the broker's taking a message to the stage's having handed on all its rows.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use common::bus::Bus;
use common::bus::events::now_ms;
use common::config::Config;
use common::error::StageName;
use common::message::{FeatureBatch, FrameBatch, JobId, Modality, Output, PcmWindow};
use common::model::ModelConfig;
use common::plan::{AudioPlan, FRAME_BYTES, FRAME_SIDE, ImagePlan, MediaPlan, WINDOW_SAMPLES};
use common::process::Fatal;
use common::run::report::Report;
use common::run::service::Status;
use common::tensor::{Dtype, Tensor};
use common::wire;
use futures::StreamExt;
use serde::Serialize;

use crate::broker;
use crate::client;
use crate::pipeline::{Housing, Pipeline};
use crate::supervisor::Logs;

/// A message that no replica has worked off after this time is lost.
const PATIENCE: Duration = Duration::from_secs(120);
/// The queue behind the stage is emptied this often: nobody else does.
const EMPTY_EVERY: Duration = Duration::from_millis(200);
/// Frames of one message: two fit the default `max_payload` of 1 MB.
const FRAMES_PER_MESSAGE: u64 = 2;

/// What one number of replicas came to.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Processes of the stage.
    pub replicas: usize,
    /// Messages worked off.
    pub messages: u64,
    /// Seconds from the first report to the last one, warm-up excluded.
    pub seconds: f64,
    /// Messages a second.
    pub messages_per_s: f64,
    /// Frames, windows or rows a second.
    pub items_per_s: f64,
    /// Bytes of input a second.
    pub bytes_per_s: f64,
    /// Share of the time that each replica had a message in hand.
    pub busy: Vec<f64>,
    /// Median latency, milliseconds, time in the queue included.
    pub p50_ms: f64,
    /// 99th percentile of it.
    pub p99_ms: f64,
}

/// The load: messages with their first output row, to tell from reports which one is done.
struct Load {
    job: JobId,
    messages: Vec<(Vec<u8>, String)>,
    /// First row of each message's output, in order.
    starts: Vec<u64>,
    /// Rows of all outputs.
    rows: u64,
    items: u64,
    bytes: u64,
}

/// Measures a stage with each number of replicas.
///
/// # Errors
/// When broker or stages do not start, or messages get lost.
pub async fn run(config: &Config, stage: StageName, replicas: &[usize], messages: u64) -> Result<Vec<Row>, Fatal> {
    let mut rows = Vec::new();
    for &n in replicas {
        let dir = tempfile::tempdir().map_err(|e| trouble(e.into()))?;
        let housing = Housing::Processes(Logs::Directory(dir.path().to_owned()));
        let options = broker::Options::default();
        let mut pipeline = Pipeline::start(config, dir.path(), &[(stage, n)], &housing, &options).await?;
        let bus = pipeline.bus().clone();
        let measured = tokio::select! {
            row = measure(&bus, config, stage, n, messages) => row.map_err(trouble),
            fatal = pipeline.lost() => Err(fatal),
        };
        pipeline.stop().await;
        rows.push(measured?);
    }
    Ok(rows)
}

fn trouble(e: anyhow::Error) -> Fatal {
    Fatal(common::process::Exit::Other, format!("{e:#}"))
}

async fn measure(bus: &Bus, config: &Config, stage: StageName, n: usize, messages: u64) -> anyhow::Result<Row> {
    let model = common::checkpoint::Checkpoint::open(&config.model.dir)?.config().clone();
    ready(bus, stage, n).await?;
    // Once through every replica before it counts: first pages, first allocations.
    push(bus, stage, load(stage, &model, 4 * n as u64, "warm")?).await?;
    let before = busy(bus, stage).await?;
    let load = load(stage, &model, messages, "load")?;
    let (items, bytes, count) = (load.items, load.bytes, load.messages.len() as u64);
    let run = push(bus, stage, load).await?;
    let after = busy(bus, stage).await?;
    let seconds = run.seconds;
    let mut latencies = run.latencies_ms;
    latencies.sort_by(f64::total_cmp);
    let at = |q: f64| latencies[((latencies.len() - 1) as f64 * q).round() as usize];
    Ok(Row {
        replicas: n,
        messages: count,
        seconds,
        messages_per_s: count as f64 / seconds,
        items_per_s: items as f64 / seconds,
        bytes_per_s: bytes as f64 / seconds,
        busy: after
            .iter()
            .map(|(i, us)| us.saturating_sub(before.get(i).copied().unwrap_or(0)) as f64 / 1e6 / seconds)
            .collect(),
        p50_ms: at(0.5),
        p99_ms: at(0.99),
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

async fn busy(bus: &Bus, stage: StageName) -> anyhow::Result<BTreeMap<String, u64>> {
    let status: Vec<Status> = client::status(bus, stage).await?;
    Ok(status.into_iter().map(|s| (s.instance, s.busy_us)).collect())
}

struct Run {
    seconds: f64,
    latencies_ms: Vec<f64>,
}

/// Publishes a load and waits for its last row.
async fn push(bus: &Bus, stage: StageName, load: Load) -> anyhow::Result<Run> {
    let mut reports = bus.client().subscribe(bus.subjects().reports(&load.job)).await?;
    bus.client().flush().await?;
    let started = Instant::now();
    let sent: std::sync::Arc<std::sync::Mutex<Vec<u64>>> = Default::default();
    let publisher = {
        let (bus, sent, job) = (bus.clone(), sent.clone(), load.job.clone());
        let subject = bus.subjects().input(stage, &job);
        tokio::spawn(async move {
            for (body, id) in load.messages {
                let never = || false;
                bus.store(subject.clone(), &id, &job, body.into(), &never)
                    .await
                    .map_err(|stop| anyhow::anyhow!("{id} not stored: {stop:?}"))?;
                sent.lock().map_err(|_| anyhow::anyhow!("publisher panicked"))?.push(now_ms());
            }
            anyhow::Ok(())
        })
    };
    let behind = if stage == StageName::Fuse { StageName::Llm } else { StageName::Fuse };
    let mut emptied = Instant::now();
    let mut done = common::rows::RowSet::new();
    let mut latencies_ms = Vec::new();
    while done.len() < load.rows {
        let message = tokio::time::timeout(PATIENCE, reports.next()).await;
        let message = message.with_context(|| format!("stuck at {} of {} rows", done.len(), load.rows))?;
        let report: Report = wire::decode(&message.context("no more reports")?.payload)?;
        for d in &report.done {
            for new in done.insert(d.offset..d.offset + d.rows) {
                let which = load.starts.partition_point(|&s| s <= new.start) - 1;
                let stored = sent.lock().map_err(|_| anyhow::anyhow!("publisher panicked"))?.get(which).copied();
                latencies_ms.push(report.at_ms.saturating_sub(stored.unwrap_or(report.at_ms)) as f64);
            }
        }
        if emptied.elapsed() > EMPTY_EVERY {
            emptied = Instant::now();
            bus.purge(behind, &load.job).await;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    publisher.await??;
    bus.purge(behind, &load.job).await;
    Ok(Run { seconds, latencies_ms })
}

/// Messages of random content for a stage.
fn load(stage: StageName, model: &ModelConfig, messages: u64, name: &str) -> anyhow::Result<Load> {
    let job = JobId::new(format!("bench-{name}-{}", now_ms()))?;
    let plan = |image, audio| MediaPlan { content_id: String::new(), duration_s: 1.0, image, audio };
    let noise = |n: usize| -> Vec<u8> { (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect() };
    let image = ImagePlan::new(1, (messages * FRAMES_PER_MESSAGE).max(2));
    let per_frame = image.tokens_per_frame();
    let mut load = Load { job: job.clone(), messages: Vec::new(), starts: Vec::new(), rows: 0, items: 0, bytes: 0 };
    for i in 0..messages {
        let (output, start, rows, items) = match stage {
            StageName::Vision => {
                let n = FRAMES_PER_MESSAGE;
                let shape = [n as usize, FRAME_SIDE, FRAME_SIDE, 3];
                let tensor = Tensor::new(Dtype::U8, &shape, noise(n as usize * FRAME_BYTES))?;
                let offset = i * n;
                let batch = FrameBatch {
                    v: wire::VERSION,
                    job: job.clone(),
                    plan: plan(Some(image.clone()), None),
                    offset,
                    tensor,
                };
                (Output::Frames(batch), offset * per_frame, n * per_frame, n)
            }
            StageName::Audio => {
                let audio = AudioPlan::new(messages * WINDOW_SAMPLES).context("no windows")?;
                let samples: Vec<i16> = noise(WINDOW_SAMPLES as usize).iter().map(|&b| i16::from(b) - 128).collect();
                let rows = audio.window_rows(i);
                let window = PcmWindow {
                    v: wire::VERSION,
                    job: job.clone(),
                    plan: plan(None, Some(audio)),
                    index: i,
                    tensor: Tensor::from_i16(&samples),
                };
                (Output::Pcm(window), i * rows, rows, 1)
            }
            StageName::Fuse => {
                let n = FRAMES_PER_MESSAGE * per_frame;
                let width = 4 * model.vision.hidden_size;
                let values =
                    noise(n as usize * width).into_iter().flat_map(|b| (f32::from(b) / 128.0 - 1.0).to_le_bytes());
                let tensor = Tensor::new(Dtype::F32, &[n as usize, width], values.collect::<Vec<u8>>())?;
                let batch = FeatureBatch {
                    v: wire::VERSION,
                    job: job.clone(),
                    plan: plan(Some(image.clone()), None),
                    modality: Modality::Image,
                    offset: i * n,
                    tensor,
                };
                (Output::Features(batch), i * n, n, n)
            }
            StageName::Decode | StageName::Llm => {
                bail!("stage-{stage} is measured with the whole pipeline: `vidi ask`")
            }
        };
        let bodies = output.encode(usize::MAX)?;
        load.starts.push(start);
        load.rows += rows;
        load.items += items;
        for (id, body) in bodies {
            load.bytes += body.len() as u64;
            load.messages.push((body, id));
        }
    }
    Ok(load)
}

/// As a table for a person.
pub fn print(stage: StageName, rows: &[Row]) {
    println!("stage-{stage}");
    println!(
        "{:>8} {:>9} {:>9} {:>9} {:>8} {:>9} {:>9}  busy share of each replica",
        "replicas", "msg/s", "items/s", "MB/s", "speedup", "p50 ms", "p99 ms"
    );
    let base = rows.first().map_or(1.0, |r| r.messages_per_s);
    for r in rows {
        let busy: Vec<String> = r.busy.iter().map(|b| format!("{b:.2}")).collect();
        println!(
            "{:>8} {:>9.1} {:>9.1} {:>9.1} {:>8.2} {:>9.0} {:>9.0}  {}",
            r.replicas,
            r.messages_per_s,
            r.items_per_s,
            r.bytes_per_s / 1e6,
            r.messages_per_s / base,
            r.p50_ms,
            r.p99_ms,
            busy.join(" ")
        );
    }
}

/// Throughput over replicas as an SVG picture, beside what perfect scaling would give.
///
/// # Errors
/// The file system's.
pub fn plot(stage: StageName, rows: &[Row], path: &Path) -> std::io::Result<()> {
    let (width, height, margin) = (480.0, 320.0, 48.0);
    let base = rows.first().map_or((1.0, 1.0), |r| (r.replicas as f64, r.messages_per_s));
    let ideal = |n: f64| base.1 * n / base.0;
    let most = rows.iter().map(|r| r.replicas).max().unwrap_or(1) as f64;
    let top = rows.iter().map(|r| r.messages_per_s).fold(ideal(most), f64::max);
    let x = |n: f64| margin + (width - 2.0 * margin) * n / most;
    let y = |v: f64| height - margin - (height - 2.0 * margin) * v / top;
    let measured: Vec<String> =
        rows.iter().map(|r| format!("{:.1},{:.1}", x(r.replicas as f64), y(r.messages_per_s))).collect();
    let labels: String = rows
        .iter()
        .map(|r| {
            let (px, py) = (x(r.replicas as f64), y(r.messages_per_s));
            format!(
                "<circle cx='{px:.1}' cy='{py:.1}' r='3'/><text x='{px:.1}' y='{:.1}' text-anchor='middle'>{:.1}</text>\
                 <text x='{px:.1}' y='{:.1}' text-anchor='middle'>{}</text>",
                py - 8.0,
                r.messages_per_s,
                height - margin + 16.0,
                r.replicas
            )
        })
        .collect();
    let svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' font-family='sans-serif' font-size='12'>\
         <rect width='100%' height='100%' fill='white'/>\
         <text x='{margin}' y='20'>stage-{stage}: messages a second over replicas (grey: perfect scaling)</text>\
         <polyline points='{:.1},{:.1} {:.1},{:.1}' stroke='#bbb' fill='none'/>\
         <polyline points='{}' stroke='#06c' fill='none' stroke-width='2'/>{labels}</svg>",
        x(base.0),
        y(base.1),
        x(most),
        y(ideal(most)),
        measured.join(" ")
    );
    std::fs::write(path, svg)
}
