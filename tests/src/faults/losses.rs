//! What a broker loses: streams and consumers that are deleted, and a whole store.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use deploy::client;
use protocol::error::ErrorKind;
use protocol::event::Event;
use protocol::message::JobRequest;
use runtime::subject::StreamName;

use super::ends::endless;
use super::load::{self, Load, setup};
use super::{Case, Row, Scale, Seen};
use crate::dice::Dice;
use crate::harness::{Rig, Setup, terminal};

/// Settings of the rigs here: what is missing is asked for again after two seconds.
fn impatient(scale: &Scale) -> Setup {
    let mut setup = setup(scale);
    setup.set[1] = "bus.worker_patience_s=2".to_owned();
    setup
}

/// Checks that each job has one end, its answer or that the broker has lost it, or that its client is told of lost events;
/// counts the answers.
async fn ended(rig: &Rig, load: &Load, requests: &[JobRequest]) -> anyhow::Result<usize> {
    let mut answered = 0;
    for request in requests {
        let events = match rig.events(&request.job).await {
            // It had ended when its end was lost, which its client is told.
            Err(error) if error.to_string().contains("has lost the events") => continue,
            events => events?,
        };
        match terminal(&events).or_else(|_| events.last().map(|e| &e.event).context("no events"))? {
            Event::Result(_) => answered += 1,
            Event::Failed { error } => {
                ensure!(error.kind == ErrorKind::WorkerLost && !error.hint.is_empty(), "{}: {error:?}", request.job);
            }
            other => bail!("{}: {other:?}", request.job),
        }
        let ends = load::log_of(&rig.bus, &request.job).await.into_iter().filter(|e| e.event.is_terminal()).count();
        ensure!(ends == 1, "{}: {ends} ends", request.job);
    }
    let after = load.submit(&rig.bus, &format!("after-{answered}-{}", requests[0].job), 2).await?;
    load.check(rig, &after).await?;
    Ok(answered)
}

/// Every stream deleted in turn, and every consumer, while jobs are in flight and in line.
pub async fn deleted(scale: &Scale) -> Row {
    let expected = "every job answered or failed as worker_lost, once; later jobs answered; a stop takes seconds";
    let name = "streams and consumers deleted".to_owned();
    let case = Case { name, expected, bound_s: scale.bound(150.0) };
    case.run(async {
        let mut rig = Rig::start(impatient(scale)).await?;
        let load = Load::new(&rig).await?;
        let js = async_nats::jetstream::new(rig.bus.client().clone());
        let mut dice = Dice::new(scale.seed);
        let (mut jobs, mut answered) = (0, 0);
        for stream in StreamName::ALL {
            let on = stream.on(rig.bus.subjects());
            let requests = load.submit(&rig.bus, &format!("lost-{on}"), 4).await?;
            load::wait_for(&rig, &requests[3].job, |e| matches!(e, Event::Queued { .. })).await?;
            tokio::time::sleep(dice.pause(0, 300)).await;
            js.delete_stream(&on).await?;
            jobs += requests.len();
            answered += ended(&rig, &load, &requests).await.with_context(|| format!("{on} deleted"))?;
            let requests = load.submit(&rig.bus, &format!("consumers-{on}"), 4).await?;
            let names: Vec<String> = {
                use futures::TryStreamExt;
                js.get_stream(&on).await?.consumer_names().try_collect().await?
            };
            for consumer in names {
                js.delete_consumer_from_stream(&consumer, &on).await?;
            }
            load.check(&rig, &requests).await.with_context(|| format!("consumers of {on} deleted"))?;
        }
        let took = rig.stop().await?;
        ensure!(took < Duration::from_secs(10), "the stop took {took:?}");
        let injected = format!("{} streams and all consumers, {jobs} jobs about", StreamName::ALL.len());
        let observed = format!("{answered} answered, {} failed as worker_lost; stopped in {:.1} s", jobs - answered, took.as_secs_f64());
        Ok(Seen { injected, observed, seconds: None })
    })
    .await
}

/// A broker that comes back with an empty store, with jobs in flight and in line.
pub async fn empty_store(scale: &Scale) -> Row {
    let expected = "every job answered or failed as worker_lost, once; later jobs answered; a stop takes seconds";
    let name = "broker back with an empty store".to_owned();
    let case = Case { name, expected, bound_s: scale.bound(60.0) };
    case.run(async {
        let mut rig = Rig::start(impatient(scale)).await?;
        let load = Load::new(&rig).await?;
        let mut dice = Dice::new(scale.seed);
        let (mut jobs, mut answered) = (0, 0);
        for round in 0..(scale.jobs / 8).clamp(2, 6) {
            let requests = load.submit(&rig.bus, &format!("store-{round}"), 6).await?;
            load::wait_for(&rig, &requests[5].job, |e| matches!(e, Event::Queued { .. })).await?;
            tokio::time::sleep(dice.pause(0, 800)).await;
            // A job that has ended tells nothing any more, once its events are lost.
            let mut going = Vec::new();
            for request in requests {
                let events = load::log_of(&rig.bus, &request.job).await;
                if !events.last().is_some_and(|e| e.event.is_terminal()) {
                    going.push(request);
                }
            }
            rig.restart_broker_empty().await?;
            jobs += going.len();
            if let Some(last) = going.pop() {
                going.push(last);
                answered += ended(&rig, &load, &going).await.with_context(|| format!("round {round}"))?;
            }
        }
        let working = endless(&rig, "working")?;
        client::submit(&rig.bus, &working).await?;
        load::wait_for(&rig, &working.job, |e| matches!(e, Event::Planned { .. })).await?;
        rig.kill_broker().await?;
        let started = Instant::now();
        let took = rig.stop().await?;
        ensure!(started.elapsed() < Duration::from_secs(15), "without its broker the stop took {took:?}");
        let injected = format!("{jobs} jobs going when the store was lost; then a stop without a broker");
        let observed = format!("{answered} answered, {} failed as worker_lost; stopped in {:.1} s", jobs - answered, took.as_secs_f64());
        Ok(Seen { injected, observed, seconds: None })
    })
    .await
}
