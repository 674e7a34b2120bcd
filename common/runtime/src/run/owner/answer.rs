//! Second step of owning a job: the engine answers it, while the worker listens to the job's stages, to what others
//! write, and to the clock.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::claim::Claimed;
use super::port::{Host, OwnerPort, TokenKind};
use super::state::JobState;
use super::worker::Worker;
use crate::bus::FencingToken;
use crate::bus::events::EventLog;
use crate::run::admission;
use crate::run::dead::bury;
use crate::run::inbox::Delivery;
use crate::run::job_end::JobEnd;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::event::{CancelledBy, JobResult};
use protocol::message::{JobId, JobRequest};
use protocol::stage::{Beside, KeptVideo, OwnedJob, Owner, Stop};

/// Job that is answered, or will not be, by this worker and now. Nothing of it is in flight any more.
pub struct Answered {
    pub job: JobId,
    pub delivery: Delivery,
    pub log: Arc<Mutex<EventLog>>,
    pub state: Arc<JobState>,
    pub answer: Answer,
}

/// A job without others beside it.
#[derive(Default)]
struct Alone {
    /// Outcome, and whether the job gave way to others.
    outcome: Option<(Result<JobResult, Stop>, bool)>,
}

impl Beside<OwnerPort> for Alone {
    fn next(&mut self, _: &JobRequest) -> Option<OwnedJob<OwnerPort>> {
        None
    }

    fn decline(&mut self, job: OwnedJob<OwnerPort>) {
        self.end(job, Err(Stop::Unavailable("declined, though none was offered. This is a bug.".to_owned())));
    }

    fn end(&mut self, mut job: OwnedJob<OwnerPort>, outcome: Result<JobResult, Stop>) {
        let outcome = job.port.flush_text().and(outcome);
        self.outcome = Some((outcome, job.port.gave_way()));
    }

    fn keeps(&mut self, _: Vec<KeptVideo>) {}
}

/// Outcome of answering a job.
pub enum Answer {
    /// Answer, without what the stages reported.
    Result(Box<JobResult>),
    /// The job cannot succeed.
    Failed(JobError),
    /// Nobody wants the answer any more.
    Cancelled(CancelledBy),
    /// A newer owner has written.
    Superseded(FencingToken),
    /// Others go first: they hold the token stream's capacity and one of them has no owner, or this job's file takes long to
    /// look into.
    GaveWay(String),
    /// Something outside is away.
    Unavailable(String),
}

impl<O: Owner + Send + 'static> Worker<'_, O> {
    /// Answers a job.
    pub async fn answer(&self, claimed: Claimed) -> Answered {
        let Claimed { request, delivery, in_flight, log, token } = claimed;
        let job = request.job.clone();
        let deadline = self.deadline(&request, &delivery).await;
        let log = Arc::new(Mutex::new(log));
        let state = JobState::new(in_flight.end().clone());
        let watch = state.clone().watch(self.bus, &job, log.clone(), deadline).await;
        let pulse = self.watchdog.watch(format!("job {job}"));
        // Not begun yet: who is asked whether the job has a try left may be away.
        pulse.pause();
        let kind = TokenKind { bytes: self.token_bytes, checkpoint: self.info.checkpoint.clone() };
        let (bus, device, counters) = (self.bus.clone(), self.info.device.clone(), self.counters.clone());
        let host = Host { bus, device, counters };
        let port = OwnerPort::new(&host, &job, state.clone(), log.clone(), token, kind, pulse);
        let (outcome, gave_way) = match self.tries_left(&job, &delivery).await {
            0 => (Err(Stop::Failed(self.worn_out(&job, &delivery).await)), false),
            _ => self.compute(request, port).await,
        };
        watch.abort();
        // It may be about to tell how far a stage is; that must not come after the job's last words.
        let _ = watch.await;
        drop(in_flight);
        let answer = match (state.end().get(), outcome) {
            (Some(JobEnd::Superseded(newer)), _) => Answer::Superseded(newer),
            (_, Ok(result)) => Answer::Result(Box::new(result)),
            (_, Err(Stop::Failed(error))) => Answer::Failed(error),
            (_, Err(Stop::Unavailable(why))) if gave_way => Answer::GaveWay(why),
            (_, Err(Stop::Unavailable(why))) => Answer::Unavailable(why),
            (Some(JobEnd::Cancelled(by)), Err(Stop::Cancelled)) => Answer::Cancelled(by),
            (_, Err(Stop::Cancelled)) => Answer::Cancelled(CancelledBy::Client),
        };
        Answered { job, delivery, log, state, answer }
    }

    /// Runs a job on the engine's thread; true beside what came of it if it gave way to others.
    async fn compute(&self, request: JobRequest, port: OwnerPort) -> (Result<JobResult, Stop>, bool) {
        port.sized(self.step_tokens);
        let run = self.engine.run(move |owner| {
            let mut alone = Alone::default();
            owner.answer(OwnedJob { request, port }, &mut alone);
            alone
                .outcome
                .ok_or_else(|| Stop::Unavailable("the stage ended without an outcome. This is a bug.".to_owned()))
        });
        run.await.unwrap_or_else(|stop| (Err(stop), false))
    }

    /// Deadline of a job, as an instant of this process. The time that has passed since the submission has both ends on the
    /// broker's clock.
    async fn deadline(&self, request: &JobRequest, delivery: &Delivery) -> Option<Instant> {
        let allowed = Duration::try_from_secs_f64(request.deadline_s?).ok()?;
        let submitted_ms = admission::submitted_ms(delivery.message.headers.as_ref()).unwrap_or(delivery.stored_ms);
        let waited = Duration::from_millis(self.bus.broker_ms().await.saturating_sub(submitted_ms));
        Instant::now().checked_add(allowed.saturating_sub(waited))
    }

    /// Error of a job whose tries are used up. Its request is kept for an operator.
    async fn worn_out(&self, job: &JobId, delivery: &Delivery) -> JobError {
        let tried = delivery.redeliveries;
        let text = format!("{tried} workers took the job and neither finished nor gave it back: they died of it");
        let error = JobError::new(ErrorKind::WorkerLost, text).hint("look at the log of stage-llm");
        bury(self.bus, StageName::Llm, Some(job), delivery, &error).await;
        error
    }
}
