//! What a broker loses: streams and consumers that are deleted, and a whole store.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use deploy::client;
use deploy::up::broker::Broker;
use futures::TryStreamExt;
use protocol::error::ErrorKind;
use protocol::event::Event;
use protocol::message::JobRequest;
use runtime::subject::StreamName;
use tokio::task::JoinHandle;

use super::ends::endless;
use super::load::{Load, true_setup};
use super::look;
use super::{Case, Row, Scale, Seen};
use crate::dice::Dice;
use crate::harness::{Rig, Setup};

/// Longest time until a client hears of the end of a job that the broker may have lost.
const END_WAIT: Duration = Duration::from_secs(60);
/// Longest time until a stream that no job needs is there again: every two seconds somebody looks.
const MADE_WAIT: Duration = Duration::from_secs(10);

/// Settings of the rigs here: what is missing is asked for again after five seconds, and after ten the job fails. A stage
/// notices within six that its pull was lost with the broker.
fn impatient(scale: &Scale) -> Setup {
    let mut setup = true_setup(scale);
    setup.set[1] = "bus.worker_patience_s=5".to_owned();
    setup
}

/// Ends of jobs, as clients hear them who follow from now on.
struct Clients(Vec<(JobRequest, JoinHandle<anyhow::Result<Event>>)>);

impl Clients {
    async fn follow(rig: &Rig, requests: &[JobRequest]) -> anyhow::Result<Self> {
        let mut clients = Vec::new();
        for request in requests {
            let mut events = client::Events::new(&rig.bus, &request.job);
            // What was told before the loss has been heard.
            let mut event = events.next().await?.event;
            let following = tokio::spawn(async move {
                while !event.is_terminal() {
                    event = events.next().await?.event;
                }
                Ok(event)
            });
            clients.push((request.clone(), following));
        }
        Ok(Clients(clients))
    }

    /// Checks that each client hears of an end, the answer or that the broker has lost the job, and that no job has two;
    /// counts the answers.
    async fn ended(self, rig: &Rig, load: &Load) -> anyhow::Result<usize> {
        let mut answered = 0;
        let name = self.0.first().map_or(String::new(), |(request, _)| request.job.to_string());
        for (request, following) in self.0 {
            let end = tokio::time::timeout(END_WAIT, following).await;
            match end.with_context(|| format!("{} has no end; {}", request.job, look::tail(rig)))?? {
                Ok(Event::Result(_)) => answered += 1,
                Ok(Event::Failed { error }) if error.kind == ErrorKind::WorkerLost && !error.hint.is_empty() => {}
                // It had ended when its end was lost.
                Err(error) if error.to_string().contains("has lost the events") => {}
                other => bail!("{}: {other:?}", request.job),
            }
            let log = look::log_of(&rig.bus, &request.job).await;
            let ends = log.iter().filter(|e| e.event.is_terminal()).count();
            ensure!(ends <= 1, "{}: {ends} ends", request.job);
        }
        let after = load.submit(&rig.bus, &format!("after-{name}"), 2).await?;
        load.check(rig, &after).await?;
        Ok(answered)
    }
}

