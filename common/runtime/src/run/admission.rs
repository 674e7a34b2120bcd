//! How jobs wait: taken from `jobs`, checked, and queued by priority; workers take from the front.
//!
//! Every stage-llm worker admits, whatever its engine is doing, so that a client hears `accepted` and `queued` at once
//! even when all workers are busy. Each priority is a subject of its own on VIDI_JOBS with its own consumer: higher
//! first, first come first served within.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::PullConsumer;
use bytes::Bytes;
use futures::StreamExt;

use super::dead::bury;
use super::inbox::{Delivery, Inbox};
use super::shutdown::{self, Shutdown};
use crate::bus::events::EventLog;
use crate::bus::{Bus, BusError, BusErrorKind, headers};
use crate::subject::{PRIORITIES, StreamName};
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::event::Event;
use protocol::message::{JobId, JobRequest};
use protocol::wire::{self, Encoding};

/// Time within which a waiting job is found that no hint announced (its worker died).
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Time within which a broker that is there answers a look at a queue.
const LOOK_WAIT: Duration = Duration::from_secs(2);
/// Bytes of a request at most: it is a question, not a tensor.
const MAX_REQUEST_BYTES: usize = 256 << 10;
/// Queue of requests that are not admitted yet.
pub const ADMISSION: &str = "admission";
/// Header with the time of submission, Unix milliseconds.
const SUBMITTED: &str = "Vidi-Submitted";

/// Admits jobs until `shutdown`.
///
/// # Errors
/// When the queue cannot be set up.
pub async fn start(bus: &Bus, waiting: JobQueue, shutdown: Shutdown) -> Result<(), BusError> {
    let queue = bus.work_queue(StreamName::Jobs, ADMISSION, Some(bus.subjects().jobs())).await?;
    let mut inbox = Inbox::start(bus, queue, shutdown);
    let bus = bus.clone();
    tokio::spawn(async move {
        while let Some(delivery) = inbox.next().await {
            // In a task of its own, so that a panic costs one request and not all that follow.
            let (bus, waiting) = (bus.clone(), waiting.clone());
            let admitted = tokio::spawn(async move {
                admit(&bus, &waiting, &delivery).await;
                delivery
            });
            match admitted.await {
                Ok(delivery) => delivery.done().await,
                Err(panicked) => {
                    tracing::error!(%panicked, "admission panicked, the request comes again. This is a bug.")
                }
            }
        }
    });
    Ok(())
}

async fn admit(bus: &Bus, waiting: &JobQueue, delivery: &Delivery) {
    let body = &delivery.message.payload;
    let encoding = Encoding::of(body);
    if body.len() > MAX_REQUEST_BYTES {
        let text = format!("the request has {} bytes, more than {MAX_REQUEST_BYTES}", body.len());
        return refuse(bus, delivery, encoding, JobError::new(ErrorKind::BadRequest, text)).await;
    }
    if delivery.exhausted(bus.config().max_deliver) {
        let text = format!("{} workers died of the request", delivery.redeliveries);
        return refuse(bus, delivery, encoding, JobError::new(ErrorKind::PoisonMessage, text)).await;
    }
    let request = match wire::decode_any::<JobRequest>(body) {
        Ok(request) => request,
        Err(error) => {
            tracing::warn!(%error, "job refused: its request is unreadable");
            return refuse(bus, delivery, encoding, JobError::new(ErrorKind::BadRequest, error.to_string())).await;
        }
    };
    let mut log = EventLog::open(bus, &request.job).await;
    if log.ended().is_some() {
        return;
    }
    log.write_as(encoding);
    // Each step once, whatever a worker that died over it left: `queued` before the job can be taken, so that the owner's
    // events follow it.
    if log.last().is_none() && log.append(Event::Accepted {}).await.is_err() {
        return;
    }
    let rank = waiting.ahead_of(request.priority).await;
    let accepted = |log: &EventLog| log.last().is_some_and(|e| matches!(e.event, Event::Accepted {}));
    if accepted(&log) && log.append(Event::Queued { rank }).await.is_err() {
        return;
    }
    // Submitted again while a worker owns it.
    if !log.last().is_some_and(|e| matches!(e.event, Event::Queued { .. })) {
        return;
    }
    let mut with = headers(&request.job);
    with.insert("Nats-Msg-Id", format!("{}/waiting/0", request.job).as_str());
    with.insert(SUBMITTED, delivery.stored_ms.to_string().as_str());
    let subject = bus.subjects().waiting(request.priority, &request.job);
    store_waiting(bus, subject, with, body.clone()).await;
    tracing::info!(job = %request.job, rank, priority = request.priority, "job queued");
    // Ended meanwhile (cancelled, say), its clearing up came before what was just queued.
    if EventLog::open(bus, &request.job).await.ended().is_some() {
        bus.purge_subject(StreamName::Jobs, bus.subjects().waiting_anywhere(&request.job)).await;
    }
}

