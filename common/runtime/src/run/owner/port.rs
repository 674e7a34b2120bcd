//! World outside of one job, for the engine's thread: stage-llm asks here for probes, tokens and the GPU, and speaks here to
//! its client.
//!
//! [`asking`]: what it asks stage-decode for, and again.

mod asking;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::Message;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, mpsc};

use super::asked::Asked;
use super::lost::Work;
use super::probe::{self, Probed};
use super::state::JobState;
use super::text::{HeldText, Piece};
use crate::bus::FencingToken;
use crate::bus::events::EventLog;
use crate::bus::{Attempt, Bus};
use crate::run::checkpoint::Checkpoint;
use crate::run::control;
use crate::run::job_end::JobEnd;
use crate::run::service::Counters;
use crate::run::watchdog::Pulse;
use crate::subject::StreamName;
use protocol::control::Verb;
use protocol::coverage::VideoCoverage;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::event::Event;
use protocol::message::{DecodeRequest, JobId, TokenBatch};
use protocol::plan::MediaInfo;
use protocol::stage::{JobPort, Stop};
use protocol::wire::{self, Message as _};

/// Stages that leave the GPU to the language model where they do not fit it together.
const ENCODERS: [StageName; 3] = [StageName::Vision, StageName::Audio, StageName::Fuse];
/// Time after which waiting for tokens returns without some.
const TOKENS_WAIT: Duration = Duration::from_millis(100);

/// Tokens that an owner takes.
pub struct TokenKind {
    /// Bytes of one token on the bus.
    pub bytes: u64,
    /// Checkpoint that they are made with.
    pub checkpoint: Checkpoint,
}

/// Worker that owns a job.
pub struct Host {
    pub bus: Bus,
    /// Device that it computes on.
    pub device: String,
    /// Counts of it.
    pub counters: Arc<Counters>,
    /// Watch over its engine.
    pub pulse: Arc<Pulse>,
}

/// Stages and client of one job, over the bus.
pub struct OwnerPort {
    bus: Bus,
    /// Runtime of the bus; the engine's thread waits for it.
    runtime: Handle,
    job: JobId,
    state: Arc<JobState>,
    log: Arc<Mutex<EventLog>>,
    /// Token of this owner: what it asks for again has ids that no other owner's has.
    token: FencingToken,
    kind: TokenKind,
    tokens: Option<mpsc::Receiver<Message>>,
    /// Tokens that were shown.
    came: VideoCoverage,
    /// Sequence of the last message that was shown.
    shown: u64,
    /// Request to stage-decode.
    asked: Option<Asked>,
    /// Streams of the work that was asked for.
    work: Option<Work>,
    /// Whether the broker has lost tokens since.
    lost_tokens: bool,
    looked: Instant,
    text: HeldText,
    gave_way: bool,
    /// Whether the encoders have left the GPU to this job.
    alone: bool,
    /// Device of this worker: encoders on others need not leave it.
    device: String,
    /// What the job's file is, where that was asked before the job was begun; good for once.
    known: Option<MediaInfo>,
    /// Counts of this worker.
    counters: Arc<Counters>,
    /// Watch over the engine, whichever of its jobs it works on: a step of one is a step of all.
    pulse: Arc<Pulse>,
}

impl OwnerPort {
    /// Port of a job that this worker owns. Must be called in the runtime that the bus lives in.
    pub fn new(
        host: &Host,
        job: &JobId,
        state: Arc<JobState>,
        log: Arc<Mutex<EventLog>>,
        token: FencingToken,
        kind: TokenKind,
        known: Option<MediaInfo>,
    ) -> Self {
        OwnerPort {
            bus: host.bus.clone(),
            device: host.device.clone(),
            counters: host.counters.clone(),
            runtime: Handle::current(),
            job: job.clone(),
            state,
            log,
            token,
            kind,
            tokens: None,
            came: VideoCoverage::default(),
            shown: 0,
            asked: None,
            work: None,
            lost_tokens: false,
            looked: Instant::now(),
            text: HeldText::new(),
            gave_way: false,
            alone: false,
            known,
            pulse: host.pulse.clone(),
        }
    }

    /// Waits, on the engine's thread, for the world outside, which is no step of the work.
    fn wait<T>(&self, outside: impl Future<Output = T>) -> T {
        self.pulse.outside(&self.runtime, outside)
    }

    /// Whether the job goes back to the queue: others hold the capacity for its tokens, or its file takes long to look into.
    pub fn gave_way(&self) -> bool {
        self.gave_way
    }

    fn append(&self, event: Event) -> Result<(), Stop> {
        self.wait(async { self.log.lock().await.append(event).await }).map_err(|refused| {
            self.state.end().set(JobEnd::of(&refused));
            Stop::Cancelled
        })
    }

