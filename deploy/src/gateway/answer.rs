//! One request that waits for its answer: its job is cancelled when its client hangs up, unless it was to go on.

use std::time::Duration;

use protocol::error::ErrorKind;
use protocol::event::{Event, JobResult};
use protocol::message::JobRequest;
use runtime::bus::Bus;

use super::intake::Asked;
use super::problem::{Kind, Problem};
use super::spool::Held;
use super::state::App;
use crate::ask::{self, End};
use crate::client;

/// Submits a job and waits for its end; `each` is told of what comes before that.
///
/// # Errors
/// Why it has no answer: its failure, who cancelled it, `busy`, a time that passed, or the broker's.
pub async fn wait(app: &App, asked: Asked, each: impl FnMut(&Event)) -> Result<JobResult, Problem> {
    let _slot = app.jobs.slot()?;
    let Asked { pipeline, request, detach, held } = asked;
    app.lend(held.as_ref(), Some(pipeline.prefix())).await?;
    app.jobs.note(&request, pipeline.number, detach)?;
    let (job, task) = (request.job.clone(), request.task.clone());
    let mut watch = Watch { app: app.clone(), left: Some(Left { bus: pipeline.bus.clone(), request, detach, held }) };
    let limit = Duration::from_secs_f64(app.http.answer_s);
    let followed = async {
        match &watch.left {
            Some(left) => ask::followed(&left.bus, &left.request, each).await,
            None => Err(anyhow::anyhow!("a job is watched until its end. This is a bug.")),
        }
    };
    match tokio::time::timeout(limit, followed).await {
        Ok(Ok(end)) => {
            let deadline_s = watch.left.take().and_then(|left| left.request.deadline_s);
            app.jobs.note_end(&job);
            app.metrics.ended(&task, &end);
            answered(end, deadline_s)
        }
        // The job goes on, or nobody took it: it is cancelled with the watch.
        Ok(Err(error)) => Err(Problem::unavailable(&error)),
        Err(_) => {
            let text = format!("job cancelled: no answer within {limit:?} (http.answer_s)");
            Err(Problem::new(Kind::Job(ErrorKind::Deadline), text)
                .hint("submit it with POST /v1/jobs, and come back for it"))
        }
    }
}

/// The answer of a job that has ended.
///
/// # Errors
/// Why it has none.
pub fn answered(end: End, deadline_s: Option<f64>) -> Result<JobResult, Problem> {
    match end {
        End::Answered(result) => Ok(*result),
        End::Failed(error) => Err(error.into()),
        End::Cancelled { by, .. } => Err(Problem::cancelled(by, deadline_s)),
    }
}

/// Watch over a job; dropped before its end, it leaves the job to [`Left::settle`].
struct Watch {
    app: App,
    left: Option<Left>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(left) = self.left.take() {
            let app = self.app.clone();
            tokio::spawn(async move {
                let job = left.request.job.clone();
                let task = left.request.task.clone();
                let end = left.settle().await;
                app.jobs.note_end(&job);
                if let Some(end) = end {
                    app.metrics.ended(&task, &end);
                }
            });
        }
    }
}

/// Job whose client is gone.
struct Left {
    bus: Bus,
    request: JobRequest,
    detach: bool,
    /// Its video stays until its end.
    held: Option<Held>,
}

impl Left {
    /// Cancels the job unless it was to go on; its end, where that is heard of.
    async fn settle(self) -> Option<End> {
        let job = &self.request.job;
        if !self.detach {
            tracing::info!(%job, "cancelling: the client hung up, or waited for too long");
            if let Err(error) = client::cancel(&self.bus, job).await {
                tracing::warn!(%job, error = format!("{error:#}"), "cancel failed");
            }
        }
        let end = ask::to_its_end(&self.bus, &self.request, |_| {}).await;
        if let Err(error) = &end {
            tracing::debug!(%job, error = format!("{error:#}"), "following a job failed");
        }
        drop(self.held);
        end.ok()
    }
}
