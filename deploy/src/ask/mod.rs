//! `vidi ask`: one question, its progress, its answer.
//!
//! In reading order: this file (the job from its submission to its end), [`progress`] (what is shown meanwhile), [`outcome`]
//! (how its end is shown).

use std::time::Duration;

use protocol::event::{Event, JobEvent, JobResult};
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

/// Submits a job and shows what it does until it ends.
///
/// # Errors
/// When the job fails, is cancelled, or cannot be followed.
pub async fn ask(bus: &Bus, request: &JobRequest, style: Style) -> Result<JobResult, Fatal> {
    let other = |e: anyhow::Error| Fatal(Exit::Broker, format!("{e:#}"));
    let mut events = Events::new(bus, &request.job);
    client::submit(bus, request).await.map_err(other)?;
    let mut progress = Progress::new(style);
    let mut next = first(bus, request, &mut events).await.map_err(other)?;
    loop {
        match next.event {
            Event::Result(result) => {
                progress.clear();
                outcome::print(request, &result, style)?;
                return Ok(*result);
            }
            Event::Failed { error } => {
                progress.clear();
                return Err(outcome::failed(request, &error, style));
            }
            Event::Cancelled { by, stages_stopped, ms } => {
                progress.clear();
                return Err(outcome::cancelled(request, by, &stages_stopped, ms, style));
            }
            event => progress.show(&event),
        }
        next = events.next().await.map_err(other)?;
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
