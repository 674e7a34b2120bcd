//! The one run loop that connects a stage to the bus: pull, prefetch the next input while this one computes, publish,
//! acknowledge, report, honour cancel, drain.
//!
//! In reading order: [`inbox`] (pulling and keeping messages), [`engine`] (the thread that computes), [`port`] (what a
//! stage's outputs pass through), [`report`] (what is told to the job's owner), [`control`] (cancel and drain), this
//! file (a stage between two queues), [`admission`] (how jobs wait), [`owner`] (stage-llm, which owns its jobs).

pub mod admission;
pub mod control;
pub mod engine;
pub mod inbox;
pub mod owner;

pub mod port;
pub mod report;

use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;
use tracing::Instrument;

use crate::bus::events::EventLog;
use crate::bus::{Bus, BusError};
use crate::error::{ErrorKind, JobError, StageName};
use crate::event::Event;
use crate::message::JobId;
use crate::stage::{Stage, Stop};
use crate::subject::StreamName;
use crate::wire::{self, Message};
use control::Control;
use engine::Engine;
use inbox::{Delivery, Inbox};
use port::BusPort;

/// Turns true when the process shall finish what it has in hand and leave.
pub type Shutdown = watch::Receiver<bool>;

/// Pause before a message that met trouble outside is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Runs a stage between its work queue and the next until `shutdown`.
///
/// # Errors
/// [`BusError`] when the queue cannot be set up. Later trouble is waited out.
pub async fn run<S>(bus: Bus, stage: S, budget_bytes: Option<u64>, shutdown: Shutdown) -> Result<(), BusError>
where
    S: Stage + Send + 'static,
    for<'a> S::Input<'a>: Deserialize<'a>,
{
    bus.ensure_streams().await?;
    let filter = bus.subjects().all_input(S::NAME);
    let stream = StreamName::input_of(S::NAME);
    let queue = bus.work_queue(stream, S::NAME.as_str(), filter).await?;
    let control = Control::start(&bus, S::NAME, shutdown.clone()).await?;
    let mut inbox = Inbox::start(&bus, queue, control.shutdown());
    let engine = Engine::start(S::NAME.as_str(), stage);
    tracing::info!(stage = %S::NAME, instance = bus.instance(), "ready");
    while let Some(delivery) = inbox.next().await {
        if control.is_draining() {
            delivery.give_back(Duration::ZERO).await;
            continue;
        }
        let job = bus.subjects().job_of(&delivery.message.subject);
        let span = tracing::info_span!("message", stage = %S::NAME, job = job.as_ref().map(JobId::as_str));
        let Some(job) = job else {
            let error = JobError::new(ErrorKind::PoisonMessage, "the subject names no job");
            bury(&bus, S::NAME, None, &delivery, &error).await;
            delivery.done().await;
            continue;
        };
        handle::<S>(&bus, &control, &engine, job, delivery, budget_bytes).instrument(span).await;
    }
    control.drained().await;
    tracing::info!(stage = %S::NAME, "drained");
    Ok(())
}

/// Works on one message and settles it: acknowledged, given back, or buried with its job failed.
async fn handle<S>(
    bus: &Bus,
    control: &Control,
    engine: &Engine<S>,
    job: JobId,
    delivery: Delivery,
    budget_bytes: Option<u64>,
) where
    S: Stage + Send + 'static,
    for<'a> S::Input<'a>: Deserialize<'a>,
{
    let flag = control.begin(&job).await;
    if flag.is_set() {
        control.finish();
        return delivery.done().await;
    }
    let body = delivery.message.payload.clone();
    let mut port = BusPort::new(bus.clone(), S::NAME, job.clone(), flag, budget_bytes);
    let alive = port.heartbeat();
    let owner = job.clone();
    let outcome = engine
        .run(move |stage| {
            let input: S::Input<'_> = wire::decode(&body).map_err(|e| {
                Stop::Failed(JobError::new(ErrorKind::PoisonMessage, format!("unreadable message: {e}")))
            })?;
            if input.job() != Some(&owner) {
                let text = format!("message of job {:?} on the subject of {owner}", input.job());
                return Err(Stop::Failed(JobError::new(ErrorKind::PoisonMessage, text)));
            }
            let outcome = stage.process(input, &mut port);
            port.finish(outcome)
        })
        .await;
    alive.abort();
    control.finish();
    match outcome {
        Ok(()) | Err(Stop::Cancelled) => delivery.done().await,
        Err(Stop::Unavailable(why)) if !delivery.last_try => {
            tracing::warn!(why, "given back");
            delivery.give_back(RETRY_PAUSE).await;
        }
        Err(stop) => {
            let error = match stop {
                Stop::Failed(error) => error,
                Stop::Unavailable(why) => JobError::new(ErrorKind::PoisonMessage, why),
                Stop::Cancelled => return delivery.done().await,
            };
            let error = error.at(S::NAME);
            tracing::error!(%error, "job failed");
            bury(bus, S::NAME, Some(&job), &delivery, &error).await;
            fail(bus, &job, error).await;
            delivery.done().await;
        }
    }
}

/// Ends a job with `failed`, unless it has ended, and tells every stage to drop it. A job that nobody has heard of
/// gets no event: a stray message must not make one up.
pub(crate) async fn fail(bus: &Bus, job: &JobId, error: JobError) {
    let mut log = EventLog::open(bus, job).await;
    if log.last().is_none() {
        return;
    }
    if log.append(Event::Failed { error }).await.is_ok() {
        bus.purge(StageName::Llm, job).await;
        control::broadcast_cancel(bus, job).await;
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
    if let Err(stop) = bus.store(subject, &id, job.unwrap_or(&unknown), body, &never).await {
        tracing::error!(?stop, "dead message could not be kept");
    }
}
