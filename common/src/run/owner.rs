//! stage-llm's side of the loop: it takes jobs from the line, and each job's world reaches it through [`OwnerPort`].

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::jetstream::Message;
use bytes::Bytes;
use futures::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::Instrument;

use super::admission::{self, Line, SUBMITTED};
use super::control::{self, CancelFlag, Control, ControlRequest};
use super::engine::Engine;
use super::inbox::Delivery;
use super::report::Report;
use super::service::{self, Card, Counters};
use super::{RETRY_PAUSE, Shutdown};
use crate::bus::events::{Ended, EventLog, now_ms};
use crate::bus::{Bus, BusError};
use crate::error::{ErrorKind, JobError, StageName};
use crate::event::{CancelledBy, Event, JobResult, StageMemory};
use crate::memory;
use crate::message::{DecodeRequest, JobId, JobRequest, ProbeReply, ProbeRequest, TokenBatch};
use crate::plan::MediaInfo;
use crate::stage::{JobPort, Owner, Stop};
use crate::subject::StreamName;
use crate::wire::{self, Encoding, Message as _};

mod progress;
use progress::Progress;

/// A text delta waits this long for more, so that the bus does not slow generation.
const TEXT_EVERY: Duration = Duration::from_millis(40);
/// One probe takes at most this long.
const PROBE_WAIT: Duration = Duration::from_secs(30);

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
    let engine = Engine::start("llm", owner);
    let counters = Arc::new(Counters::default());
    let service = service::register(&bus, StageName::Llm, &card, &counters, line.queues(), None).await?;
    tracing::info!(stage = "llm", instance = bus.instance(), "ready");
    let mut draining = control.shutdown();
    while let Some(delivery) = line.next(&mut draining).await? {
        let job = wire::decode_any::<JobRequest>(&delivery.message.payload).ok().map(|r| r.job);
        let span = tracing::info_span!("job", stage = "llm", job = job.as_ref().map(JobId::as_str));
        Counters::add(&counters.redelivered, u64::from(delivery.redeliveries > 0));
        counters.in_flight.store(1, Ordering::Relaxed);
        let started = Instant::now();
        let failed = own(&bus, &control, &engine, delivery, card.budget_bytes).instrument(span).await;
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

/// Answers one job, to its terminal event; true if it failed.
async fn own<O: Owner + Send + 'static>(
    bus: &Bus,
    control: &Control,
    engine: &Engine<O>,
    delivery: Delivery,
    budget_bytes: Option<u64>,
) -> bool {
    // Admission has read it; what cannot be read any more was not put there by it.
    let Ok(request) = wire::decode_any::<JobRequest>(&delivery.message.payload) else {
        delivery.done().await;
        return true;
    };
    let job = request.job.clone();
    let flag = control.begin(&job).await;
    let mut log = EventLog::open(bus, &job).await;
    if log.ended().is_some() {
        control.finish();
        delivery.done().await;
        return false;
    }
    log.write_as(Encoding::of(&delivery.message.payload));
    let deadline = deadline(&request, &delivery);
    let already_written = if delivery.redeliveries > 0 { log.text_written().await } else { 0 };
    let log = Arc::new(tokio::sync::Mutex::new(log));
    let world = Arc::new(World { flag: flag.clone(), by: Mutex::new(None), progress: Mutex::default() });
    let watch = world.clone().watch(bus, &job, log.clone(), deadline).await;
    let mut port = OwnerPort {
        bus: bus.clone(),
        runtime: Handle::current(),
        job: job.clone(),
        world: world.clone(),
        log: log.clone(),
        tokens: None,
        delta: String::new(),
        already_written,
        flushed: Instant::now(),
    };
    let outcome = engine
        .run(move |owner| {
            let outcome = owner.answer(&request, &mut port);
            port.flush_text()?;
            outcome
        })
        .await;
    watch.abort();
    control.finish();
    let mut log = log.lock().await;
    let event = match outcome {
        Ok(result) => Event::Result(Box::new(world.complete(result, budget_bytes))),
        Err(Stop::Failed(error)) => Event::Failed { error: error.at(StageName::Llm) },
        Err(Stop::Unavailable(why)) if !delivery.last_try => {
            tracing::warn!(why, "job given back");
            delivery.give_back(RETRY_PAUSE).await;
            return false;
        }
        Err(Stop::Unavailable(why)) => {
            Event::Failed { error: JobError::new(ErrorKind::WorkerLost, why).at(StageName::Llm) }
        }
        Err(Stop::Cancelled) => {
            let started = Instant::now();
            let request = ControlRequest { v: wire::VERSION, job: Some(job.clone()), ..Default::default() };
            let replies = control::gather(bus, "cancel", &request).await.unwrap_or_default();
            let mut stages_stopped: Vec<StageName> =
                replies.iter().filter(|r| r.stopped).map(|r| r.stage).chain([StageName::Llm]).collect();
            stages_stopped.sort();
            stages_stopped.dedup();
            Event::Cancelled {
                by: world.by.lock().expect("no holder panics. This is a bug.").unwrap_or(CancelledBy::Client),
                stages_stopped,
                ms: started.elapsed().as_millis() as u64,
            }
        }
    };
    let failed = matches!(event, Event::Failed { .. });
    match &event {
        Event::Failed { error } => tracing::warn!(%error, "job failed"),
        Event::Cancelled { by, .. } => tracing::info!(?by, "job cancelled"),
        _ => tracing::info!("job answered"),
    }
    if let Err(Ended(other)) = log.append(event).await {
        tracing::info!(kind = ?std::mem::discriminant(&other.event), "job had ended already");
    }
    if failed {
        control::broadcast_cancel(bus, &job).await;
    }
    bus.purge(StageName::Llm, &job).await;
    delivery.done().await;
    failed
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

/// What is known of a job while it is owned: shared by the engine's port and the task that listens for it.
struct World {
    flag: CancelFlag,
    /// Who ended it, if not its client.
    by: Mutex<Option<CancelledBy>>,
    progress: Mutex<Progress>,
}

impl World {
    /// Listens to stages' reports, to events that others write, and to the clock.
    async fn watch(
        self: Arc<Self>,
        bus: &Bus,
        job: &JobId,
        log: Arc<tokio::sync::Mutex<EventLog>>,
        deadline: Option<tokio::time::Instant>,
    ) -> tokio::task::JoinHandle<()> {
        let reports = bus.client().subscribe(bus.subjects().reports(job)).await;
        let events = bus.client().subscribe(bus.subjects().events(job)).await;
        tokio::spawn(async move {
            let (Ok(mut reports), Ok(mut events)) = (reports, events) else { return };
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            let deadline = deadline.map(tokio::time::sleep_until);
            tokio::pin!(deadline);
            loop {
                tokio::select! {
                    Some(message) = reports.next() => match wire::decode::<Report>(&message.payload) {
                        Ok(report) => self.progress().note(&report),
                        Err(error) => tracing::debug!(%error, "report not understood"),
                    },
                    Some(message) = events.next() => {
                        let ended = wire::decode_any::<crate::event::JobEvent>(&message.payload)
                            .is_ok_and(|e| e.event.is_terminal());
                        if ended {
                            self.flag.set();
                        }
                    }
                    _ = tick.tick() => {
                        let due = self.progress().due();
                        for event in due {
                            if log.lock().await.append(event).await.is_err() {
                                self.flag.set();
                            }
                        }
                    }
                    _ = async { deadline.as_mut().as_pin_mut().expect("guarded").await }, if deadline.is_some() => {
                        *self.by.lock().expect("no holder panics. This is a bug.") = Some(CancelledBy::Deadline);
                        self.flag.set();
                        deadline.set(None);
                    }
                }
            }
        })
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().expect("no holder panics. This is a bug.")
    }

    /// Adds what the stages reported to what the owner knows.
    fn complete(&self, mut result: JobResult, budget_bytes: Option<u64>) -> JobResult {
        let progress = self.progress();
        result.timings.stages.extend(progress.timings());
        result.memory.extend(progress.memory());
        let own = StageMemory { peak_bytes: memory::resident().1, budget_bytes: budget_bytes.unwrap_or(0) };
        result.memory.insert(StageName::Llm, own);
        result
    }
}

/// The world of one job, for the engine's thread.
struct OwnerPort {
    bus: Bus,
    runtime: Handle,
    job: JobId,
    world: Arc<World>,
    log: Arc<tokio::sync::Mutex<EventLog>>,
    tokens: Option<mpsc::Receiver<Message>>,
    /// Text not yet told.
    delta: String,
    /// Bytes of text that an earlier owner of this job told already.
    already_written: usize,
    flushed: Instant,
}

impl OwnerPort {
    fn append(&self, event: Event) -> Result<(), Stop> {
        self.runtime.block_on(async { self.log.lock().await.append(event).await }).map_err(|Ended(_)| {
            self.world.flag.set();
            Stop::Cancelled
        })
    }

    fn flush_text(&mut self) -> Result<(), Stop> {
        self.flushed = Instant::now();
        let delta = std::mem::take(&mut self.delta);
        let skip = self.already_written.min(delta.len());
        self.already_written -= skip;
        match delta.get(skip..) {
            Some(new) if !new.is_empty() => self.append(Event::Text { delta: new.to_owned() }),
            _ => Ok(()),
        }
    }

    /// Fails once no stage has given a sign of life for too long.
    fn check_patience(&self) -> Result<(), Stop> {
        let patience = Duration::from_secs_f64(self.bus.config().worker_patience_s);
        let progress = self.world.progress();
        if progress.silent_for() < patience {
            return Ok(());
        }
        let stage = progress.behind();
        Err(Stop::Failed(
            JobError::new(
                ErrorKind::WorkerLost,
                format!("no sign of life from stage-{stage} for {} s", patience.as_secs_f64()),
            )
            .at(stage)
            .hint(format!("look whether a stage-{stage} is running (`vidi status`), and at its log")),
        ))
    }
}

impl JobPort for OwnerPort {
    fn probe(&mut self, video: &str) -> Result<MediaInfo, Stop> {
        let body = wire::encode(&ProbeRequest { v: wire::VERSION, video: video.to_owned() });
        let give_up = Instant::now() + Duration::from_secs_f64(self.bus.config().worker_patience_s);
        loop {
            if self.cancelled() {
                return Err(Stop::Cancelled);
            }
            let request = async_nats::Request::new().payload(body.clone().into()).timeout(Some(PROBE_WAIT));
            let asked = self.bus.client().send_request(self.bus.subjects().probe(), request);
            match self.runtime.block_on(asked) {
                Ok(reply) => {
                    return match wire::decode_any::<ProbeReply>(&reply.payload) {
                        Ok(ProbeReply::Info(info)) => Ok(info),
                        Ok(ProbeReply::Refused { error }) => Err(Stop::Failed(error.at(StageName::Decode))),
                        Err(e) => Err(Stop::Failed(JobError::new(ErrorKind::Internal, format!("probe: {e}")))),
                    };
                }
                Err(error) if Instant::now() >= give_up => {
                    return Err(Stop::Failed(
                        JobError::new(ErrorKind::WorkerLost, format!("no stage-decode answers a probe: {error}"))
                            .at(StageName::Decode)
                            .hint("look whether a stage-decode is running (`vidi status`), and at its log"),
                    ));
                }
                Err(error) => {
                    tracing::debug!(%error, "probe not answered yet");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn request_decode(&mut self, request: DecodeRequest) -> Result<(), Stop> {
        self.world.progress().expect(&request.plan);
        let subject = self.bus.subjects().input(StageName::Decode, &self.job);
        let id = format!("{}/decode/{}", self.job, request.segment.first_frame);
        let flag = self.world.flag.clone();
        let stop = || flag.is_set();
        let body = Bytes::from(wire::encode(&request));
        self.runtime.block_on(self.bus.store(subject, &id, &self.job, body, &stop))
    }

    fn next_tokens(&mut self, take: &mut dyn FnMut(TokenBatch<'_>) -> Result<(), Stop>) -> Result<(), Stop> {
        let (bus, job, runtime) = (&self.bus, &self.job, &self.runtime);
        let tokens = self.tokens.get_or_insert_with(|| {
            let _in_runtime = runtime.enter();
            bus.follow(StreamName::Tokens, bus.subjects().tokens(job))
        });
        loop {
            if self.world.flag.is_set() {
                return Err(Stop::Cancelled);
            }
            let wait = tokens.recv();
            let wait = async { tokio::time::timeout(Duration::from_millis(100), wait).await };
            let Ok(message) = runtime.block_on(wait) else {
                self.check_patience()?;
                return Ok(());
            };
            let Some(message) = message else {
                return Err(Stop::Unavailable("the token reader is gone".to_owned()));
            };
            match wire::decode::<TokenBatch<'_>>(&message.payload) {
                Ok(batch) if batch.job() == Some(job) => {
                    self.world.progress().expect_half(batch.modality, &batch.plan);
                    return take(batch);
                }
                Ok(batch) => tracing::error!(foreign = ?batch.job(), "token batch of another job dropped"),
                Err(error) => tracing::error!(%error, "unreadable token batch dropped"),
            }
        }
    }

    fn event(&mut self, event: Event) -> Result<(), Stop> {
        match event {
            Event::Text { delta } => {
                self.delta.push_str(&delta);
                if self.flushed.elapsed() >= TEXT_EVERY {
                    self.flush_text()?;
                }
                Ok(())
            }
            // Told by the listener, which spaces them out.
            Event::Progress { stage, done, total } => {
                self.world.progress().set(stage, done, total);
                Ok(())
            }
            other => self.append(other),
        }
    }

    fn cancelled(&self) -> bool {
        self.world.flag.is_set()
    }
}
