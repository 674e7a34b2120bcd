//! How a job ends when its owner does not end it: cancelled or out of time while it waits, or with its owner dead.

use std::time::{Duration, Instant};

use super::control::broadcast_end;
use crate::bus::Bus;
use crate::bus::events::EventLog;
use crate::subject::StreamName;
use protocol::error::StageName;
use protocol::event::{CancelledBy, Event};
use protocol::message::JobId;
use protocol::wire::Encoding;

/// Time for which the other stages leave it to stage-llm: one may be there.
const OTHERS_WAIT: Duration = Duration::from_millis(200);
/// Time that an owner that is there has to end its job itself.
const OWNER_WAIT: Duration = Duration::from_secs(5);
/// Time within which an owner that is there answers.
const OWNER_ANSWERS: Duration = Duration::from_millis(500);
/// The same where the job is to end anyway: all looks, with what is before and between them, take less than the second
/// within which a job is cancelled (850 ms). An owner that was only slow finds the job ended.
const LOOK: Duration = Duration::from_millis(250);
/// Looks at a job in work that must all find no owner.
const LOOKS: u32 = 2;
/// Pause before the log and the owner are asked again.
const AGAIN: Duration = Duration::from_millis(150);

/// Drops all that is left of a job that has its terminal event. Stage-llm's and operators' to do: other stages, which
/// may not touch each other's queues, [tell everyone](broadcast_end) instead.
pub async fn clear(bus: &Bus, job: &JobId) {
    broadcast_end(bus, job).await;
    drop_rest(bus, job).await;
}

/// Drops what the streams and the ledger hold of a job that has its terminal event.
pub async fn drop_rest(bus: &Bus, job: &JobId) {
    bus.purge_job(job).await;
    bus.release_ended(std::slice::from_ref(job)).await;
}

/// Whether a worker owns the job and says so.
pub async fn owner_is_there(bus: &Bus, job: &JobId) -> bool {
    owner_answers(bus, job, OWNER_ANSWERS).await
}

/// Whether an owner says so within a time.
async fn owner_answers(bus: &Bus, job: &JobId, within: Duration) -> bool {
    let request = async_nats::Request::new().timeout(Some(within));
    bus.client().send_request(bus.subjects().owner(job), request).await.is_ok()
}

/// Sees to it that a job that shall be cancelled is: by its owner if there is one, else by us. That is written down at
/// once also for a job that is not admitted yet, in the encoding that its client speaks: whoever admits it reads that. A later job
/// under this id, whose events begin where those of this one are gone, is left alone, however long the broker kept this waiting.
pub async fn ensure_ended(bus: Bus, stage: StageName, job: JobId, by: CancelledBy, encoding: Encoding) {
    let started = Instant::now();
    if stage != StageName::Llm {
        tokio::time::sleep(OTHERS_WAIT).await;
    }
    let mut alone = 0;
    let mut log = EventLog::open(&bus, &job).await;
    loop {
        // In this order: a request leaves its queue only once its job has an event.
        let requests_wait = requests_wait(&bus).await;
        log.look().await;
        let unknown = log.last().is_none();
        if log.ended().is_some() || log.is_anothers() || (unknown && !requests_wait) {
            return;
        }
        if unknown {
            log.write_as(encoding);
        }
        let waits = log.last().is_none_or(|e| matches!(e.event, Event::Accepted {} | Event::Queued { .. }));
        if started.elapsed() <= OWNER_WAIT {
            alone = if owner_answers(&bus, &job, LOOK).await { 0 } else { alone + 1 };
        } else {
            alone = LOOKS;
        }
        // An owner that has just stopped listening is about to end the job itself.
        if unknown || (waits && alone > 0) || alone >= LOOKS {
            let ms = started.elapsed().as_millis() as u64;
            if log.append(Event::Cancelled { by, stages_stopped: Vec::new(), ms }).await.is_ok() {
                tracing::info!(%job, ?by, "job cancelled without an owner");
                match stage {
                    StageName::Llm => clear(&bus, &job).await,
                    // What else is left goes when a stage-llm is there to sweep.
                    _ => broadcast_end(&bus, &job).await,
                }
            }
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether there are requests that are not admitted yet, as far as this process may see.
async fn requests_wait(bus: &Bus) -> bool {
    bus.messages_in(StreamName::Jobs).await.is_some_and(|messages| messages > 0)
}
