//! The one run loop that connects a stage to the bus: pull, prefetch the next input while this one computes, publish,
//! acknowledge, report, honour cancel, drain.
//!
//! In reading order: [`inbox`] (pulling and keeping messages), [`engine`] (the thread that computes), [`port`] (what a
//! stage's outputs pass through), [`allowance`] (how many bytes are in hand), [`report`] (what is told to the job's
//! owner), [`control`] (cancel and drain), this file (a stage between two queues), [`service`] (how an instance is found
//! and watched), [`admission`] (how jobs wait), [`ending`] (how a job ends without an owner, and what is left then),
//! [`owner`] (stage-llm, which owns its jobs).

pub mod admission;
pub mod allowance;
pub mod control;
pub mod ending;
pub mod engine;
pub mod inbox;
pub mod owner;
pub mod port;
pub mod report;
pub mod service;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tracing::Instrument;

use crate::bus::events::EventLog;
use crate::bus::{Attempt, Bus, BusError, headers};
use crate::subject::StreamName;
use allowance::{Allowance, Share};
use control::{Control, InHand};
use engine::Engine;
use inbox::{Delivery, Inbox};
use port::{BusPort, Outlet};
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::event::Event;
use protocol::message::JobId;
use protocol::stage::{Stage, Stop};
use protocol::wire::{self, Message};
use service::{Card, Counters};

/// Turns true when the process shall finish what it has in hand and leave.
pub type Shutdown = watch::Receiver<bool>;

/// Messages in hand at a time, the one that computes and those whose outputs are being stored: so many of the largest
/// size, more of smaller ones, so that the next need not wait for the broker's word about the last.
const IN_HAND: usize = 2;
/// However small it is, a message in hand counts as so many bytes.
const LEAST_BYTES: usize = 1 << 20;
/// Outputs on their way to the broker at a time, of all messages in hand: counted as `IN_HAND` is, to bound memory.
const SENDING: usize = 4;
/// Broker trouble while a stage starts is waited out for so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause before a message that met trouble outside is tried again; it doubles with every try.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Runs a stage between its work queue and the next until `shutdown`.
///
/// # Errors
/// [`BusError`] when the queue cannot be set up. Later trouble is waited out.
pub async fn run<S>(bus: Bus, stage: S, card: Card, shutdown: Shutdown) -> Result<(), BusError>
where
    S: Stage + Send + 'static,
    for<'a> S::Input<'a>: Deserialize<'a>,
{
    let stream = StreamName::input_of(S::NAME);
    let mut stopping = shutdown.clone();
    tokio::select! {
        there = bus.await_stream(stream) => there?,
        _ = stopping.wait_for(|&s| s) => return Ok(()),
    }
    let bus = bus.with_outlet(S::NAME.as_str(), PATIENCE).await?;
    let queue = bus.work_queue(stream, S::NAME.as_str(), None).await?;
    let control = Control::start(&bus, S::NAME, shutdown.clone()).await?;
    let probe = stage.probe();
    let engine = Engine::start(S::NAME.as_str(), stage);
    let counters = Arc::new(Counters::default());
    let service = service::register(&bus, S::NAME, &card, &counters, vec![queue.clone()], probe).await?;
    let mut inbox = Inbox::start(&bus, queue, control.shutdown());
    let largest = bus.config().message_bytes;
    let in_hand = Allowance::new(IN_HAND * largest.max(LEAST_BYTES));
    let outlet = Outlet::new(Allowance::new(SENDING * largest), card.budget_bytes);
    let worker = Worker { bus: bus.clone(), counters: counters.clone(), outlet };
    let mut settling = JoinSet::new();
    tracing::info!(stage = %S::NAME, instance = bus.instance(), "ready");
    while let Some(delivery) = inbox.next().await {
        if control.is_draining() {
            delivery.give_back(Duration::ZERO).await;
            continue;
        }
        // One that was delivered before may kill this process: then nobody else's message is in hand.
        while delivery.redeliveries > 0 && !settling.is_empty() {
            settled(settling.join_next().await);
        }
        while let Some(outcome) = settling.try_join_next() {
            settled(Some(outcome));
        }
        let share = in_hand.take(delivery.message.payload.len().max(LEAST_BYTES), || false).await;
        let job = bus.subjects().job_of(&delivery.message.subject);
        let span = tracing::info_span!("message", stage = %S::NAME, job = job.as_ref().map(JobId::as_str));
        let Some(job) = job else {
            let error = JobError::new(ErrorKind::PoisonMessage, "the subject names no job");
            bury(&bus, S::NAME, None, &delivery, &error).await;
            Counters::add(&counters.unreadable, 1);
            delivery.done().await;
            continue;
        };
        let hand = control.begin(&job, delivery.redeliveries > 0).await;
        Counters::add(&counters.redelivered, u64::from(delivery.redeliveries > 0));
        if hand.flag().is_set() {
            drop(hand);
            Counters::add(&counters.dropped, 1);
            delivery.done().await;
            continue;
        }
        let taken = Taken { job, delivery, hand, share };
        let computed = worker.compute(&engine, &taken).instrument(span.clone()).await;
        settling.spawn(worker.clone().settle::<S>(taken, computed).instrument(span));
    }
    while !settling.is_empty() {
        settled(settling.join_next().await);
    }
    // A service that was never asked anything has nobody to tell.
    let _ = service.stop().await;
    control.drained().await;
    tracing::info!(stage = %S::NAME, "drained");
    Ok(())
}

