//! stage-llm's side of the loop: it takes jobs from the line, owns each until it has its terminal event, and ends it.
//!
//! In reading order: this file, [`port`] (what the engine's thread asks of the bus), [`came`] (which tokens have come),
//! [`world`] (what is known of a job while it is owned), [`progress`] (how far each stage is).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::Instrument;

use super::admission::{self, Line, SUBMITTED};
use super::control::{self, Control};
use super::ending;
use super::engine::Engine;
use super::inbox::Delivery;
use super::service::{self, Card, Counters};
use super::{RETRY_PAUSE, Shutdown};
use crate::bus::events::{EventLog, Refused, now_ms};
use crate::bus::{Bus, BusError};
use protocol::control::ControlRequest;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::event::{Event, JobResult};
use protocol::message::{JobId, JobRequest};
use protocol::stage::{Owner, Stop};
use protocol::wire::{self, Encoding};

mod came;
mod port;
mod progress;
mod world;

use port::OwnerPort;
use world::World;

/// Pause of a job that went back to the line for want of room, times the number of times, up to [`ROOM_PAUSES`].
const ROOM_PAUSE: Duration = Duration::from_secs(2);
const ROOM_PAUSES: u64 = 10;
/// Deliveries of one message that have claims of their own.
const CLAIMS_PER_MESSAGE: u64 = 1 << 16;

/// Runs stage-llm until `shutdown`.
///
/// # Errors
/// [`BusError`] when the queues cannot be set up. Later trouble is waited out.
pub async fn run<O>(bus: Bus, owner: O, card: Card, shutdown: Shutdown) -> Result<(), BusError>
where
    O: Owner + Send + 'static,
{
    bus.ensure_streams().await?;
    let control = Control::start(&bus, StageName::Llm, shutdown).await?;
    let line = Line::open(&bus).await?;
    admission::start(&bus, line.clone(), control.shutdown()).await?;
    tokio::spawn(ending::watch_deadlines(bus.clone(), control.shutdown()));
    tokio::spawn(ending::sweep(bus.clone(), control.shutdown()));
    tokio::spawn(ending::rescue(bus.clone(), control.shutdown()));
    let token_bytes = owner.token_bytes();
    let engine = Engine::start("llm", owner);
    let counters = Arc::new(Counters::default());
    let service = service::register(&bus, StageName::Llm, &card, &counters, line.queues(), None).await?;
    tracing::info!(stage = "llm", instance = bus.instance(), "ready");
    let mut draining = control.shutdown();
    while let Some(delivery) = line.next(&mut draining).await? {
        let job = bus.subjects().job_of(&delivery.message.subject);
        let span = tracing::info_span!("job", stage = "llm", job = job.as_ref().map(JobId::as_str));
        Counters::add(&counters.redelivered, u64::from(delivery.redeliveries > 0));
        counters.in_flight.store(1, Ordering::Relaxed);
        let started = Instant::now();
        let worker = Worker { bus: &bus, control: &control, engine: &engine, card: &card, token_bytes };
        let failed = worker.own(delivery).instrument(span).await;
        counters.in_flight.store(0, Ordering::Relaxed);
        Counters::add(&counters.busy_us, started.elapsed().as_micros() as u64);
        Counters::add(if failed { &counters.failed } else { &counters.processed }, 1);
    }
    // A service that was never asked anything has nobody to tell.
    let _ = service.stop().await;
    control.drained().await;
    tracing::info!(stage = "llm", "drained");
    Ok(())
}

/// What owning a job takes.
struct Worker<'a, O> {
    bus: &'a Bus,
    control: &'a Control,
    engine: &'a Engine<O>,
    card: &'a Card,
    /// Of one token on the bus.
    token_bytes: u64,
}

