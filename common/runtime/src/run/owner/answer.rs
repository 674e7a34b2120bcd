//! Second step of owning a job: it is taken up, with all that listens for it, and what came of it is told once the engine is
//! done with it. One worker may have several at a time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{Instrument, Span};

use super::claim::Claimed;
use super::course::Course;
use super::port::{Host, OwnerPort, TokenKind};
use super::state::JobState;
use super::worker::{Settled, Worker};
use crate::bus::FencingToken;
use crate::bus::events::EventLog;
use crate::run::admission;
use crate::run::dead::bury;
use crate::run::inbox::Delivery;
use crate::run::job_end::JobEnd;
use crate::run::registry::InFlight;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::event::{CancelledBy, JobResult};
use protocol::message::{JobId, JobRequest};
use protocol::plan::MediaInfo;
use protocol::stage::{OwnedJob, Stop};

/// Job that this worker owns, but for what the engine has of it.
pub struct Owned {
    pub job: JobId,
    pub delivery: Delivery,
    pub state: Arc<JobState>,
    log: Arc<Mutex<EventLog>>,
    in_flight: InFlight,
    watch: JoinHandle<()>,
    /// Span of all that is done for it.
    pub span: Span,
    course: Course,
}

/// Job that is ready for the engine.
pub struct Ready {
    pub owned: Owned,
    pub job: OwnedJob<OwnerPort>,
}

/// What the engine says of a job that it is done with: its outcome, and whether it gave way to others.
pub struct Outcome {
    pub outcome: Result<JobResult, Stop>,
    pub gave_way: bool,
}

/// Job that is answered, or will not be, by this worker and now. Nothing of it is in flight any more.
pub struct Answered {
    pub job: JobId,
    pub delivery: Delivery,
    pub log: Arc<Mutex<EventLog>>,
    pub state: Arc<JobState>,
    pub answer: Answer,
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

impl Owned {
    /// Lets go of a job that was not begun: nothing listens for it here any more.
    pub async fn release(self) -> Delivery {
        let Owned { delivery, in_flight, watch, .. } = self;
        watch.abort();
        let _ = watch.await;
        drop(in_flight);
        delivery
    }
}

impl<O> Worker<O> {
    /// Takes a job up: claims it, and listens for it from now on. `known` is what its file is, if that was asked already.
    ///
    /// # Errors
    /// How the delivery was settled, where there is nothing for the engine to do.
    pub async fn take_up(
        &self,
        request: JobRequest,
        delivery: Delivery,
        known: Option<MediaInfo>,
    ) -> Result<Ready, Settled> {
        let Claimed { request, delivery, in_flight, log, token } = self.claim(request, delivery).await?;
        let job = request.job.clone();
        let course = Course::begin(&self.bus, &delivery);
        let deadline = self.deadline(&request, &delivery).await;
        let log = Arc::new(Mutex::new(log));
        let state = JobState::new(in_flight.end().clone());
        let watch = state.clone().watch(&self.bus, &job, log.clone(), deadline).await;
        let owned = Owned {
            job: job.clone(),
            delivery,
            state: state.clone(),
            log: log.clone(),
            in_flight,
            watch,
            span: Span::current(),
            course,
        };
        if self.tries_left(&job, &owned.delivery).await == 0 {
            let error = self.worn_out(&job, &owned.delivery).await;
            return Err(self.finish(owned, Outcome { outcome: Err(Stop::Failed(error)), gave_way: false }).await);
        }
        let kind = TokenKind { bytes: self.token_bytes, checkpoint: self.info.checkpoint.clone() };
        let host = Host {
            bus: self.bus.clone(),
            device: self.info.device.clone(),
            counters: self.counters.clone(),
            pulse: self.pulse.clone(),
        };
        let port = OwnerPort::new(&host, &job, state, log, token, kind, known);
        Ok(Ready { owned, job: OwnedJob { request, port } })
    }

    /// Settles a job that the engine is done with.
    pub async fn finish(&self, owned: Owned, outcome: Outcome) -> Settled {
        let span = owned.span.clone();
        let course = owned.course;
        let Outcome { outcome, gave_way } = outcome;
        async {
            let outcome = self.device.judge(outcome).await;
            let answered = Self::close(owned, Outcome { outcome, gave_way }).await;
            let log = answered.log.clone();
            let settled = self.settle(answered).await;
            course.end(&self.bus, log.lock().await.written_end(), &self.counters);
            settled
        }
        .instrument(span)
        .await
    }

    /// Stops listening for a job, and says what came of it.
    async fn close(owned: Owned, outcome: Outcome) -> Answered {
        let Owned { job, delivery, state, log, in_flight, watch, .. } = owned;
        watch.abort();
        // It may be about to tell how far a stage is; that must not come after the job's last words.
        let _ = watch.await;
        drop(in_flight);
        let Outcome { outcome, gave_way } = outcome;
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
        bury(&self.bus, StageName::Llm, Some(job), delivery, &error).await;
        error
    }
}