/// A message that was being settled is; if that broke off, it comes again.
fn settled(outcome: Option<Result<(), JoinError>>) {
    if let Some(Err(panicked)) = outcome {
        tracing::error!(%panicked, "settling a message broke off. This is a bug.");
    }
}

/// A message that is worked on.
struct Taken {
    job: JobId,
    delivery: Delivery,
    hand: InHand,
    /// Held until it is settled.
    share: Option<Share>,
}

/// A message that the engine is done with: its outputs are on their way.
struct Computed {
    port: BusPort,
    /// Signs of life, until all outputs are stored.
    alive: JoinHandle<()>,
}

/// What working on messages takes, besides the engine.
#[derive(Clone)]
struct Worker {
    bus: Bus,
    counters: Arc<Counters>,
    outlet: Outlet,
}

impl Worker {
    /// Computes a message on the engine's thread.
    async fn compute<S>(&self, engine: &Engine<S>, taken: &Taken) -> Result<Computed, Stop>
    where
        S: Stage + Send + 'static,
        for<'a> S::Input<'a>: Deserialize<'a>,
    {
        let Taken { job, delivery, hand, share: _share } = taken;
        let counters = &self.counters;
        if delivery.exhausted(self.bus.config().max_deliver) {
            let tried = delivery.redeliveries;
            let text =
                format!("{tried} workers took the message and neither finished nor gave it back: they died of it");
            return Err(Stop::Failed(JobError::new(ErrorKind::PoisonMessage, text)));
        }
        let started = Instant::now();
        Counters::add(&counters.in_flight, 1);
        let body = delivery.message.payload.clone();
        let (bus, outlet, flag) = (self.bus.clone(), self.outlet.clone(), hand.flag().clone());
        let attempt = Attempt::of(delivery.message.headers.as_ref());
        let port = BusPort::new(bus, outlet, S::NAME, job.clone(), attempt, flag);
        let alive = port.heartbeat();
        let owner = job.clone();
        let outcome = engine.run(move |stage| process(stage, port, &body, &owner)).await;
        match outcome {
            Ok(port) => Ok(Computed { port, alive }),
            Err(stop) => {
                counters.in_flight.fetch_sub(1, Ordering::Relaxed);
                Counters::add(&counters.busy_us, started.elapsed().as_micros() as u64);
                alive.abort();
                Err(stop)
            }
        }
    }

