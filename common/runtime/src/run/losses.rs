//! What a broker has lost: streams that are not there any more are made again, and jobs that stood in a line which is gone
//! end with a word to their clients. What a worker has in flight needs none of this: it asks again for what is missing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join_all;

use super::ending::owner_is_there;
use super::line::Line;
use super::registry::Registry;
use super::shutdown::{self, Shutdown};
use crate::bus::Bus;
use crate::bus::events::EventLog;
use crate::subject::StreamName;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::event::Event;
use protocol::message::JobId;
use protocol::wire::Encoding;

/// Time between two looks at the streams.
const EVERY: Duration = Duration::from_secs(2);
/// Jobs remembered as admitted here; the oldest are forgotten first.
const REMEMBERED: usize = 4096;

/// Jobs that this worker has admitted and that have not ended, as far as it knows. Cheap to clone; all clones share it.
#[derive(Clone, Default)]
pub struct Roll(Arc<Mutex<VecDeque<(JobId, Encoding)>>>);

impl Roll {
    /// Enters a job, whose client speaks `encoding`.
    pub fn enter(&self, job: &JobId, encoding: Encoding) {
        let mut jobs = self.0.lock().expect("no holder panics. This is a bug.");
        if jobs.len() >= REMEMBERED {
            jobs.pop_front();
        }
        jobs.push_back((job.clone(), encoding));
    }

    /// Jobs that have not ended, as far as `registry` has heard; the others are struck off.
    fn going(&self, registry: &Registry) -> Vec<(JobId, Encoding)> {
        let mut jobs = self.0.lock().expect("no holder panics. This is a bug.");
        jobs.retain(|(job, _)| !registry.has_ended(job));
        jobs.iter().cloned().collect()
    }

    /// Strikes off a job that has ended.
    fn strike(&self, job: &JobId) {
        self.0.lock().expect("no holder panics. This is a bug.").retain(|(other, _)| other != job);
    }
}

/// Looks, until `shutdown`, whether every stream is there. Every stage-llm worker does.
pub async fn watch(bus: Bus, line: Line, roll: Roll, registry: Registry, mut shutdown: Shutdown) {
    let mut made = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shutdown::begun(&mut shutdown) => return,
        }
        // All at once: each that is gone is waited for, see there.
        join_all(StreamName::ALL.map(|stream| bus.restore(stream))).await;
        let Ok(now) = line.made_at().await else { continue };
        if made.replace(now).is_none_or(|before| before == now) {
            roll.going(&registry);
            continue;
        }
        // Other workers may still be on their way back to the broker.
        tokio::time::sleep(EVERY).await;
        for (job, encoding) in roll.going(&registry) {
            if !registry.is_in_flight(&job) && end_if_lost(&bus, &line, &job, encoding).await {
                // Or it would end again, for nobody, when the store is lost once more.
                roll.strike(&job);
            }
        }
    }
}

/// Ends a job that stands in line no more and that nobody owns. Returns whether it has ended now.
async fn end_if_lost(bus: &Bus, line: &Line, job: &JobId, encoding: Encoding) -> bool {
    let mut log = EventLog::open(bus, job).await;
    if log.ended().is_some() {
        return true;
    }
    if line.holds(job).await || owner_is_there(bus, job).await {
        return false;
    }
    log.write_as(encoding);
    log.note_admitted();
    let error = JobError::new(ErrorKind::WorkerLost, "the broker has lost the job while it waited")
        .at(StageName::Llm)
        .hint("submit it again; look why the broker lost its store, or who deleted its streams");
    tracing::error!(%job, %error, "job failed");
    // Refused only if the job has ended meanwhile.
    let _ = log.append(Event::Failed { error }).await;
    true
}
