//! What has been kept long enough: the events of jobs that ended some time ago, and jobs that wait for a worker for too
//! long, which fail. Not by the broker's `max_age`: it drops what is still needed, and tells nobody.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;

use super::admission::waited_too_long;
use super::ending::{clear, owner_is_there};
use super::shutdown::{self, Shutdown};
use crate::bus::Bus;
use crate::bus::events::EventLog;
use crate::bus::streams::ANY;
use crate::subject::StreamName;
use protocol::event::Event;
use protocol::message::JobId;

/// Longest time between two looks.
const EVERY: Duration = Duration::from_secs(5);
/// Messages and jobs looked at in one look, at most.
const AT_ONCE: usize = 256;

/// Drops and fails, until `shutdown`, what has been kept long enough. Every stage-llm worker does.
pub async fn expire(bus: Bus, mut shutdown: Shutdown) {
    let mut events = Events::default();
    let shortest = bus.config().event_age_s.min(bus.config().job_age_s);
    let every = EVERY.min(Duration::from_secs(shortest) / 2);
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = shutdown::begun(&mut shutdown) => return,
        }
        events.look(&bus).await;
        fail_those_who_wait(&bus).await;
    }
}

/// Time since the broker stored a message; `now` is its Unix milliseconds.
fn age(message: &StreamMessage, now: u64) -> Duration {
    let stored_ms = (message.time.unix_timestamp_nanos() / 1_000_000) as u64;
    Duration::from_millis(now.saturating_sub(stored_ms))
}

/// Jobs whose events are old, and when to look at each.
#[derive(Default)]
struct Events {
    /// Sequence behind the last event that was looked at. Events stand in the order of time.
    next: u64,
    /// Unix milliseconds when a job may be dropped at the earliest.
    due: BTreeSet<(u64, JobId)>,
    known: HashSet<JobId>,
}

impl Events {
    async fn look(&mut self, bus: &Bus) {
        let most = Duration::from_secs(bus.config().event_age_s);
        let now = bus.broker_ms().await;
        for _ in 0..AT_ONCE {
            let Some(event) = bus.first_from(StreamName::Events, ANY, self.next).await else {
                // A stream that was made anew begins at 1.
                self.next = 1;
                break;
            };
            if age(&event, now) < most {
                break;
            }
            self.next = event.sequence + 1;
            if let Some(job) = bus.subjects().job_of(&event.subject)
                && self.known.insert(job.clone())
            {
                self.due.insert((now, job));
            }
        }
        for _ in 0..AT_ONCE {
            if self.due.first().is_none_or(|(at, _)| *at > now) {
                break;
            }
            let Some((_, job)) = self.due.pop_first() else { break };
            self.known.remove(&job);
            let log = EventLog::open(bus, &job).await;
            let Some(last) = log.last() else { continue };
            // One that has not ended keeps its events for the whole time from now on at least.
            let from = if log.ended().is_some() { last.at_ms } else { now };
            let at = from.saturating_add(most.as_millis() as u64);
            if at <= now {
                tracing::debug!(%job, "events dropped");
                // First what is left of it elsewhere, as where an acknowledgement was lost: without its events nobody knows
                // that it has ended, and the next job of its id would be answered with what this one asked.
                bus.purge_job(&job).await;
                bus.purge_up_to(StreamName::Events, bus.subjects().events(&job), log.last_sequence()).await;
            } else {
                self.known.insert(job.clone());
                self.due.insert((at, job));
            }
        }
    }
}

/// Fails jobs that have waited in line for longer than they may.
async fn fail_those_who_wait(bus: &Bus) {
    let most = Duration::from_secs(bus.config().job_age_s);
    let now = bus.broker_ms().await;
    let mut from = 1;
    for _ in 0..AT_ONCE {
        let Some(waiting) = bus.first_from(StreamName::Line, ANY, from).await else { return };
        if age(&waiting, now) < most {
            return;
        }
        from = waiting.sequence + 1;
        let Some(job) = bus.subjects().job_of(&waiting.subject) else { continue };
        // In flight, it stays where it waited.
        if owner_is_there(bus, &job).await {
            continue;
        }
        let error = waited_too_long(most);
        tracing::warn!(%job, %error, "job failed");
        if EventLog::open(bus, &job).await.append(Event::Failed { error }).await.is_ok() {
            clear(bus, &job).await;
        }
    }
}
