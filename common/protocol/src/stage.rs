//! Contract of a stage: a plain struct, one message in, any number of messages out, no bus in sight. A stage may compute several
//! messages together, each with outputs of its own.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{ErrorKind, JobError, StageName};
use crate::event::{Event, JobResult};
use crate::message::{DecodeRequest, JobId, JobRequest, Output, TokenBatch};
use crate::plan::MediaInfo;
use crate::wire::Message;

/// Reason for which a stage stopped working on a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Stop {
    /// The job cannot succeed, however often this is tried.
    Failed(JobError),
    /// The job was cancelled; nobody waits for the rest.
    Cancelled,
    /// Something outside is away (the bus, a worker); the message is delivered again later.
    Unavailable(String),
}

impl Stop {
    /// Error of a process that cannot begin to serve.
    pub fn at_start(self) -> JobError {
        match self {
            Stop::Failed(error) => error,
            other => JobError::new(ErrorKind::Internal, format!("warming up: {other:?}")),
        }
    }
}

impl<E: Into<JobError>> From<E> for Stop {
    fn from(e: E) -> Self {
        Stop::Failed(e.into())
    }
}

/// Way out for a stage's outputs while it works on one message.
pub trait Port {
    /// Hands on one output; waits while whoever takes it is behind.
    ///
    /// # Errors
    /// [`Stop::Cancelled`] and [`Stop::Unavailable`]: return them at once.
    fn emit(&mut self, output: Output<'_>) -> Result<(), Stop>;

    /// Hands on an output as soon as it has come from its device. The stage may take its next message meanwhile, so
    /// that the device never waits for a copy; where nobody provides for that, this waits.
    ///
    /// # Errors
    /// As [`emit`](Self::emit); what went wrong on the device.
    fn emit_later(&mut self, later: Later) -> Result<(), Stop> {
        later.emit(&mut |output| self.emit(output))
    }

    /// True once nobody waits for this job any more. Long work between two outputs asks now and then.
    fn cancelled(&self) -> bool;
}

/// Taker of one output.
pub type Emit<'a> = dyn FnMut(Output<'_>) -> Result<(), Stop> + 'a;

