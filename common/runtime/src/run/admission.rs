//! How jobs come in: taken from `jobs`, checked, and put in [line](super::line).
//!
//! Every stage-llm worker admits, whatever its engine is doing, so that a client hears `accepted` and `queued` at once
//! even when all workers are busy. Requests and admitted jobs are on streams of their own: however many requests come,
//! an admitted job has room in line.

use std::time::Duration;

use async_nats::HeaderMap;
use tracing::Instrument;

use super::dead::bury;
use super::inbox::{Delivery, Inbox, Prefetch};
use super::line::Line;
use super::losses::Roll;
use super::registry::Registry;
use super::shutdown::Shutdown;
use crate::bus::events::EventLog;
use crate::bus::queue::ADMISSION;
use crate::bus::{Bus, BusError, headers, job_of};
use crate::subject::StreamName;
use crate::traces;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::event::{CancelledBy, Event};
use protocol::json;
use protocol::message::{JobId, JobRequest};
use protocol::wire::{self, Encoding};

/// Bytes of a request at most: it is a question, not a tensor.
pub const MAX_REQUEST_BYTES: usize = 32 << 10;
/// Header with the time of submission, Unix milliseconds.
const SUBMITTED: &str = "Vidi-Submitted";

/// What admission works with.
#[derive(Clone)]
struct Admission {
    bus: Bus,
    line: Line,
    roll: Roll,
    registry: Registry,
}

/// Admits jobs until `shutdown`, and enters them in the `roll`; `registry` knows which have ended.
///
/// # Errors
/// When the queue cannot be set up.
pub async fn start(bus: &Bus, line: Line, roll: Roll, registry: Registry, shutdown: Shutdown) -> Result<(), BusError> {
    let queue = bus.work_queue(StreamName::Jobs, ADMISSION).await?;
    // Nobody hands requests over.
    let (_, handed) = tokio::sync::mpsc::channel(1);
    let mut inbox = Inbox::start(bus, queue, handed, shutdown, Prefetch::ONE);
    let admission = Admission { bus: bus.clone(), line, roll, registry };
    tokio::spawn(async move {
        while let Some((delivery, _)) = inbox.next().await {
            // In a task of its own, so that a panic costs one request and not all that follow.
            let admission = admission.clone();
            let admitted = tokio::spawn(async move {
                let span = traces::admission(job_of(delivery.message.headers.as_ref()).as_ref(), &delivery.message);
                admission.admit(&delivery).instrument(span).await;
                delivery
            });
            match admitted.await {
                // The next one need not wait for the broker's word.
                Ok(delivery) => drop(tokio::spawn(delivery.done())),
                Err(panicked) => {
                    tracing::error!(%panicked, "admission panicked, the request comes again. This is a bug.")
                }
            }
        }
    });
    Ok(())
}

impl Admission {
    async fn admit(&self, delivery: &Delivery) {
        let bus = &self.bus;
        let request = match self.read(delivery) {
            Ok(request) => request,
            Err(error) => {
                tracing::warn!(%error, "job refused");
                return refuse(bus, delivery, error).await;
            }
        };
        let mut log = EventLog::open(bus, &request.job).await;
        if log.ended().is_some() {
            return;
        }
        if log.last().is_none() || self.registry.has_ended(&request.job) {
            self.registry.begin_anew(&request.job, Duration::from_secs(bus.config().event_age_s));
        }
        log.write_as(Encoding::of(&delivery.message.payload));
        if let Some(end) = self.too_late(&request, delivery).await {
            // Refused only if the job has ended meanwhile.
            let _ = log.append(end).await;
            return;
        }
        // Each step once, whatever a worker that died over it left, and whoever else is at the same request: `queued` before the
        // job can be taken, so that the owner's events follow it, and no `accepted` behind another one, which an owner would
        // take for the begin of another job under its id.
        if log.append_behind(Event::Accepted {}, |last| last.is_none()).await.is_err() {
            return;
        }
        let is_accepted = |last: Option<&Event>| matches!(last, Some(Event::Accepted {}));
        let mut queued_here = false;
        if is_accepted(log.last().map(|last| &last.event)) {
            let rank = self.line.ahead_of(request.priority).await;
            // A broker that has lost its store meanwhile has no `accepted` any more: the job is queued all the same.
            match log.append_behind(Event::Queued { rank }, |last| last.is_none() || is_accepted(last)).await {
                Ok(appended) => queued_here = appended,
                Err(_) => return,
            }
            if queued_here {
                tracing::info!(job = %request.job, rank, priority = request.priority, "job queued");
            }
        }
        // Submitted again while a worker owns it, or while it stands in line.
        let queued = log.last().is_some_and(|e| matches!(e.event, Event::Queued { .. }));
        if !queued || (!queued_here && self.line.holds(&request.job).await) {
            return;
        }
        let mut with = headers(&request.job);
        with.insert(SUBMITTED, delivery.stored_ms.to_string().as_str());
        self.line.put(&request, delivery.sequence, with, delivery.message.payload.clone()).await;
        // Not earlier: until it stands in line it would pass for lost.
        self.roll.enter(&request.job, Encoding::of(&delivery.message.payload));
        // Ended meanwhile (cancelled, say), its clearing up came before what was just queued. Whoever takes it drops it; this
        // spares the line.
        if self.registry.has_ended(&request.job) {
            bus.purge_job(&request.job).await;
        }
    }

