//! What is on a worker's desk: jobs that wait, those that the engine is at, and what the tasks for them come to.

use std::collections::HashSet;
use std::time::Instant;

use crate::bus::BusError;
use crate::run::inbox::Delivery;
use crate::run::job_end::EndSignal;
use crate::run::owner::answer::Ready;
use crate::run::owner::held::Place;
use crate::run::owner::offers::Answered;
use crate::run::owner::worker::Settled;
use protocol::message::{JobId, JobRequest};
use protocol::stage::{KeptVideo, Stop};

/// Job that waits here, unclaimed.
pub struct Waiting {
    pub request: JobRequest,
    pub delivery: Delivery,
    /// Signal that it has come to its end, as one in line may.
    pub end: EndSignal,
    /// Whether a worker may have died of it: it is answered alone, so that no other is counted as tried with it.
    pub suspect: bool,
    /// Whether it cannot be made ready beside others: its file could not be looked into.
    pub unfit: bool,
    /// Time until which it waits for a worker that keeps its video.
    pub until: Option<Instant>,
    /// Time since when it waits here.
    pub since: Instant,
}

/// What the engine does.
pub enum Turn {
    /// Nothing.
    Free,
    /// A job is taken up for it.
    Beginning,
    /// It is at jobs.
    At(Batch),
}

/// Jobs that the engine is at.
pub struct Batch {
    pub jobs: HashSet<JobId>,
    /// Video of the first one.
    pub video: KeptVideo,
    /// Whether none may come beside: the first one may be what a worker died of.
    pub alone: bool,
    /// Whether the line has a job at its front that is to be answered alone.
    pub blocked: bool,
    pub began: Instant,
}

/// What a task has come to.
pub enum Done {
    /// A look at the line.
    Found(Found),
    /// A job is taken up, or settled already, as its turn has come.
    TakenUp {
        place: Place,
        job: JobId,
        alone: bool,
        taken: Result<Box<Ready>, Settled>,
    },
    /// A job is made ready beside others.
    Prepared {
        place: Place,
        job: JobId,
        prepared: Prepared,
    },
    /// The engine has returned.
    Returned(Result<(), Stop>),
    Settled(JobId, Settled),
    /// An offer was answered.
    Offered {
        place: Place,
        waiting: Box<Waiting>,
        to: String,
        answered: Answered,
    },
    /// The workers were counted.
    Counted(Result<Vec<String>, BusError>),
    /// Jobs have left.
    Left,
}

/// Outcome of a look at the line.
pub enum Found {
    Nothing,
    /// What was there was no job.
    Settled(Settled),
    Job(Box<Waiting>),
}

/// Outcome of making a job ready beside others.
pub enum Prepared {
    Ready(Box<Ready>),
    Settled(Settled),
    /// Its file could not be looked into: that is told when its turn comes.
    Unfit(Box<Waiting>),
}