/// Deletes a stream. nats-server 2.9.10 may fail halfway (a consumer's files come back while it removes them).
async fn delete(js: &async_nats::jetstream::Context, stream: &str) -> anyhow::Result<()> {
    for _ in 0..10 {
        if js.delete_stream(stream).await.is_ok() || js.get_stream(stream).await.is_err() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    bail!("{stream} cannot be deleted")
}

/// Names of a stream's consumers, once it has been made again.
async fn consumers(js: &async_nats::jetstream::Context, stream: &str) -> anyhow::Result<Vec<String>> {
    let until = Instant::now() + MADE_WAIT;
    loop {
        match js.get_stream(stream).await {
            Ok(found) => return Ok(found.consumer_names().try_collect().await?),
            Err(error) if Instant::now() > until => return Err(error).context("not made again"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Every stream deleted in turn, and every consumer, while jobs are in flight and in line.
pub async fn deleted(scale: &Scale) -> Row {
    let expected = "every client hears of one end: the answer, worker_lost, or that its events are lost; later jobs answered; a stop takes seconds";
    let name = "streams and consumers deleted".to_owned();
    let case = Case { name, expected, bound_s: scale.bound(200.0) };
    case.run(async {
        let mut rig = Rig::start(impatient(scale)).await?;
        let load = Load::new(&rig).await?;
        let js = async_nats::jetstream::new(rig.bus.client().clone());
        let mut dice = Dice::new(scale.seed);
        // One that is worked on, and others in line.
        let at_once = (scale.jobs / 4).clamp(2, 4);
        let (mut jobs, mut answered) = (0, 0);
        for stream in StreamName::ALL {
            let on = stream.on(rig.bus.subjects());
            let requests = load.submit(&rig.bus, &format!("lost-{on}"), at_once).await?;
            let clients = Clients::follow(&rig, &requests).await?;
            tokio::time::sleep(dice.pause(0, 300)).await;
            delete(&js, &on).await?;
            jobs += requests.len();
            answered += clients.ended(&rig, &load).await.with_context(|| format!("{on} deleted"))?;
            let names = consumers(&js, &on).await?;
            if names.is_empty() {
                continue;
            }
            let requests = load.submit(&rig.bus, &format!("consumers-{on}"), at_once).await?;
            for consumer in names {
                js.delete_consumer_from_stream(&consumer, &on).await?;
            }
            load.check(&rig, &requests).await.with_context(|| format!("consumers of {on} deleted"))?;
        }
        let took = rig.stop().await?;
        ensure!(took < Duration::from_secs(10), "the stop took {took:?}");
        let injected = format!("{} streams and all consumers, {jobs} jobs about", StreamName::ALL.len());
        let observed = format!(
            "{answered} answered, {} failed as worker_lost; stopped in {:.1} s",
            jobs - answered,
            took.as_secs_f64()
        );
        Ok(Seen { injected, observed, seconds: None })
    })
    .await
}

/// What comes of something that needs a broker, and the one that was started meanwhile, as a supervisor would, where it crashed.
///
/// nats-server 2.9.10 crashes where a message of a stream is asked for while another client makes the stream: the stream has no store
/// yet. Those who follow jobs ask when a store was lost. No other crash is passed over.
async fn kept_up<T>(
    rig: &Rig,
    waiting: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(anyhow::Result<T>, Option<Broker>)> {
    let mut waiting = std::pin::pin!(waiting);
    let how = tokio::select! {
        outcome = &mut waiting => return Ok((outcome, None)),
        how = rig.broker.ended() => how,
    };
    ensure!(how.contains("panic: ") && how.contains("jsMsgGetRequest"), "the broker ended: {how}");
    let next = rig.next_broker().await.context(how)?;
    Ok((waiting.await, Some(next)))
}

/// A broker that comes back with an empty store, with jobs in flight and in line.
pub async fn empty_store(scale: &Scale) -> Row {
    let expected = "every client hears of one end: the answer, worker_lost, or that its events are lost; later jobs answered; a stop takes seconds";
    let name = "broker back with an empty store".to_owned();
    let case = Case { name, expected, bound_s: scale.bound(150.0) };
    case.run(async {
        let mut rig = Rig::start(impatient(scale)).await?;
        let load = Load::new(&rig).await?;
        let mut dice = Dice::new(scale.seed);
        let (mut jobs, mut answered, mut crashes) = (0, 0, 0);
        for round in 0..(scale.jobs / 8).clamp(2, 6) {
            let requests = load.submit(&rig.bus, &format!("store-{round}"), 6).await?;
            let clients = Clients::follow(&rig, &requests).await?;
            tokio::time::sleep(dice.pause(0, 800)).await;
            rig.restart_broker_empty().await?;
            jobs += requests.len();
            let (heard, next) = kept_up(&rig, clients.ended(&rig, &load)).await?;
            answered += heard.with_context(|| format!("round {round}"))?;
            if let Some(broker) = next {
                rig.broker = broker;
                crashes += 1;
            }
        }
        let working = endless(&rig, "working")?;
        client::submit(&rig.bus, &working).await?;
        look::wait_for(&rig, &working.job, |e| matches!(e, Event::Planned { .. })).await?;
        rig.kill_broker().await?;
        let started = Instant::now();
        let took = rig.stop().await?;
        ensure!(started.elapsed() < Duration::from_secs(15), "without its broker the stop took {took:?}");
        let injected = format!("{jobs} jobs going when the store was lost; then a stop without a broker");
        let crashed = match crashes {
            0 => String::new(),
            _ => format!("; the broker crashed by itself {crashes} times and was started again"),
        };
        let observed = format!(
            "{answered} answered, {} failed as worker_lost; stopped in {:.1} s{crashed}",
            jobs - answered,
            took.as_secs_f64()
        );
        Ok(Seen { injected, observed, seconds: None })
    })
    .await
}
