//! Throughput of one stage that only forwards, beside plain publish and subscribe of the same bytes on the same broker, in
//! one run: `bus_throughput [MESSAGES] [BYTES] [file|memory]`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for developers: what it prints is read by who started it"
)]

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use config::{BusConfig, Storage};
use deploy::up::broker::{Broker, Options};
use futures::StreamExt;
use protocol::error::StageName;
use protocol::message::{FeatureBatch, JobId, Modality, Output, TokenBatch};
use protocol::plan::{ImagePlan, MediaPlan};
use protocol::stage::{Port, Stage, Stop};
use protocol::tensor::{Dtype, Tensor};
use protocol::wire;
use runtime::bus::{Bus, Role, headers};
use runtime::run::service::InstanceInfo;
use runtime::subject::StreamName;
use tests::capacity::monitor::cpu_seconds;

/// Time after which a message counts as lost.
const LOST: Duration = Duration::from_secs(30);
/// Number of values per row.
const WIDTH: usize = 1024;

/// Stage that forwards its input.
struct Idle;

impl Stage for Idle {
    const NAME: StageName = StageName::Fuse;
    type Input<'a> = FeatureBatch<'a>;

    fn units(input: &FeatureBatch<'_>) -> u64 {
        input.tensor.rows() as u64
    }

