//! stage-llm's side of the loop: it takes jobs from the queue, owns each until it has its terminal event, and ends it.
//!
//! In reading order: this file, [`worker`] (a job in three steps), [`fencing`] (which owner is newer), [`claim`] (a job is
//! read and claimed), [`answer`] (it is answered), [`settle`] (it is ended or given back), [`clearing`]
//! (what it leaves behind is dropped), [`port`] (what the engine's
//! thread asks of the bus), with [`probe`], [`capacity`], [`text`] and [`missing`] (which part of a video to ask for
//! again), [`state`] (what is known of a job while it is owned), [`progress`] (how far each stage is).

mod answer;
mod asked;
mod capacity;
mod claim;
mod clearing;
mod fencing;
mod missing;
mod port;
mod probe;
mod progress;
mod renewal;
mod settle;
mod state;
mod text;
mod worker;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tracing::Instrument;

use super::admission;
use super::deadlines;
use super::engine::Engine;
use super::expiry::expire;
use super::inbox::Delivery;
use super::line::Line;
use super::listener::Listener;
use super::losses::{self, Roll};
use super::peers;
use super::rescue::rescue;
use super::service::{self, Counters, InstanceInfo};
use super::shutdown::Shutdown;
use super::sweep::sweep;
use super::watchdog::Watchdog;
use crate::bus::{Bus, BusError};
use clearing::Clearing;
pub use probe::media_info;
use protocol::error::StageName;
use protocol::message::JobId;
use protocol::stage::Owner;
use worker::{Settled, Worker};

/// Runs stage-llm until `shutdown`.
///
/// # Errors
/// [`BusError`] when the queues cannot be set up, or other processes of the pipeline [differ](peers::check). Later trouble is
/// waited out.
pub async fn run<O>(bus: Bus, owner: O, info: InstanceInfo, shutdown: Shutdown) -> Result<(), BusError>
where
    O: Owner + Send + 'static,
{
    peers::check(&bus, &info.checkpoint).await?;
    bus.ensure_streams().await?;
    // From now on events are dated by the broker's clock.
    bus.broker_ms().await;
    let listener = Listener::start(&bus, StageName::Llm, shutdown).await?;
    let line = Line::open(&bus).await?;
    let roll = Roll::default();
    let registry = listener.registry().clone();
    admission::start(&bus, line.clone(), roll.clone(), registry.clone(), listener.shutdown()).await?;
    tokio::spawn(losses::watch(bus.clone(), line.clone(), roll, registry, listener.shutdown()));
    tokio::spawn(expire(bus.clone(), listener.shutdown()));
    tokio::spawn(deadlines::watch(bus.clone(), listener.shutdown()));
    tokio::spawn(sweep(bus.clone(), listener.shutdown()));
    tokio::spawn(rescue(bus.clone(), listener.shutdown()));
    let (token_bytes, step_tokens) = (owner.token_bytes(), owner.step_tokens());
    let info = InstanceInfo { family: owner.family().to_owned(), ..info };
    let watchdog = Watchdog::start(StageName::Llm, &info.watchdog);
    let engine = Engine::start("llm", owner);
    let counters = Arc::new(Counters::default());
    let service = service::register(&bus, StageName::Llm, &info, &counters, line.queues(), None).await?;
    tracing::info!(stage = "llm", instance = bus.instance(), "ready");
    let clearing = Clearing::default();
    let mut draining = listener.shutdown();
    while let Some(delivery) = line.next(&mut draining).await? {
        let job = bus.subjects().job_of(&delivery.message.subject);
        let span = tracing::info_span!("job", stage = "llm", job = job.as_ref().map(JobId::as_str));
        Counters::add(&counters.redelivered, u64::from(delivery.redeliveries > 0));
        counters.in_flight.store(1, Ordering::Relaxed);
        let started = Instant::now();
        let worker = Worker {
            bus: &bus,
            listener: &listener,
            engine: &engine,
            info: &info,
            watchdog: &watchdog,
            counters: &counters,
            clearing: &clearing,
            token_bytes,
            step_tokens,
        };
        let settled = worker.own(delivery).instrument(span).await;
        counters.in_flight.store(0, Ordering::Relaxed);
        Counters::add(&counters.busy_us, started.elapsed().as_micros() as u64);
        let counter = match settled {
            Settled::Processed => &counters.processed,
            Settled::Failed => &counters.failed,
        };
        Counters::add(counter, 1);
    }
    // A service that was never asked anything has nobody to tell.
    let _ = service.stop().await;
    clearing.end().await;
    listener.drained().await;
    tracing::info!(stage = "llm", "drained");
    Ok(())
}

impl<O: Owner + Send + 'static> Worker<'_, O> {
    /// Owns one job, to its terminal event unless it goes elsewhere.
    async fn own(&self, delivery: Delivery) -> Settled {
        match self.claim(delivery).await {
            Ok(claimed) => self.settle(self.answer(claimed).await).await,
            Err(settled) => settled,
        }
    }
}
