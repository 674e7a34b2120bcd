//! What the streams hold of jobs that have ended, dropped.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::ending::clear;
use super::shutdown::{self, Shutdown};
use crate::bus::Bus;
use crate::bus::events::EventLog;
use crate::subject::StreamName;
use protocol::error::StageName;
use protocol::message::JobId;

/// Time between two searches of the streams for what jobs left behind.
const EVERY: Duration = Duration::from_secs(5);
/// Messages of a job that has no events are nobody's; they are dropped after this time.
const STRAY_AGE: Duration = Duration::from_secs(15);

/// Drops, now and then until `shutdown`, what the streams hold of jobs that have ended: left by a worker that was killed
/// between two steps, by one that had not heard of the end, or by a stranger. Every stage-llm worker does.
pub async fn sweep(bus: Bus, mut shutdown: Shutdown) {
    let mut strays: HashMap<JobId, Instant> = HashMap::new();
    loop {
        let jobs = jobs_with_messages(&bus).await;
        strays.retain(|job, _| jobs.contains(job));
        for job in jobs {
            let log = EventLog::open(&bus, &job).await;
            let since = *strays.entry(job.clone()).or_insert_with(Instant::now);
            let stray = log.last().is_none() && since.elapsed() >= STRAY_AGE;
            if log.ended().is_some() || stray {
                tracing::debug!(%job, stray, "leftovers dropped");
                clear(&bus, &job).await;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shutdown::begun(&mut shutdown) => return,
        }
    }
}

/// Jobs that hold capacity of the token stream, or have messages in a stream of the data path.
async fn jobs_with_messages(bus: &Bus) -> Vec<JobId> {
    let mut jobs: Vec<JobId> = bus.capacity_holders().await;
    let queues = StageName::ALL.map(|stage| match stage {
        StageName::Llm => StreamName::Tokens,
        other => StreamName::input_of(other),
    });
    for stream in queues {
        match bus.subjects_in(stream).await {
            Ok(subjects) => jobs.extend(subjects.iter().filter_map(|s| bus.subjects().job_of(s))),
            Err(error) => tracing::debug!(%error, "listing of subjects failed, stream not swept"),
        }
    }
    jobs.sort();
    jobs.dedup();
    jobs
}
