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
use super::ending;
use super::engine::Engine;
use super::inbox::Delivery;
use super::report::Report;
use super::service::{self, Card, Counters};
use super::{RETRY_PAUSE, Shutdown};
use crate::bus::events::{EventLog, Refused, now_ms};
use crate::bus::room::Room;
use crate::bus::{Bus, BusError};
use crate::error::{ErrorKind, JobError, StageName};
use crate::event::{CancelledBy, Event, JobResult, StageMemory};
use crate::memory;
use crate::message::{DecodeRequest, JobId, JobRequest, ProbeReply, ProbeRequest, TokenBatch};
use crate::plan::{AudioPlan, MediaInfo, MediaPlan, SAMPLE_RATE};
use crate::stage::{JobPort, Owner, Stop};
use crate::subject::StreamName;
use crate::wire::{self, Encoding, Message as _};

mod progress;
use progress::Progress;

/// The stages that leave the card to the language model where they do not fit it together.
const ENCODERS: [StageName; 3] = [StageName::Vision, StageName::Audio, StageName::Fuse];
/// A text delta waits this long for more, so that the bus does not slow generation.
const TEXT_EVERY: Duration = Duration::from_millis(40);
/// One probe takes at most this long.
const PROBE_WAIT: Duration = Duration::from_secs(30);
/// Room for tokens is asked for this often.
const ROOM_EVERY: Duration = Duration::from_millis(250);
/// Whether those who hold the room are still there is asked this often.
const HOLDERS_EVERY: Duration = Duration::from_secs(2);
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
        log.claim(claim(&delivery));
        if let Some(by) = log.superseded() {
            drop(hand);
            return leave(delivery, by).await;
        }
        let deadline = deadline(&request, &delivery);
        let log = Arc::new(tokio::sync::Mutex::new(log));
        let by = Mutex::new(None);
        let world =
            Arc::new(World { flag: hand.flag().clone(), superseded: Mutex::default(), by, progress: Mutex::default() });
        let watch = world.clone().watch(bus, &job, log.clone(), deadline).await;
        let port = OwnerPort {
            bus: bus.clone(),
            runtime: Handle::current(),
            job: job.clone(),
            world: world.clone(),
            log: log.clone(),
            token_bytes: self.token_bytes,
            tokens: None,
            delta: String::new(),
            already_written: None,
            flushed: Instant::now(),
            no_room: CancelFlag::default(),
        };
        let no_room = port.no_room.clone();
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
        drop(hand);
        let superseded = *world.superseded.lock().expect("no holder panics. This is a bug.");
        if let Some(by) = superseded {
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
        Event::Cancelled {
            by: world.by.lock().expect("no holder panics. This is a bug.").unwrap_or(CancelledBy::Client),
            stages_stopped,
            ms: started.elapsed().as_millis() as u64,
        }
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

/// What is known of a job while it is owned: shared by the engine's port and the task that listens for it.
struct World {
    flag: CancelFlag,
    /// The claim of a newer owner of the job, once it has written; then the flag is set too.
    superseded: Mutex<Option<u64>>,
    /// Who ended it, if not its client.
    by: Mutex<Option<CancelledBy>>,
    progress: Mutex<Progress>,
}

impl World {
    /// Listens to stages' reports, to events that others write, and to the clock; answers who asks for an owner.
    async fn watch(
        self: Arc<Self>,
        bus: &Bus,
        job: &JobId,
        log: Arc<tokio::sync::Mutex<EventLog>>,
        deadline: Option<tokio::time::Instant>,
    ) -> tokio::task::JoinHandle<()> {
        let reports = bus.client().subscribe(bus.subjects().all_reports()).await;
        let events = bus.client().subscribe(bus.subjects().events(job)).await;
        let asked = bus.client().subscribe(bus.subjects().owner(job)).await;
        let (bus, own) = (bus.clone(), bus.subjects().reports(job));
        tokio::spawn(async move {
            let (Ok(mut reports), Ok(mut events), Ok(mut asked)) = (reports, events, asked) else { return };
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            let deadline = deadline.map(tokio::time::sleep_until);
            tokio::pin!(deadline);
            loop {
                tokio::select! {
                    Some(message) = reports.next() => match wire::decode::<Report>(&message.payload) {
                        Ok(report) if message.subject.as_str() == own => self.progress().note(&report),
                        Ok(report) => self.progress().note_busy_elsewhere(report.stage),
                        Err(error) => {
                            bus.note_unreadable();
                            tracing::debug!(%error, "report not understood");
                        }
                    },
                    Some(message) = asked.next() => if let Some(to) = message.reply {
                        bus.tell(to.to_string(), bus.instance().as_bytes().to_vec()).await;
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
                            if let Err(refused) = log.lock().await.append(event).await {
                                self.stop(&refused);
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

    /// Stops the work: an event was refused.
    fn stop(&self, refused: &Refused) {
        if let Refused::Superseded(by) = refused {
            *self.superseded.lock().expect("no holder panics. This is a bug.") = Some(*by);
        }
        self.flag.set();
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().expect("no holder panics. This is a bug.")
    }

    /// Adds what the stages reported to what the owner knows.
    fn complete(&self, mut result: JobResult, budget_bytes: Option<u64>) -> JobResult {
        let progress = self.progress();
        if let Some(image) = &mut result.plan.image {
            image.replaced = progress.replaced();
        }
        result.timings.stages.extend(progress.timings());
        result.memory.extend(progress.memory());
        let own = StageMemory { peak_bytes: memory::usage().peak_bytes, budget_bytes: budget_bytes.unwrap_or(0) };
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
    /// Of one token on the bus.
    token_bytes: u64,
    tokens: Option<mpsc::Receiver<Message>>,
    /// Text not yet told.
    delta: String,
    /// Bytes of text that an earlier owner of this job told already; none until they are counted.
    already_written: Option<usize>,
    flushed: Instant,
    /// Set if the job goes back to the line because others hold the room for its tokens.
    no_room: CancelFlag,
}

impl OwnerPort {
    fn append(&self, event: Event) -> Result<(), Stop> {
        self.runtime.block_on(async { self.log.lock().await.append(event).await }).map_err(|refused| {
            self.world.stop(&refused);
            Stop::Cancelled
        })
    }

    fn flush_text(&mut self) -> Result<(), Stop> {
        self.flushed = Instant::now();
        let delta = std::mem::take(&mut self.delta);
        if delta.is_empty() {
            return Ok(());
        }
        // Counted only now: this owner has written `planned`, so that an earlier one is refused and adds no more.
        let told = match self.already_written {
            Some(told) => told,
            None => self.runtime.block_on(async { self.log.lock().await.text_written().await }),
        };
        let skip = told.min(delta.len());
        self.already_written = Some(told - skip);
        match delta.get(skip..) {
            Some(new) if !new.is_empty() => self.append(Event::Text { delta: new.to_owned() }),
            _ => Ok(()),
        }
    }

    /// Fails once no stage has given a sign of life for too long.
    fn check_patience(&self) -> Result<(), Stop> {
        let patience = Duration::from_secs_f64(self.bus.config().worker_patience_s);
        let progress = self.world.progress();
        let stage = progress.behind();
        // Work on other jobs counts: this one's turn will come.
        if progress.silent_for(stage) < patience {
            return Ok(());
        }
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

impl OwnerPort {
    /// Waits until the token stream has room for a plan's tokens. Where one that holds room has no owner, the job goes
    /// back to the line: whoever takes that one over may be us.
    fn reserve_room(&self, plan: &MediaPlan) -> Result<(), Stop> {
        let audio = plan.audio.as_ref().and_then(|a| AudioPlan::new(a.samples.saturating_add(SAMPLE_RATE)));
        let tokens = plan.image.as_ref().map_or(0, |i| i.tokens) + audio.map_or(0, |a| a.tokens);
        if self.token_bytes == 0 {
            return Ok(());
        }
        let bytes = self.bus.token_stream_bytes(tokens, self.token_bytes);
        let mut looked = Instant::now();
        loop {
            if self.cancelled() {
                return Err(Stop::Cancelled);
            }
            let holders = match self.runtime.block_on(self.bus.reserve_room(&self.job, bytes))? {
                Room::Reserved => return Ok(()),
                Room::HeldBy(holders) => holders,
            };
            if looked.elapsed() >= HOLDERS_EVERY {
                looked = Instant::now();
                if self.runtime.block_on(self.bus.release_ended(&holders)) {
                    continue;
                }
                for holder in &holders {
                    if !self.runtime.block_on(ending::owner_is_there(&self.bus, holder)) {
                        self.no_room.set();
                        let text = format!("job {holder} holds room for tokens and has lost its worker");
                        return Err(Stop::Unavailable(text));
                    }
                }
            }
            std::thread::sleep(ROOM_EVERY);
        }
    }
}

impl OwnerPort {
    /// Shows a batch of this job; false for what is none.
    fn show_tokens(
        &self,
        message: &Message,
        take: &mut dyn FnMut(TokenBatch<'_>) -> Result<(), Stop>,
    ) -> Result<bool, Stop> {
        match wire::decode::<TokenBatch<'_>>(&message.payload) {
            Ok(batch) if batch.job() == Some(&self.job) => {
                self.world.progress().expect_half(batch.modality, &batch.plan);
                take(batch)?;
                return Ok(true);
            }
            Ok(batch) => tracing::error!(foreign = ?batch.job(), "token batch of another job dropped"),
            Err(error) => tracing::error!(%error, "unreadable token batch dropped"),
        }
        self.bus.note_unreadable();
        Ok(false)
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
        self.reserve_room(&request.plan)?;
        self.world.progress().expect(&request.plan);
        let subject = self.bus.subjects().input(StageName::Decode, &self.job);
        let id = format!("{}/decode/{}", self.job, request.segment.first_frame);
        let flag = self.world.flag.clone();
        let stop = || flag.is_set();
        let body = Bytes::from(wire::encode(&request));
        self.runtime.block_on(self.bus.store(subject, &id, &self.job, body, &stop))
    }

    fn next_tokens(&mut self, take: &mut dyn FnMut(TokenBatch<'_>) -> Result<(), Stop>) -> Result<(), Stop> {
        let runtime = self.runtime.clone();
        loop {
            if self.world.flag.is_set() {
                return Err(Stop::Cancelled);
            }
            let (bus, job) = (&self.bus, &self.job);
            let tokens = self.tokens.get_or_insert_with(|| {
                let _in_runtime = runtime.enter();
                bus.follow(StreamName::Tokens, bus.subjects().tokens(job))
            });
            let wait = tokens.recv();
            let wait = async { tokio::time::timeout(Duration::from_millis(100), wait).await };
            let Ok(message) = runtime.block_on(wait) else {
                self.check_patience()?;
                return Ok(());
            };
            let Some(message) = message else {
                return Err(Stop::Unavailable("the token reader is gone".to_owned()));
            };
            if self.show_tokens(&message, take)? {
                return Ok(());
            }
        }
    }

    fn rewind_tokens(&mut self) {
        self.tokens = None;
    }

    fn take_card(&mut self) -> Result<(), Stop> {
        let (bus, job) = (self.bus.clone(), self.job.clone());
        self.runtime.block_on(async move {
            for stage in ENCODERS {
                control::load_or_unload(&bus, "unload", stage, Some(&job)).await.map_err(|why| {
                    let text =
                        format!("the job fits only without stage-{stage} on the card, and it does not leave: {why}");
                    JobError::new(ErrorKind::DoesNotFit, text)
                        .hint("run the stages with `vidi up`, ask about a shorter span, or use smaller formats")
                })?;
            }
            Ok(())
        })
    }

    fn return_card(&mut self) {
        let (bus, job) = (self.bus.clone(), self.job.clone());
        self.runtime.block_on(async move {
            for stage in ENCODERS {
                if let Err(why) = control::load_or_unload(&bus, "load", stage, Some(&job)).await {
                    tracing::warn!(%stage, why, "not told to come back; the next job does it");
                }
            }
        });
    }

    fn more_tokens(&mut self, take: &mut dyn FnMut(TokenBatch<'_>) -> Result<(), Stop>) -> Result<bool, Stop> {
        while let Some(Ok(message)) = self.tokens.as_mut().map(mpsc::Receiver::try_recv) {
            if self.show_tokens(&message, take)? {
                return Ok(true);
            }
        }
        Ok(false)
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