    /// Request of a delivery.
    ///
    /// # Errors
    /// Why it is none that can be admitted.
    fn read(&self, delivery: &Delivery) -> Result<JobRequest, JobError> {
        let body = &delivery.message.payload;
        let refused = |kind, text| Err(JobError::new(kind, text));
        if body.len() > MAX_REQUEST_BYTES {
            let text = format!("the request has {} bytes, more than {MAX_REQUEST_BYTES}", body.len());
            return refused(ErrorKind::BadRequest, text);
        }
        if delivery.exhausted(self.bus.config().max_deliver) {
            return refused(ErrorKind::PoisonMessage, format!("{} workers died of the request", delivery.redeliveries));
        }
        wire::decode_any::<JobRequest>(body).or_else(|e| refused(ErrorKind::BadRequest, e.to_string()))
    }

    /// End of a job that waited for too long to be admitted.
    async fn too_late(&self, request: &JobRequest, delivery: &Delivery) -> Option<Event> {
        let waited = Duration::from_millis(self.bus.broker_ms().await.saturating_sub(delivery.stored_ms));
        let allowed = request.deadline_s.and_then(|s| Duration::try_from_secs_f64(s).ok());
        if allowed.is_some_and(|allowed| waited >= allowed) {
            let (by, ms) = (CancelledBy::Deadline, 0);
            return Some(Event::Cancelled { by, stages_stopped: Vec::new(), ms });
        }
        let most = Duration::from_secs(self.bus.config().job_age_s);
        (waited >= most).then(|| Event::Failed { error: waited_too_long(most) })
    }
}

/// Error of a job that no worker took in time.
pub fn waited_too_long(most: Duration) -> JobError {
    let text = format!("no worker took the job within {} s, the longest that one may wait", most.as_secs());
    JobError::new(ErrorKind::Deadline, text)
        .at(StageName::Llm)
        .hint("submit it again when there is less to do, start more stage-llm workers, or raise bus.job_age_s")
}

/// A request that cannot be understood ends in a `failed` event if its job is known: by the request, or by its header.
async fn refuse(bus: &Bus, delivery: &Delivery, error: JobError) {
    #[derive(serde::Deserialize)]
    struct Named {
        job: JobId,
    }
    let body = &delivery.message.payload;
    let encoding = Encoding::of(body);
    let named = match encoding {
        Encoding::Json => match serde_json::from_slice::<Named>(json::unmarked(body)) {
            Ok(Named { job }) => Some(job),
            Err(_) => json::named_job(body),
        },
        Encoding::MessagePack => wire::decode_loosely::<Named>(body).map(|Named { job }| job),
    };
    bus.note_unreadable();
    let Some(job) = named.or_else(|| job_of(delivery.message.headers.as_ref())) else {
        return bury(bus, StageName::Llm, None, delivery, &error).await;
    };
    let mut log = EventLog::open(bus, &job).await;
    if log.last().is_none() {
        log.write_as(encoding);
        let hint = "common/protocol/PROTOCOL.md, \"For clients\", lists the fields of a job and what they may be";
        let error = error.at(StageName::Llm).hint(hint);
        // Refused only if the job has ended meanwhile.
        let _ = log.append(Event::Failed { error }).await;
    }
}

/// Time of submission that a waiting job's message carries, Unix milliseconds.
pub fn submitted_ms(headers: Option<&HeaderMap>) -> Option<u64> {
    headers?.get(SUBMITTED)?.as_str().parse().ok()
}
