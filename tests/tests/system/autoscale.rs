//! What an autoscaler reads of the queues: KEDA's nats-jetstream scaler asks the broker's monitoring port for `/jsz` and takes
//! what one durable consumer has before it and in flight; the last sequence of the stream, where that consumer is not there.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use deploy::up::broker::{self, Broker};
use protocol::error::StageName;
use protocol::message::{FeatureBatch, JobId, Modality};
use protocol::plan::{ImagePlan, MediaPlan};
use protocol::stage::{Port, Stage, Stop};
use protocol::tensor::{Dtype, Tensor};
use protocol::wire;
use runtime::bus::queue::Queue;
use runtime::bus::{Bus, Role, headers};
use runtime::run::service::InstanceInfo;
use runtime::subject::StreamName;
use serde_json::Value;
use tests::harness::{brokers, root};
use tests::shipped::Shipped;
use tokio::sync::watch;

/// Longest time of anything that a test waits for.
const SOON: Duration = Duration::from_secs(30);
/// Messages that wait for the stage.
const MESSAGES: u64 = 9;

/// A door that is shut, and then open for good.
#[derive(Default)]
struct Door(Mutex<bool>, Condvar);

impl Door {
    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }
}

/// Stage that is done with a message once the door is open.
struct Waiting(Arc<Door>);

impl Stage for Waiting {
    const NAME: StageName = StageName::Fuse;
    type Input<'a> = FeatureBatch<'a>;

    fn units(input: &FeatureBatch<'_>) -> u64 {
        input.tensor.rows() as u64
    }

    fn process(&mut self, _: FeatureBatch<'_>, _: &mut dyn Port) -> Result<(), Stop> {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |open| !*open).unwrap());
        Ok(())
    }
}

