//! `vidi ask`: questions, their progress, their answers.
//!
//! In reading order: this file (the job from its submission to its end), [`progress`] (what is shown meanwhile), [`outcome`]
//! (how its end is shown).

use std::time::Duration;

use protocol::error::{JobError, StageName};
use protocol::event::{CancelledBy, Event, JobEvent, JobResult};
use protocol::message::JobRequest;
use runtime::bus::Bus;
use runtime::process::{Exit, Fatal};

use crate::client::{self, Events};

pub mod outcome;
pub mod progress;

use progress::Progress;

/// Time without any event after which a job is submitted again.
const SUBMIT_AGAIN: Duration = Duration::from_secs(5);

/// Form in which a job's progress and end are shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// One JSON object on standard output and nothing else there.
    pub json: bool,
    /// No progress on standard error.
    pub quiet: bool,
}

/// End of a job.
#[derive(Clone, Debug)]
pub enum End {
    /// It was answered.
    Answered(Box<JobResult>),
    /// It did not work out.
    Failed(JobError),
    /// Nobody wanted it any more.
    Cancelled {
        /// Party that ended it.
        by: CancelledBy,
        /// Stages that dropped work for it.
        stages_stopped: Vec<StageName>,
        /// Milliseconds that stopping took.
        ms: u64,
    },
}

/// Submits a job and shows what it does until it ends.
///
/// # Errors
/// When the job fails, is cancelled, or cannot be followed.
pub async fn ask(bus: &Bus, request: &JobRequest, style: Style) -> Result<JobResult, Fatal> {
    let mut progress = Progress::new(style);
    let end = followed(bus, request, |event| progress.show(event)).await;
    let end = end.map_err(|e| Fatal(Exit::Broker, format!("{e:#}")))?;
    progress.clear();
    match end {
        End::Answered(result) => {
            outcome::print(request, &result, style)?;
            Ok(*result)
        }
        End::Failed(error) => Err(outcome::failed(request, &error, style)),
        End::Cancelled { by, stages_stopped, ms } => Err(outcome::cancelled(request, by, &stages_stopped, ms, style)),
    }
}

/// Submits a job and follows it to its end; `each` is told of what comes before that.
///
/// # Errors
/// When the broker does not take it, or its events cannot be read.
pub async fn followed(bus: &Bus, request: &JobRequest, each: impl FnMut(&Event)) -> anyhow::Result<End> {
    client::submit(bus, request).await?;
    to_its_end(bus, request, each).await
}

/// Follows a job that was submitted to its end; `each` is told of what comes before that.
///
/// # Errors
/// When its events cannot be read.
pub async fn to_its_end(bus: &Bus, request: &JobRequest, mut each: impl FnMut(&Event)) -> anyhow::Result<End> {
    let mut events = Events::new(bus, &request.job);
    let mut next = first(bus, request, &mut events).await?;
    loop {
        match next.event {
            Event::Result(result) => return Ok(End::Answered(result)),
            Event::Failed { error } => return Ok(End::Failed(error)),
            Event::Cancelled { by, stages_stopped, ms } => return Ok(End::Cancelled { by, stages_stopped, ms }),
            event => each(&event),
        }
        next = events.next().await?;
    }
}

/// The first event. While there is none the job is submitted again: a broker may have lost it before a worker admitted it,
/// and the same id is the same job.
async fn first(bus: &Bus, request: &JobRequest, events: &mut Events) -> anyhow::Result<JobEvent> {
    loop {
        match tokio::time::timeout(SUBMIT_AGAIN, events.next()).await {
            Ok(event) => return event,
            Err(_) => {
                if let Err(error) = client::submit(bus, request).await {
                    tracing::debug!(%error, "submitting again failed, retrying");
                }
            }
        }
    }
}