    fn process(&mut self, m: FeatureBatch<'_>, port: &mut dyn Port) -> Result<(), Stop> {
        let FeatureBatch { v, job, plan, modality, offset, tensor } = m;
        port.emit(Output::Tokens(TokenBatch { v, job, plan, modality, offset, tensor }))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let messages = args.next().map_or(Ok(64), |a| a.parse::<usize>())?;
    let bytes = args.next().map_or(Ok(4 << 20), |a| a.parse::<usize>())?;
    let data_storage = match args.next().as_deref() {
        None | Some("file") => Storage::File,
        Some("memory") => Storage::Memory,
        Some(other) => bail!("{other} is neither file nor memory"),
    };
    let dir = tempfile::tempdir()?;
    let broker = Broker::start(dir.path(), &Options::default()).await?;
    let config = BusConfig {
        url: broker.url().into(),
        data_storage,
        stream_bytes: 4 << 30,
        message_bytes: 8 << 20,
        ..BusConfig::default()
    };
    let bus = Bus::connect(&config, Role::Client, Duration::from_secs(5)).await?;
    bus.ensure_streams().await?;
    let rows = bytes / (4 * WIDTH);
    let bodies = [made(messages, rows, "warm-up")?, made(messages, rows, "measured")?];
    let total = bodies[0].iter().map(Bytes::len).sum::<usize>() as f64;
    println!("{messages} messages of {:.2} MB, {:.0} MB in all", total / messages as f64 / 1e6, total / 1e6);
    let pid = broker.pid().context("the broker has ended")?;
    let mut before = (cpu_seconds(pid)?, cpu_seconds(std::process::id())?);
    let mut report = |what: &str, seconds: f64| {
        let now = (cpu_seconds(pid)?, cpu_seconds(std::process::id())?);
        println!(
            "{what:<34} {seconds:>6.2} s {:>6.0} MB/s, CPU seconds: broker {:.2}, publisher, stage and reader {:.2}",
            total / seconds / 1e6,
            now.0 - before.0,
            now.1 - before.1
        );
        before = now;
        anyhow::Ok(seconds)
    };
    // The first round is the warm-up.
    for (round, bodies) in ["warm-up", "measured"].into_iter().zip(&bodies) {
        println!("{round}");
        let core = report("core publish, one core subscriber", core(&bus, &config, bodies).await?)?;
        let plain = report("stream publish, one stream reader", stream(&bus, &config, bodies, round).await?)?;
        let through = report("through a stage that only forwards", stage(&bus, &config, bodies, round).await?)?;
        println!(
            "the stage has {:.2} of the throughput of one stream, {:.2} of core NATS",
            plain / through,
            core / through
        );
    }
    Ok(())
}

fn job(name: &str) -> anyhow::Result<JobId> {
    Ok(JobId::new(name)?)
}

fn made(messages: usize, rows: usize, round: &str) -> anyhow::Result<Vec<Bytes>> {
    let frames = (messages * rows).div_ceil(25) as u64;
    let image = ImagePlan::new(1, frames.max(2000));
    let plan =
        MediaPlan { content_id: String::new(), duration_s: 1.0, image: Some(image), audio: None, notes: Vec::new() };
    (0..messages)
        .map(|i| {
            let tensor = Tensor::new(Dtype::F32, &[rows, WIDTH], vec![(i & 0xff) as u8; rows * WIDTH * 4])?;
            let offset = (i * rows) as u64;
            let batch = FeatureBatch {
                v: wire::VERSION,
                job: job(&format!("idle-{round}"))?,
                plan: plan.clone(),
                modality: Modality::Image,
                offset,
                tensor,
            };
            Ok(wire::encode(&batch).into())
        })
        .collect()
}

/// Seconds by core NATS; publisher and subscriber have a connection each, as two processes would have.
async fn core(bus: &Bus, config: &BusConfig, bodies: &[Bytes]) -> anyhow::Result<f64> {
    let other = Bus::connect(config, Role::Client, Duration::from_secs(5)).await?;
    let mut sub = other.client().subscribe("plain.core").await?;
    // `flush` only empties the client's buffer; once this message comes back, the server has the subscription.
    other.client().publish("plain.core", Bytes::new()).await?;
    tokio::time::timeout(LOST, sub.next()).await.context("no subscription")?;
    let started = Instant::now();
    // Core NATS drops messages for a slow subscriber, so the publisher must not run ahead.
    let ahead = std::sync::Arc::new(tokio::sync::Semaphore::new(8));
    let reader = tokio::spawn({
        let (n, ahead) = (bodies.len(), ahead.clone());
        async move {
            for _ in 0..n {
                let message = tokio::time::timeout(LOST, sub.next()).await.context("core NATS lost a message")?;
                message.context("subscription ended")?;
                ahead.add_permits(1);
            }
            anyhow::Ok(())
        }
    });
    for body in bodies {
        ahead.acquire().await?.forget();
        bus.client().publish("plain.core", body.clone()).await?;
    }
    reader.await??;
    Ok(started.elapsed().as_secs_f64())
}

/// Seconds by one stream, written and read again: the least that a queue between two stages costs.
async fn stream(bus: &Bus, config: &BusConfig, bodies: &[Bytes], round: &str) -> anyhow::Result<f64> {
    let job = job(&format!("plain-{round}"))?;
    let other = Bus::connect(config, Role::Client, Duration::from_secs(5)).await?;
    let subject = bus.subjects().tokens(&job);
    let mut read = other.follow(StreamName::Tokens, subject.clone());
    let started = Instant::now();
    let reader = tokio::spawn({
        let n = bodies.len();
        async move {
            for _ in 0..n {
                read.recv().await.context("reader ended")?;
            }
            anyhow::Ok(())
        }
    });
    publish(bus, &subject, &job, bodies).await?;
    reader.await??;
    let seconds = started.elapsed().as_secs_f64();
    bus.purge(StageName::Llm, &job).await;
    Ok(seconds)
}

async fn publish(bus: &Bus, subject: &str, job: &JobId, bodies: &[Bytes]) -> anyhow::Result<()> {
    let sent = futures::stream::iter(bodies.iter().cloned().enumerate()).map(|(i, body)| {
        let (bus, subject, job) = (bus.clone(), subject.to_owned(), job.clone());
        async move { bus.store(subject, &format!("{job}/x/{i}"), &headers(&job), body, std::future::pending()).await }
    });
    let outcomes: Vec<_> = sent.buffered(4).collect().await;
    ensure!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    Ok(())
}

async fn stage(bus: &Bus, config: &BusConfig, bodies: &[Bytes], round: &str) -> anyhow::Result<f64> {
    let on = Bus::connect(config, Role::Stage(StageName::Fuse), Duration::from_secs(5)).await?;
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let running = tokio::spawn(runtime::run::run(on, Idle, InstanceInfo::default(), stopping));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let job = job(&format!("idle-{round}"))?;
    let subject = bus.subjects().input(StageName::Fuse, &job);
    let reader = Bus::connect(config, Role::Client, Duration::from_secs(5)).await?;
    let mut read = reader.follow(StreamName::Tokens, bus.subjects().tokens(&job));
    let started = Instant::now();
    let n = bodies.len();
    let reading = tokio::spawn(async move {
        for _ in 0..n {
            read.recv().await.context("reader ended")?;
        }
        anyhow::Ok(())
    });
    let sent = futures::stream::iter(bodies.iter().cloned().enumerate()).map(|(i, body)| {
        let (bus, subject, job) = (bus.clone(), subject.clone(), job.clone());
        let id = format!("{job}/{round}/{i}");
        async move { bus.store(subject, &id, &headers(&job), body, std::future::pending()).await }
    });
    let outcomes: Vec<_> = sent.buffered(4).collect().await;
    ensure!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    tokio::time::timeout(Duration::from_secs(60), reading).await???;
    let seconds = started.elapsed().as_secs_f64();
    stop.send_replace(true);
    running.await??;
    bus.purge(StageName::Llm, &job).await;
    Ok(seconds)
}