    /// Settles a message: acknowledged once its outputs are stored, given back, or buried with its job failed.
    async fn settle<S: Stage>(self, taken: Taken, computed: Result<Computed, Stop>) {
        let Worker { bus, counters, .. } = self;
        let Taken { job, delivery, hand, share: _share } = taken;
        let outcome = match computed {
            Ok(Computed { port, alive }) => {
                let stored = port.stored().await;
                counters.in_flight.fetch_sub(1, Ordering::Relaxed);
                alive.abort();
                stored.map(|computed| Counters::add(&counters.busy_us, computed.as_micros() as u64))
            }
            Err(stop) => Err(stop),
        };
        if hand.flag().is_set() {
            // The job ended while its outputs were on their way: whoever cleared up behind it may have come too early.
            bus.purge_outputs(S::NAME, &job).await;
        }
        drop(hand);
        let error = match outcome {
            Ok(()) => {
                Counters::add(&counters.processed, 1);
                Counters::add(&counters.bytes_in, delivery.message.payload.len() as u64);
                return delivery.done().await;
            }
            Err(Stop::Cancelled) => {
                Counters::add(&counters.dropped, 1);
                return delivery.done().await;
            }
            Err(Stop::Unavailable(why)) if !delivery.last_try => {
                tracing::warn!(why, "given back");
                return delivery.retry_later(RETRY_PAUSE).await;
            }
            Err(Stop::Unavailable(why)) => {
                let tried = delivery.redeliveries + 1;
                JobError::new(ErrorKind::PoisonMessage, format!("given up after {tried} tries: {why}"))
            }
            Err(Stop::Failed(error)) => error,
        };
        let error = error.at(S::NAME);
        tracing::error!(%error, "job failed");
        Counters::add(&counters.failed, 1);
        if error.kind == ErrorKind::PoisonMessage {
            Counters::add(&counters.unreadable, u64::from(delivery.redeliveries == 0));
            bury(&bus, S::NAME, Some(&job), &delivery, &error).await;
        }
        fail(&bus, &job, error).await;
        delivery.done().await;
    }
}

/// What the engine does with one message; the port that comes back still has outputs on their way.
fn process<S>(stage: &mut S, mut port: BusPort, body: &[u8], owner: &JobId) -> Result<BusPort, Stop>
where
    S: Stage,
    for<'a> S::Input<'a>: Deserialize<'a>,
{
    let poison = |text| Stop::Failed(JobError::new(ErrorKind::PoisonMessage, text));
    let input: S::Input<'_> = wire::decode(body).map_err(|e| poison(format!("unreadable message: {e}")))?;
    if input.job() != Some(owner) {
        return Err(poison(format!("message of {:?} on the subject of {owner}", input.job())));
    }
    match stage.process(input, &mut port) {
        Ok(()) => {
            port.computed();
            Ok(port)
        }
        Err(stop) => {
            port.give_up();
            Err(stop)
        }
    }
}

/// Ends a job with `failed`, unless it has ended, and tells every stage to drop it; its owner clears up behind it. A job
/// that nobody has heard of gets no event: a stray message must not make one up.
async fn fail(bus: &Bus, job: &JobId, error: JobError) {
    let mut log = EventLog::open(bus, job).await;
    if log.last().is_none() {
        return;
    }
    if log.append(Event::Failed { error }).await.is_ok() {
        control::broadcast_end(bus, job).await;
    }
}

/// Keeps a message that no stage could use where an operator can look at it.
async fn bury(bus: &Bus, stage: StageName, job: Option<&JobId>, delivery: &Delivery, error: &JobError) {
    let name = job.map_or("unknown", JobId::as_str);
    let unknown = JobId::new("unknown").expect("a constant. This is a bug.");
    let id = format!("{name}/dead-{stage}/{}", delivery.sequence);
    let subject = bus.subjects().dead(stage, name);
    let body = delivery.message.payload.clone();
    tracing::error!(%error, subject, bytes = body.len(), "message kept as dead");
    let never = || false;
    if let Err(stop) = bus.store(subject, &id, &headers(job.unwrap_or(&unknown)), body, &never).await {
        tracing::error!(?stop, "dead message could not be kept");
    }
}