async fn store_waiting(bus: &Bus, subject: String, with: HeaderMap, body: Bytes) {
    loop {
        let outcome = match bus.jetstream().publish_with_headers(subject.clone(), with.clone(), body.clone()).await {
            Ok(ack) => ack.await,
            Err(e) => Err(e),
        };
        match outcome {
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(%error, "publish of a waiting job failed, retrying");
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

/// A request that cannot be understood ends in a `failed` event if it at least names its job.
async fn refuse(bus: &Bus, delivery: &Delivery, encoding: Encoding, error: JobError) {
    #[derive(serde::Deserialize)]
    struct Named {
        job: JobId,
    }
    let body = &delivery.message.payload;
    let named = match encoding {
        Encoding::Json => serde_json::from_slice::<Named>(body).ok(),
        Encoding::MessagePack => wire::decode_loosely::<Named>(body),
    };
    bus.note_unreadable();
    let Some(Named { job }) = named else {
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

/// Name of the queue of a priority.
pub fn queue_of(priority: u8) -> String {
    format!("priority-{priority}")
}

/// Waiting jobs, as one worker sees them.
#[derive(Clone)]
pub struct JobQueue {
    bus: Bus,
    queues: Vec<(u8, PullConsumer)>,
}

impl JobQueue {
    /// Opens the queues of all priorities.
    ///
    /// # Errors
    /// When a queue cannot be set up.
    pub async fn open(bus: &Bus) -> Result<Self, BusError> {
        let mut queues = Vec::new();
        for priority in PRIORITIES {
            let filter = bus.subjects().all_waiting(priority);
            let queue = bus.work_queue(StreamName::Jobs, &queue_of(priority), Some(filter)).await?;
            queues.push((priority, queue));
        }
        Ok(JobQueue { bus: bus.clone(), queues })
    }

    /// Queues of all priorities.
    pub fn queues(&self) -> Vec<PullConsumer> {
        self.queues.iter().map(|(_, queue)| queue.clone()).collect()
    }

    /// Jobs that would be taken before a new one of this priority.
    async fn ahead_of(&self, priority: u8) -> u64 {
        let mut ahead = 0;
        for (_, queue) in self.queues.iter().filter(|(p, _)| *p >= priority) {
            if let Ok(info) = queue.get_info().await {
                ahead += info.num_pending;
            }
        }
        ahead
    }

    /// Waits for the job at the front; none once `shutdown`.
    ///
    /// # Errors
    /// When the broker refuses the subscription that announces jobs.
    pub async fn next(&self, shutdown: &mut Shutdown) -> Result<Option<Delivery>, BusError> {
        let hints = format!("{}.*.*", self.bus.subjects().jobs());
        let mut hints = self
            .bus
            .client()
            .subscribe(hints)
            .await
            .map_err(|e| BusError::new(BusErrorKind::JetStream, format!("waiting jobs: {e}")))?;
        loop {
            for (_, queue) in &self.queues {
                if *shutdown.borrow() {
                    return Ok(None);
                }
                let look = async { queue.fetch().max_messages(1).messages().await.ok()?.next().await?.ok() };
                // Without a limit, a look that a dying broker never answers would be the last one.
                let Ok(found) = tokio::time::timeout(LOOK_WAIT, look).await else { continue };
                if let Some(delivery) = found.and_then(|message| Delivery::new(&self.bus, message)) {
                    return Ok(Some(delivery));
                }
            }
            tokio::select! {
                _ = hints.next() => {}
                _ = tokio::time::sleep(LOOK_EVERY) => {}
                () = shutdown::begun(shutdown) => return Ok(None),
            }
        }
    }
}
