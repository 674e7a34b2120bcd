//! The world of one job, for the engine's thread: stage-llm asks here for probes, tokens and the card, and speaks here to
//! its client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::Message;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::came::Came;
use super::world::World;
use crate::bus::events::EventLog;
use crate::bus::room::Room;
use crate::bus::{Attempt, Bus};
use crate::run::control::{self, CancelFlag};
use crate::run::ending;
use crate::subject::StreamName;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::event::Event;
use protocol::message::{DecodeRequest, JobId, ProbeReply, ProbeRequest, TokenBatch};
use protocol::plan::{AudioPlan, MediaInfo, MediaPlan, SAMPLE_RATE};
use protocol::stage::{JobPort, Stop};
use protocol::wire::{self, Message as _};

/// The stages that leave the card to the language model where they do not fit it together.
const ENCODERS: [StageName; 3] = [StageName::Vision, StageName::Audio, StageName::Fuse];
/// A text delta waits this long for more, so that the bus does not slow generation.
const TEXT_EVERY: Duration = Duration::from_millis(40);
/// One probe takes at most this long.
const PROBE_WAIT: Duration = Duration::from_secs(30);
/// An unanswered probe is asked for once more after this time, and again after twice as long: whoever had it may have been
/// killed, or the broker with it. The earlier ones may be answered all the same.
const PROBE_AGAIN: Duration = Duration::from_secs(4);
/// Whether anything of a job that hears nothing is still on its way is looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Room for tokens is asked for this often.
const ROOM_EVERY: Duration = Duration::from_millis(250);
/// Whether those who hold the room are still there is asked this often.
const HOLDERS_EVERY: Duration = Duration::from_secs(2);

/// A job's stages and its client, over the bus.
pub struct OwnerPort {
    bus: Bus,
    /// Where the bus lives; the engine's thread waits for it.
    runtime: Handle,
    job: JobId,
    world: Arc<World>,
    log: Arc<tokio::sync::Mutex<EventLog>>,
    /// This owner's own number: what it asks for again has ids that no other owner's has.
    claim: u64,
    /// Of one token on the bus.
    token_bytes: u64,
    tokens: Option<mpsc::Receiver<Message>>,
    /// Which tokens were shown, and the sequence of the last message.
    came: Came,
    shown: u64,
    /// What was asked of stage-decode, and may be once more.
    asked: Option<DecodeRequest>,
    looked: Instant,
    /// Text not yet told.
    delta: String,
    /// Bytes of text that an earlier owner of this job told already; none until they are counted.
    already_written: Option<usize>,
    flushed: Instant,
    /// Set if the job goes back to the line because others hold the room for its tokens.
    no_room: CancelFlag,
}

impl OwnerPort {
    /// The port of a job that this worker owns. Must be called in the runtime that the bus lives in.
    pub fn new(
        bus: &Bus,
        job: &JobId,
        world: Arc<World>,
        log: Arc<tokio::sync::Mutex<EventLog>>,
        claim: u64,
        token_bytes: u64,
    ) -> Self {
        OwnerPort {
            bus: bus.clone(),
            runtime: Handle::current(),
            job: job.clone(),
            world,
            log,
            claim,
            token_bytes,
            tokens: None,
            came: Came::default(),
            shown: 0,
            asked: None,
            looked: Instant::now(),
            delta: String::new(),
            already_written: None,
            flushed: Instant::now(),
            no_room: CancelFlag::default(),
        }
    }

    /// Set if the job goes back to the line because others hold the room for its tokens.
    pub fn no_room(&self) -> CancelFlag {
        self.no_room.clone()
    }

    fn append(&self, event: Event) -> Result<(), Stop> {
        self.runtime.block_on(async { self.log.lock().await.append(event).await }).map_err(|refused| {
            self.world.stop(&refused);
            Stop::Cancelled
        })
    }