/// What the broker says of the account's streams, as the scaler asks it.
fn jsz(broker: &Broker, account: &str) -> anyhow::Result<Value> {
    let address = broker.monitor().context("the broker shows no state")?.strip_prefix("http://").context("no http")?;
    let mut connection = TcpStream::connect(address)?;
    let path = format!("/jsz?acc={account}&consumers=true&config=true");
    write!(connection, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    ensure!(head.starts_with("HTTP/1.0 200"), "{answer}");
    Ok(serde_json::from_str(body)?)
}

/// Figure that the scaler divides by its threshold, and how much of it is in flight; none where it finds no stream.
/// [Its code](https://github.com/kedacore/keda/blob/main/pkg/scalers/nats_jetstream_scaler.go): `getMaxMsgLag`.
fn lag(said: &Value, account: &str, stream: &str, consumer: &str) -> Option<(u64, u64)> {
    let named = |list: &Value, name: &str| list.as_array()?.iter().find(|item| item["name"] == name).cloned();
    let stream = named(&named(&said["account_details"], account)?["stream_detail"], stream)?;
    match named(&stream["consumer_detail"], consumer) {
        Some(found) => {
            let in_flight = found["num_ack_pending"].as_u64()?;
            Some((found["num_pending"].as_u64()? + in_flight, in_flight))
        }
        None => Some((stream["state"]["last_seq"].as_u64()?, 0)),
    }
}

/// Waits until the figure of stage-fuse's queue is as it should be.
async fn until(broker: &Broker, what: &str, fits: impl Fn(u64, u64) -> bool) -> anyhow::Result<(u64, u64)> {
    let since = Instant::now();
    loop {
        let (lag, in_flight) = lag(&jsz(broker, "VIDI")?, "VIDI", "VIDI_FEATURES", "fuse").context("no such stream")?;
        if fits(lag, in_flight) {
            return Ok((lag, in_flight));
        }
        ensure!(since.elapsed() < SOON, "{what}: lag {lag}, of that {in_flight} in flight");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn publish(bus: &Bus) -> anyhow::Result<()> {
    let job = JobId::new("waits")?;
    let image = ImagePlan::new(1, 2000);
    let plan =
        MediaPlan { content_id: String::new(), duration_s: 1.0, image: Some(image), audio: None, notes: Vec::new() };
    for offset in 0..MESSAGES {
        let tensor = Tensor::new(Dtype::F32, &[1, 8], vec![0; 32])?;
        let batch = FeatureBatch {
            v: wire::VERSION,
            job: job.clone(),
            plan: plan.clone(),
            modality: Modality::Image,
            offset,
            tensor,
        };
        let (subject, body) = (bus.subjects().input(StageName::Fuse, &job), wire::encode(&batch));
        let (id, headers) = (format!("waits/{offset}"), headers(&job));
        let stored = bus.store(subject, &id, &headers, body.into(), std::future::pending()).await;
        ensure!(stored.is_ok(), "message {offset} not stored");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_autoscaler_reads_what_waits_for_a_stage_with_no_replica_with_one_and_with_four() -> anyhow::Result<()> {
    for program in brokers() {
        let shipped = Shipped::new()?;
        let broker = shipped.broker(program.as_deref()).await?;
        let config = shipped.bus(&broker)?;
        // As stage-llm, whose permissions must be enough for it.
        let owner = Bus::connect(&config, Role::Stage(StageName::Llm), SOON).await?;
        owner.ensure_streams().await?;
        let said = jsz(&broker, "VIDI")?;
        for stream in StreamName::ALL {
            for queue in Queue::of(stream, owner.subjects()) {
                let figure = lag(&said, "VIDI", &stream.on(owner.subjects()), &queue.name);
                ensure!(figure == Some((0, 0)), "{program:?}: {} of {stream:?}: {figure:?}", queue.name);
            }
        }
        let operator = Bus::connect(&config, Role::Operator, SOON).await?;
        publish(&operator).await?;
        let waits = until(&broker, "no replica", |lag, _| lag == MESSAGES).await?;
        ensure!(waits == (MESSAGES, 0), "{program:?}: without a replica: {waits:?}");
        let (door, mut replicas) = (Arc::new(Door::default()), Vec::new());
        let (stop, stopping) = watch::channel(false);
        for count in [1, 4] {
            while replicas.len() < count {
                let bus = Bus::connect(&config, Role::Stage(StageName::Fuse), SOON).await?;
                let stage = Waiting(door.clone());
                replicas.push(tokio::spawn(runtime::run::run(bus, stage, InstanceInfo::default(), stopping.clone())));
            }
            // What is in flight is not done: the figure stays, however many share it.
            let (lag, _) = until(&broker, "replicas", |_, in_flight| in_flight >= count as u64).await?;
            ensure!(lag == MESSAGES, "{program:?}: with {count} replicas: {lag}");
        }
        door.open();
        until(&broker, "all done", |lag, in_flight| (lag, in_flight) == (0, 0)).await?;
        // A durable that is not there would be taken for one with all that there ever was before it, and scale to the maximum.
        let missing = lag(&jsz(&broker, "VIDI")?, "VIDI", "VIDI_FEATURES", "nobody");
        ensure!(missing == Some((MESSAGES, 0)), "{program:?}: {missing:?}");
        stop.send_replace(true);
        for replica in replicas {
            replica.await??;
        }
        ensure!(until(&broker, "no replica again", |_, _| true).await? == (0, 0), "{program:?}: the queue is gone");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_comes_before_its_queue_waits_for_it_and_leaves_when_told_to() -> anyhow::Result<()> {
    for program in brokers() {
        let shipped = Shipped::new()?;
        let broker = shipped.broker(program.as_deref()).await?;
        let config = shipped.bus(&broker)?;
        let operator = Bus::connect(&config, Role::Operator, SOON).await?;
        operator.ensure_streams().await?;
        let js = async_nats::jetstream::new(operator.client().clone());
        js.delete_consumer_from_stream("fuse", "VIDI_FEATURES").await?;
        let door = Arc::new(Door::default());
        door.open();
        let run = async || {
            let bus = Bus::connect(&config, Role::Stage(StageName::Fuse), SOON).await?;
            let (stop, stopping) = watch::channel(false);
            let stage = Waiting(door.clone());
            anyhow::Ok((stop, tokio::spawn(runtime::run::run(bus, stage, InstanceInfo::default(), stopping))))
        };
        let (stop, early) = run().await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        ensure!(!early.is_finished(), "{program:?}: it did not wait");
        stop.send_replace(true);
        tokio::time::timeout(SOON, early).await???;
        let (stop, waiting) = run().await?;
        publish(&operator).await?;
        operator.ensure_streams().await?;
        until(&broker, "the queue is there", |lag, in_flight| (lag, in_flight) == (0, 0)).await?;
        stop.send_replace(true);
        tokio::time::timeout(SOON, waiting).await???;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_of_vidi_up_shows_its_state_where_that_is_asked_for_and_nowhere_else() -> anyhow::Result<()> {
    for program in brokers() {
        let dir = tempfile::tempdir()?;
        for monitor_port in [None, Some(0)] {
            let options = broker::Options { program: program.clone(), monitor_port, ..broker::Options::default() };
            let broker = Broker::start(dir.path(), &options).await?;
            ensure!(broker.monitor().is_some() == monitor_port.is_some(), "{:?}", broker.monitor());
            if monitor_port.is_some() {
                // Its clients have no accounts: the one that is there anyway.
                ensure!(jsz(&broker, "$G")?["account_details"].is_array());
            }
        }
    }
    Ok(())
}

/// Value of a key in a line of YAML.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    Some(line.trim().strip_prefix(key)?.strip_prefix(':')?.trim().trim_matches('"'))
}

#[test]
fn the_queues_that_deploy_kubernetes_scales_by_are_those_of_the_stages() -> anyhow::Result<()> {
    let text = std::fs::read_to_string(root().join("deploy/kubernetes/base/scaling.yaml"))?;
    let all = |key: &str| text.lines().filter_map(|line| value(line, key)).map(str::to_owned).collect::<Vec<_>>();
    let subjects = runtime::subject::Subjects::new(config::BusConfig::default().prefix);
    let stages = StageName::ALL.into_iter().filter(|&stage| stage != StageName::Llm);
    let ours = stages.map(|stage| (StreamName::input_of(stage).on(&subjects), stage.to_string()));
    let listed: Vec<(String, String)> = all("stream").into_iter().zip(all("consumer")).collect();
    ensure!(listed == ours.collect::<Vec<_>>(), "deploy/kubernetes/base/scaling.yaml: {listed:?}");
    ensure!(all("account").iter().all(|account| account == "VIDI") && all("account").len() == listed.len());
    Ok(())
}
