//! Events that a client hears of its job: a gapless sequence of events that ends in exactly one terminal one.

mod cached;
mod result;

use serde::{Deserialize, Serialize};

use crate::error::{JobError, StageName};
use crate::job_id::JobId;
use crate::plan::MediaPlan;
use crate::wire::{Message, version};
use crate::wire_error::WireError;

pub use cached::Cached;
pub(crate) use result::is_zero;
pub use result::{
    Answer, Finish, JobResult, ModelName, StageMemory, StageTiming, Supported, TimeRange, TimedBox, Timings,
};

/// Event on `events.<job>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobEvent {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Job that the event is about.
    pub job: JobId,
    /// Place among the job's events, from 0 without gaps.
    pub seq: u64,
    /// Time of the event, Unix milliseconds.
    pub at_ms: u64,
    /// Event itself.
    #[serde(flatten)]
    pub event: Event,
}

impl Message for JobEvent {
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}

/// Way in which the job's stages share the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// All stages work at the same time.
    Streaming,
    /// Encoders finish and leave the GPU before the language model takes it.
    Phases,
}

/// Party that ended a job before it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CancelledBy {
    /// The client.
    Client,
    /// Its deadline.
    Deadline,
    /// An operator.
    Operator,
}

/// Event in the life of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// The broker holds it.
    Accepted {},
    /// It waits for a worker.
    Queued {
        /// Jobs before it.
        rank: u64,
    },
    /// Its totals are settled and fit.
    Planned {
        /// Totals of the video.
        plan: MediaPlan,
        /// Streaming or phases.
        mode: Mode,
        /// Where the video's keys and values are already.
        cached: Cached,
        /// Image and audio tokens that pass the language model's layers together at most, by the memory that the job leaves. None
        /// where none pass it, and in events of before 2026-11-27.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pass_rows: Option<u64>,
    },
    /// A stage came on.
    Progress {
        /// Stage that came on.
        stage: StageName,
        /// Frames, windows or tokens done.
        done: u64,
        /// Frames, windows or tokens in total.
        total: u64,
    },
    /// The answer grows.
    Text {
        /// Text that is new.
        delta: String,
        /// Bytes of this answer's text before it: a reader that has them already recognises a piece that it has read.
        /// 0 in events of before 2026-11-26, which do not say it.
        #[serde(default)]
        at: u64,
        /// Question that the answer is to, from 0; none in a job with one question.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        question: Option<u32>,
    },
    /// Terminal: the answer.
    Result(Box<JobResult>),
    /// Terminal: it did not work out.
    Failed {
        /// Reason for that.
        error: JobError,
    },
    /// Terminal: nobody wants it any more.
    Cancelled {
        /// Party that ended it.
        by: CancelledBy,
        /// Stages that dropped work for it.
        stages_stopped: Vec<StageName>,
        /// Milliseconds that stopping took.
        ms: u64,
    },
}

impl Event {
    /// Whether no event follows.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Event::Result(_) | Event::Failed { .. } | Event::Cancelled { .. })
    }

    /// What it is called on the wire, in `kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::Accepted {} => "accepted",
            Event::Queued { .. } => "queued",
            Event::Planned { .. } => "planned",
            Event::Progress { .. } => "progress",
            Event::Text { .. } => "text",
            Event::Result(_) => "result",
            Event::Failed { .. } => "failed",
            Event::Cancelled { .. } => "cancelled",
        }
    }
}