    /// Tells the text that was held back.
    ///
    /// # Errors
    /// [`Stop::Cancelled`] when the job has ended, or has another owner.
    pub fn flush_text(&mut self) -> Result<(), Stop> {
        let told = self.pulse.outside(&self.runtime, self.text.take(&self.log));
        told.into_iter().try_for_each(|Piece { delta, at, question }| self.append(Event::Text { delta, at, question }))
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
                self.kind.checkpoint.check(message.headers.as_ref(), self.bus.instance())?;
                self.state.progress().expect_modality(batch.modality, &batch.plan);
                self.came.note(&batch);
                take(batch)?;
                return Ok(true);
            }
            Ok(batch) => tracing::error!(foreign = ?batch.job(), "token batch dropped: it is of another job"),
            Err(error) => tracing::error!(%error, "token batch dropped: it is unreadable"),
        }
        self.bus.note_unreadable();
        Ok(false)
    }
}

impl JobPort for OwnerPort {
    fn probe(&mut self, video: &str) -> Result<MediaInfo, Stop> {
        if let Some(info) = self.known.take() {
            return Ok(info);
        }
        let counters = self.counters.clone();
        let others_wait = move || counters.waiting() > 0;
        match self.wait(probe::probe(&self.bus, &self.job, self.state.end(), video, &others_wait))? {
            Probed::Info(info) => Ok(*info),
            Probed::GoesOn { how_far, .. } => {
                self.gave_way = true;
                Err(Stop::Unavailable(format!("stage-decode looks into its file, and others wait: {how_far}")))
            }
        }
    }

    fn request_decode(&mut self, request: DecodeRequest) -> Result<(), Stop> {
        self.reserve_capacity(&request.plan)?;
        self.state.progress().expect(&request.plan);
        self.work = Some(self.wait(Work::look(&self.bus)));
        let stored = self.send_request(&request, Attempt::default())?;
        self.asked = Some(Asked::new(request, stored));
        Ok(())
    }

    fn next_tokens(&mut self, take: &mut dyn FnMut(TokenBatch<'_>) -> Result<(), Stop>) -> Result<(), Stop> {
        let runtime = self.runtime.clone();
        loop {
            let (bus, job) = (&self.bus, &self.job);
            let tokens = self.tokens.get_or_insert_with(|| {
                let _in_runtime = runtime.enter();
                bus.follow(StreamName::Tokens, bus.subjects().tokens(job))
            });
            let end = self.state.end();
            let came = self.pulse.outside(&runtime, async {
                tokio::select! {
                    biased;
                    () = end.wait() => Err(Stop::Cancelled),
                    message = tokens.recv() => match message {
                        Some(message) => Ok(Some(message)),
                        None => Err(Stop::Unavailable("the reader of tokens has ended".to_owned())),
                    },
                    () = tokio::time::sleep(TOKENS_WAIT) => Ok(None),
                }
            });
            let Some(message) = came? else {
                self.check_losses()?;
                return self.check_patience();
            };
            if self.show_tokens(&message, take)? {
                return Ok(());
            }
        }
    }

    fn rewind_tokens(&mut self) {
        self.tokens = None;
        self.came = VideoCoverage::default();
        self.shown = 0;
    }

    fn take_gpu(&mut self) -> Result<(), Stop> {
        let (bus, device, job) = (self.bus.clone(), self.device.clone(), self.job.clone());
        self.alone = true;
        self.wait(async move {
            for stage in ENCODERS {
                control::load_or_unload(&bus, Verb::Unload, stage, &device, &job).await.map_err(|why| {
                    let text = format!(
                        "the job fits only without stage-{stage} on the GPU ({device}), and it does not leave: {why}"
                    );
                    JobError::new(ErrorKind::DoesNotFit, text)
                        .hint("run the stages with `vidi up`, ask about a shorter span, or use smaller formats")
                })?;
            }
            Ok(())
        })
    }

    fn return_gpu(&mut self) {
        self.alone = false;
        let (bus, device, job) = (self.bus.clone(), self.device.clone(), self.job.clone());
        self.wait(async move {
            for stage in ENCODERS {
                if let Err(why) = control::load_or_unload(&bus, Verb::Load, stage, &device, &job).await {
                    tracing::warn!(%stage, why, "loading a stage again failed, left to the next job");
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
            Event::Text { delta, at, question } => {
                if self.text.push(&delta, at, question) {
                    self.flush_text()?;
                }
                Ok(())
            }
            // Told by the listener, which spaces them out.
            Event::Progress { stage, done, total } => {
                self.state.progress().set(stage, done, total);
                Ok(())
            }
            other => self.append(other),
        }
    }

    fn cancelled(&self) -> bool {
        self.pulse.step();
        self.state.end().is_set()
    }
}