impl<O: Owner + Send + 'static> Worker<'_, O> {
    /// Answers one job, to its terminal event; true if it failed.
    async fn own(&self, delivery: Delivery) -> bool {
        let bus = self.bus;
        // Admission has read it; what cannot be read any more, or is another job's, was not put there by it.
        let of_subject = bus.subjects().job_of(&delivery.message.subject);
        let request = match wire::decode_any::<JobRequest>(&delivery.message.payload) {
            Ok(request) if Some(&request.job) == of_subject.as_ref() => request,
            other => {
                let text = other.map_or_else(|e| e.to_string(), |r| format!("a request of {}", r.job));
                let error = JobError::new(ErrorKind::PoisonMessage, format!("not put in line by admission: {text}"));
                bus.note_unreadable();
                super::bury(bus, StageName::Llm, of_subject.as_ref(), &delivery, &error).await;
                delivery.done().await;
                return true;
            }
        };
        let job = request.job.clone();
        let hand = self.control.begin(&job, delivery.redeliveries > 0).await;
        let mut log = EventLog::open(bus, &job).await;
        if log.ended().is_some() {
            drop(hand);
            delivery.done().await;
            ending::clear(bus, &job).await;
            return false;
        }
        log.write_as(Encoding::of(&delivery.message.payload));
        let claim = claim(&delivery);
        log.claim(claim);
        if let Some(by) = log.superseded() {
            drop(hand);
            return leave(delivery, by).await;
        }
        let deadline = deadline(&request, &delivery);
        let log = Arc::new(tokio::sync::Mutex::new(log));
        let world = World::new(hand.flag().clone());
        let watch = world.clone().watch(bus, &job, log.clone(), deadline).await;
        let port = OwnerPort::new(bus, &job, world.clone(), log.clone(), claim, self.token_bytes);
        let no_room = port.no_room();
        let outcome = match self.tries_left(&job, &delivery).await {
            0 => {
                let tried = delivery.redeliveries;
                let text =
                    format!("{tried} workers took the job and neither finished nor gave it back: they died of it");
                let error = JobError::new(ErrorKind::WorkerLost, text).hint("look at the log of stage-llm");
                super::bury(bus, StageName::Llm, Some(&job), &delivery, &error).await;
                Err(Stop::Failed(error))
            }
            _ => self.answer(request, port).await,
        };
        watch.abort();
        // It may be about to tell how far a stage is; that must not come after the job's last words.
        let _ = watch.await;
        drop(hand);
        if let Some(by) = world.superseded() {
            // Its flag is set, though the job has not ended.
            self.control.forget(&job);
            return leave(delivery, by).await;
        }
        let event = match outcome {
            Ok(result) => Event::Result(Box::new(world.complete(result, self.card.budget_bytes))),
            Err(Stop::Failed(error)) => Event::Failed { error: error.at(StageName::Llm) },
            Err(Stop::Unavailable(why)) if no_room.is_set() => {
                let returned = bus.note_returned(&job).await;
                tracing::info!(why, returned, "job given back to the line");
                delivery.give_back(ROOM_PAUSE * returned.min(ROOM_PAUSES) as u32).await;
                return false;
            }
            Err(Stop::Unavailable(why)) if self.tries_left(&job, &delivery).await > 1 => {
                tracing::warn!(why, "job given back");
                delivery.retry_later(RETRY_PAUSE).await;
                return false;
            }
            Err(Stop::Unavailable(why)) => {
                Event::Failed { error: JobError::new(ErrorKind::WorkerLost, why).at(StageName::Llm) }
            }
            Err(Stop::Cancelled) => self.cancelled(&job, &world).await,
        };
        let failed = matches!(event, Event::Failed { .. });
        match &event {
            Event::Failed { error } => tracing::warn!(%error, "job failed"),
            Event::Cancelled { by, .. } => tracing::info!(?by, "job cancelled"),
            _ => tracing::info!("job answered"),
        }
        if matches!(event, Event::Result(_)) {
            let last_words = world.progress().last_words();
            for word in last_words {
                // Refused, the result is refused too, and that is looked at.
                let _ = log.lock().await.append(word).await;
            }
        }
        match log.lock().await.append(event).await {
            Ok(()) => {}
            Err(Refused::Ended(other)) => {
                tracing::info!(kind = ?std::mem::discriminant(&other.0.event), "job had ended already");
            }
            Err(Refused::Superseded(by)) => {
                self.control.forget(&job);
                return leave(delivery, by).await;
            }
        }
        delivery.done().await;
        ending::clear(bus, &job).await;
        failed
    }

    async fn answer(&self, request: JobRequest, mut port: OwnerPort) -> Result<JobResult, Stop> {
        self.engine
            .run(move |owner| {
                let outcome = owner.answer(&request, &mut port);
                port.flush_text()?;
                outcome
            })
            .await
    }

    /// Tries that a job still has, this one included. That there was no room for its tokens counts as none.
    async fn tries_left(&self, job: &JobId, delivery: &Delivery) -> u64 {
        let most = self.bus.config().max_deliver.max(1) as u64;
        let left = most.saturating_sub(delivery.redeliveries);
        if left > 1 {
            return left;
        }
        (most + self.bus.returned(job).await).saturating_sub(delivery.redeliveries)
    }

    /// Stops all stages' work for a job, and says which had some.
    async fn cancelled(&self, job: &JobId, world: &World) -> Event {
        let started = Instant::now();
        let request = ControlRequest { v: wire::VERSION, job: Some(job.clone()), ended: true, ..Default::default() };
        let replies = control::gather(self.bus, "cancel", &request).await.unwrap_or_default();
        let mut stages_stopped: Vec<StageName> =
            replies.iter().filter(|r| r.stopped).map(|r| r.stage).chain([StageName::Llm]).collect();
        stages_stopped.sort();
        stages_stopped.dedup();
        Event::Cancelled { by: world.ended_by(), stages_stopped, ms: started.elapsed().as_millis() as u64 }
    }
}

/// Leaves a job to the worker that it was delivered to since; never a failure.
async fn leave(delivery: Delivery, newer_claim: u64) -> bool {
    tracing::warn!("the job was delivered to another worker meanwhile; left to it");
    // Its own delivery of the same message is that worker's to settle; of another message, this one is a duplicate.
    if newer_claim / CLAIMS_PER_MESSAGE != delivery.sequence {
        delivery.done().await;
    }
    false
}

/// Grows with every delivery of a job, and with every time that it is put in line.
fn claim(delivery: &Delivery) -> u64 {
    delivery.sequence.saturating_mul(CLAIMS_PER_MESSAGE).saturating_add(delivery.redeliveries + 1)
}

/// When the client stops waiting, as an instant of this process's clock.
fn deadline(request: &JobRequest, delivery: &Delivery) -> Option<tokio::time::Instant> {
    let submitted = delivery
        .message
        .headers
        .as_ref()
        .and_then(|h| h.get(SUBMITTED))
        .and_then(|v| v.as_str().parse::<u64>().ok())
        .unwrap_or(delivery.stored_ms);
    let waited = Duration::from_millis(now_ms().saturating_sub(submitted));
    let allowed = Duration::try_from_secs_f64(request.deadline_s?).ok()?;
    tokio::time::Instant::now().checked_add(allowed.saturating_sub(waited))
}