/// Hands an output on once it is there.
type HandOn = dyn FnOnce(&mut Emit<'_>) -> Result<(), Stop> + Send;

/// Output whose rows are on their way from a device.
pub struct Later(Box<HandOn>);

impl Later {
    /// Output that `work` hands on once it has waited for the device.
    pub fn new(work: impl FnOnce(&mut Emit<'_>) -> Result<(), Stop> + Send + 'static) -> Self {
        Later(Box::new(work))
    }

    /// Waits for the rows and hands the output to `emit`; for any thread.
    ///
    /// # Errors
    /// `emit`'s; what went wrong on the device.
    pub fn emit(self, emit: &mut Emit<'_>) -> Result<(), Stop> {
        (self.0)(emit)
    }
}

/// Port to nowhere, to warm a stage up with before it is asked for anything. A GPU then has loaded what it computes with,
/// and its memory what a message takes: the first question is answered as fast as the next.
pub struct Nowhere;

impl Nowhere {
    /// Job that those messages belong to.
    pub fn job() -> JobId {
        JobId::new("warm-up").expect("a constant. This is a bug.")
    }
}

impl Port for Nowhere {
    fn emit(&mut self, _: Output<'_>) -> Result<(), Stop> {
        Ok(())
    }

    fn cancelled(&self) -> bool {
        false
    }
}

/// One of several messages that a stage takes together: its input, and the way out of its own outputs.
pub struct Work<'w, I> {
    /// The message.
    pub input: I,
    /// Takes the outputs of this message, and tells whether it is still wanted.
    pub port: &'w mut dyn Port,
}

/// Stage of the pipeline: a library that knows no bus. Outputs are a function of the input alone, so a message may be
/// processed twice, anywhere, with the same result.
pub trait Stage {
    /// Name in subjects, configuration and events.
    const NAME: StageName;
    /// Message that it takes.
    type Input<'a>: Message + Deserialize<'a>;

    /// Size of the work on a message, by which a busy engine is told from a hung one: frames and windows of sound, for
    /// stage-fuse rows.
    fn units(input: &Self::Input<'_>) -> u64;

    /// Turns one message into outputs.
    ///
    /// # Errors
    /// See [`Stop`].
    fn process(&mut self, input: Self::Input<'_>, port: &mut dyn Port) -> Result<(), Stop>;

    /// [`units`](Self::units) that it computes together at most; with 1, one message at a time. A message of more is computed in
    /// several steps.
    fn together(&self) -> u64 {
        1
    }

    /// Turns several messages, perhaps of different jobs, into exactly the outputs that [`process`](Self::process) makes of each:
    /// an outcome for every one, in their order. One that fails may fail the others with it: the caller then tries each alone.
    fn process_together<'a>(&mut self, works: Vec<Work<'a, Self::Input<'a>>>) -> Vec<Result<(), Stop>> {
        works.into_iter().map(|work| self.process(work.input, work.port)).collect()
    }

    /// Answer to probes, which come beside the queue; stage-decode alone has one.
    fn probe(&self) -> Option<Probe> {
        None
    }

    /// Files that it can see, where it is one of several that see different ones; stage-decode alone has some. What it then refuses
    /// as `media_not_found` or `forbidden_path` may be another instance's to do.
    fn files(&self) -> Option<Files> {
        None
    }

    /// Takes note of where files are that travel over the bus; stage-decode alone uses it.
    fn use_source(&mut self, _source: Arc<dyn FileSource>) {}
}

/// Function that tells what a media file is, without decoding it; any thread may ask. It takes as long as the file has
/// something new to read, tells `tell` every now and then how far it is, and ends with [`Stop::Cancelled`] once that says
/// that nobody waits any more.
pub type Probe = Arc<dyn Fn(&str, &mut Tell<'_>) -> Result<MediaInfo, Stop> + Send + Sync>;

/// Files that one instance can see.
#[derive(Clone)]
pub struct Files {
    /// Directories below which it opens files.
    pub roots: Vec<String>,
    /// Opens the file that a path or `file:` URI names, and tells its content ([`MediaInfo::content_id`]); any thread may ask.
    pub content: Content,
}

/// See [`Files::content`].
pub type Content = Arc<dyn Fn(&str) -> Result<String, JobError> + Send + Sync>;

/// Beginning of the name of a file that travels over the bus: `bus:NAME`.
pub const ON_THE_BUS: &str = "bus:";

/// Files that travel over the bus, by their names; any thread may ask, and waits for a broker that is away.
pub trait FileSource: Send + Sync {
    /// Fetches a file into one at `into`, with the modification time that it has, and tells `tell` how far it is.
    ///
    /// # Errors
    /// `media_not_found` if there is none of that name, `internal` for trouble with the disk; [`Stop::Cancelled`] once `tell` says
    /// that nobody waits any more.
    fn fetch(&self, name: &str, into: &std::path::Path, tell: &mut Tell<'_>) -> Result<(), Stop>;

    /// Size of a file in bytes.
    ///
    /// # Errors
    /// `media_not_found` if there is none of that name.
    fn size(&self, name: &str) -> Result<u64, Stop>;
}

/// Taker of how far a probe is; false once nobody waits for it.
pub type Tell<'a> = dyn FnMut(Looked) -> bool + 'a;

/// How far a probe is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// Bytes of the file that were read; some may have been read twice.
    pub read_bytes: u64,
    /// Size of the file; 0 before it is open.
    pub size_bytes: u64,
}

/// World outside of the owner of a job: the stages that prepare its tokens, and its client.
pub trait JobPort {
    /// Asks any stage-decode worker what a file is.
    ///
    /// # Errors
    /// The worker's refusal, or `worker_lost` when none answers.
    fn probe(&mut self, video: &str) -> Result<MediaInfo, Stop>;

    /// Asks stage-decode for a video, or a part of it. The same request twice is one.
    ///
    /// # Errors
    /// See [`Stop`].
    fn request_decode(&mut self, request: DecodeRequest) -> Result<(), Stop>;

    /// Waits for the next batch of this job's tokens and shows it to `take`, or returns without one after a short
    /// while. Batches come in any order, cut anywhere, and perhaps more than once.
    ///
    /// # Errors
    /// `take`'s, or the end of the job: cancelled, failed in another stage, timed out.
    fn next_tokens(&mut self, take: &mut dyn FnMut(TokenBatch<'_>) -> Result<(), Stop>) -> Result<(), Stop>;

    /// Shows `take` a batch that has come already; false if none has. For who has something else to do meanwhile.
    ///
    /// # Errors
    /// As [`next_tokens`](Self::next_tokens).
    fn more_tokens(&mut self, take: &mut dyn FnMut(TokenBatch<'_>) -> Result<(), Stop>) -> Result<bool, Stop>;

    /// Goes back to the job's first tokens: the bus still has them all.
    fn rewind_tokens(&mut self);

    /// Makes the encoders leave the GPU, once their work for this job is done, and keeps them away.
    ///
    /// # Errors
    /// `does_not_fit` where nobody can make them leave.
    fn take_gpu(&mut self) -> Result<(), Stop>;

    /// Lets the encoders come back.
    fn return_gpu(&mut self);

    /// Tells the client. Terminal events are the caller's business, not the stage's.
    ///
    /// # Errors
    /// See [`Stop`].
    fn event(&mut self, event: Event) -> Result<(), Stop>;

    /// True once nobody waits for this job any more.
    fn cancelled(&self) -> bool;
}

impl<T: JobPort + ?Sized> JobPort for &mut T {
    fn probe(&mut self, video: &str) -> Result<MediaInfo, Stop> {
        (**self).probe(video)
    }

    fn request_decode(&mut self, request: DecodeRequest) -> Result<(), Stop> {
        (**self).request_decode(request)
    }

    fn next_tokens(&mut self, take: &mut dyn FnMut(TokenBatch<'_>) -> Result<(), Stop>) -> Result<(), Stop> {
        (**self).next_tokens(take)
    }

    fn more_tokens(&mut self, take: &mut dyn FnMut(TokenBatch<'_>) -> Result<(), Stop>) -> Result<bool, Stop> {
        (**self).more_tokens(take)
    }

    fn rewind_tokens(&mut self) {
        (**self).rewind_tokens();
    }

    fn take_gpu(&mut self) -> Result<(), Stop> {
        (**self).take_gpu()
    }

    fn return_gpu(&mut self) {
        (**self).return_gpu();
    }

    fn event(&mut self, event: Event) -> Result<(), Stop> {
        (**self).event(event)
    }

    fn cancelled(&self) -> bool {
        (**self).cancelled()
    }
}

/// Job as its owner has it: its request, and its own way to the rest of the pipeline and to its client.
#[derive(Debug)]
pub struct OwnedJob<P> {
    /// Request of the client.
    pub request: JobRequest,
    /// World outside of this job.
    pub port: P,
}

/// Jobs that may be answered beside those that an owner is at, and the way out of each that is done.
pub trait Beside<P> {
    /// A job that seems to be about the same video as `request`, if one waits now; its file has been looked into already, so
    /// that its port's [`probe`](JobPort::probe) answers at once. The owner ends it or declines it.
    fn next(&mut self, request: &JobRequest) -> Option<OwnedJob<P>>;

    /// Takes a job back that is about another video after all, or has no room beside the others: it is answered in its turn.
    fn decline(&mut self, job: OwnedJob<P>);

    /// Takes a job that is done, with its result or the reason for which there is none.
    fn end(&mut self, job: OwnedJob<P>, outcome: Result<JobResult, Stop>);

    /// Hears which videos the owner keeps the keys and values of, in memory or on disk, the last one used first; said whenever
    /// that changes.
    fn keeps(&mut self, videos: Vec<KeptVideo>);
}

/// Video that an owner keeps, as the requests about it name it: before a file is looked into, nothing else is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptVideo {
    /// [`JobRequest::video`].
    pub video: String,
    /// [`JobRequest::span`].
    pub span: Option<[f64; 2]>,
    /// [`JobRequest::fps`].
    pub fps: f64,
}

impl KeptVideo {
    /// Video of a request.
    pub fn of(request: &JobRequest) -> Self {
        KeptVideo { video: request.video.clone(), span: request.span, fps: request.fps }
    }

    /// Whether a request names it.
    pub fn is_of(&self, request: &JobRequest) -> bool {
        self.video == request.video && self.span == request.span && self.fps == request.fps
    }
}

/// Stage that owns jobs: requests in, answers out, with the rest of the pipeline at its disposal.
pub trait Owner {
    /// Answers a job, and while it does those that come [`beside`](Beside::next) it. It returns once every job that it had
    /// was handed to [`Beside::end`] or [`Beside::decline`]; the first one always to `end`. Whatever it held for a job is
    /// released when that ends, but for what it keeps within its budget to answer the next one sooner.
    fn answer<P: JobPort>(&mut self, job: OwnedJob<P>, beside: &mut dyn Beside<P>);

    /// Tokens that pass the layers together at most, by which a busy engine is told from a hung one.
    fn step_tokens(&self) -> u64;

    /// Family of the model that it answers with, by which clients know its tasks; empty if there is none.
    fn family(&self) -> &str {
        ""
    }

    /// Names of the tasks that it answers.
    fn tasks(&self) -> Vec<String> {
        Vec::new()
    }

    /// Videos that it keeps, in memory and on disk; one may be in both.
    fn kept(&self) -> (usize, usize) {
        (0, 0)
    }

    /// Bytes that one image or audio token takes on the bus; with 0, no capacity is reserved for a job's tokens.
    fn token_bytes(&self) -> u64 {
        0
    }
}