    /// Tells the text that was held back.
    ///
    /// # Errors
    /// [`Stop::Cancelled`] when the job has ended, or has another owner.
    pub fn flush_text(&mut self) -> Result<(), Stop> {
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

    /// Once nothing was heard of the job's work for too long, asks for what is missing once more: a broker that was killed
    /// may have lost what it had accepted. Fails when nothing is heard for as long again.
    fn check_patience(&mut self) -> Result<(), Stop> {
        let patience = Duration::from_secs_f64(self.bus.config().worker_patience_s);
        let (stage, silent, silent_everywhere) = {
            let progress = self.world.progress();
            let stage = progress.behind();
            (stage, progress.silent(), progress.silent_for(stage))
        };
        if silent < patience {
            return Ok(());
        }
        // Work on other jobs counts while something of this one waits for its turn.
        if silent_everywhere < patience {
            if self.looked.elapsed() < LOOK_EVERY {
                return Ok(());
            }
            self.looked = Instant::now();
            if self.runtime.block_on(self.bus.is_on_its_way(&self.job, self.shown)) {
                return Ok(());
            }
        }
        let waited = patience.as_secs_f64();
        if let Some(mut request) = self.asked.take() {
            request.segment = self.came.missing(&request.plan);
            tracing::warn!(%stage, waited, segment = ?request.segment, "nothing comes; what is missing is asked for again");
            self.world.progress().alive();
            return self.send_request(&request, Attempt(self.claim));
        }
        let text = format!("no sign of life from stage-{stage} for {waited} s, twice: the missing was asked for again");
        Err(Stop::Failed(
            JobError::new(ErrorKind::WorkerLost, text)
                .at(stage)
                .hint(format!("look whether a stage-{stage} is running (`vidi status`), and at its log")),
        ))
    }

    fn send_request(&self, request: &DecodeRequest, attempt: Attempt) -> Result<(), Stop> {
        let subject = self.bus.subjects().input(StageName::Decode, &self.job);
        let id = attempt.id(format!("{}/decode/{}", self.job, request.segment.first_frame));
        let flag = self.world.flag().clone();
        let stop = || flag.is_set();
        let body = Bytes::from(wire::encode(request));
        self.runtime.block_on(self.bus.store(subject, &id, &attempt.headers(&self.job), body, &stop))
    }

    /// Asks any stage-decode worker for a probe, and again while none answers.
    async fn ask_probe(&self, body: Bytes) -> Result<async_nats::Message, String> {
        let mut asked = FuturesUnordered::new();
        let mut pause = PROBE_AGAIN;
        let answered = async {
            loop {
                let request = async_nats::Request::new().payload(body.clone()).timeout(Some(PROBE_WAIT));
                asked.push(self.bus.client().send_request(self.bus.subjects().probe(), request));
                let again = tokio::time::sleep(pause);
                tokio::pin!(again);
                pause *= 2;
                loop {
                    tokio::select! {
                        Some(reply) = asked.next() => match reply {
                            Err(error) if asked.is_empty() => return Err(error.to_string()),
                            Err(error) => tracing::debug!(%error, "a probe not answered"),
                            Ok(reply) => return Ok(reply),
                        },
                        () = &mut again => break,
                    }
                }
            }
        };
        let late = |_| Err(format!("no answer for {PROBE_WAIT:?}"));
        tokio::time::timeout(PROBE_WAIT, answered).await.unwrap_or_else(late)
    }

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

    /// Shows a batch of this job; false for what is none.
    fn show_tokens(
        &mut self,
        message: &Message,
        take: &mut dyn FnMut(TokenBatch<'_>) -> Result<(), Stop>,
    ) -> Result<bool, Stop> {
        if let Ok(info) = message.info() {
            self.shown = info.stream_sequence;
        }
        match wire::decode::<TokenBatch<'_>>(&message.payload) {
            Ok(batch) if batch.job() == Some(&self.job) => {
                self.world.progress().expect_half(batch.modality, &batch.plan);
                self.came.note(&batch);
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
        let body = Bytes::from(wire::encode(&ProbeRequest { v: wire::VERSION, video: video.to_owned() }));
        let give_up = Instant::now() + Duration::from_secs_f64(self.bus.config().worker_patience_s);
        loop {
            if self.cancelled() {
                return Err(Stop::Cancelled);
            }
            match self.runtime.block_on(self.ask_probe(body.clone())) {
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
                    tracing::debug!(error, "probe not answered yet");
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn request_decode(&mut self, request: DecodeRequest) -> Result<(), Stop> {
        self.reserve_room(&request.plan)?;
        self.world.progress().expect(&request.plan);
        self.send_request(&request, Attempt::default())?;
        self.asked = Some(request);
        Ok(())
    }

    fn next_tokens(&mut self, take: &mut dyn FnMut(TokenBatch<'_>) -> Result<(), Stop>) -> Result<(), Stop> {
        let runtime = self.runtime.clone();
        loop {
            if self.world.flag().is_set() {
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
        self.came = Came::default();
        self.shown = 0;
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
        self.world.flag().is_set()
    }
}
