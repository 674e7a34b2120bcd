//! The deadlines of all jobs that wait or are in flight anywhere.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;

use super::admission;
use super::ending::ensure_ended;
use super::shutdown::{self, Shutdown};
use crate::bus::Bus;
use crate::bus::streams::ANY;
use crate::subject::StreamName;
use protocol::error::StageName;
use protocol::event::CancelledBy;
use protocol::message::{JobId, JobRequest};
use protocol::wire::{self, Encoding};

/// Time between two readings of the queue, for jobs whose announcement was missed.
const REREAD_EVERY: Duration = Duration::from_secs(15);
/// Pause before a broker that refused the subscription is asked again.
const AGAIN: Duration = Duration::from_millis(250);

/// Error of a process's idea of the broker's clock that is allowed for, milliseconds; an id is used again a second later at the
/// earliest.
const CLOCKS_MS: u64 = 500;

/// Watches the deadlines of all jobs that wait or are in flight anywhere, until `shutdown`. Every stage-llm worker does.
pub async fn watch(bus: Bus, mut shutdown: Shutdown) {
    let mut due: BTreeSet<Due> = BTreeSet::new();
    let mut reread = tokio::time::interval(REREAD_EVERY);
    let mut read = Read::default();
    let mut announced = loop {
        match bus.client().subscribe(format!("{}.*.*", bus.subjects().jobs())).await {
            Ok(announced) => break announced,
            Err(error) => tracing::warn!(%error, "subscription to waiting jobs failed, retrying"),
        }
        tokio::time::sleep(AGAIN).await;
    };
    loop {
        let now = tokio::select! {
            now = bus.broker_ms() => now,
            () = shutdown::begun(&mut shutdown) => return,
        };
        while due.first().is_some_and(|due| due.at_ms <= now) {
            let Some(due) = due.pop_first() else { break };
            tokio::spawn(end(bus.clone(), due));
        }
        let next = due.first().map(|due| Duration::from_millis(due.at_ms.saturating_sub(now)));
        tokio::select! {
            Some(message) = announced.next() => due.extend(due_of(&message.payload, message.headers.as_ref(), bus.known_ms())),
            _ = reread.tick() => due.extend(read.deadlines_of_waiting(&bus).await),
            () = tokio::time::sleep(next.unwrap_or(REREAD_EVERY)), if next.is_some() => {}
            () = shutdown::begun(&mut shutdown) => return,
        }
    }
}

/// Ends a job whose deadline has come, unless its events are gone and the id is another job's.
async fn end(bus: Bus, due: Due) {
    let first = bus.first_from(StreamName::Events, &bus.subjects().events(&due.job), 1).await;
    let begun_ms = first.map(|first| (first.time.unix_timestamp_nanos() / 1_000_000) as u64);
    if begun_ms.is_none_or(|begun| begun <= due.queued_ms.saturating_add(CLOCKS_MS)) {
        ensure_ended(bus, StageName::Llm, due.job, CancelledBy::Deadline, Encoding::default()).await;
    }
}

/// Deadline of a job; times are Unix milliseconds of the broker.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at_ms: u64,
    /// Time by which the job stood in line: its first event is not later.
    queued_ms: u64,
    job: JobId,
}

/// Deadline of a request that stood in line by `queued_ms`; none without a deadline.
fn due_of(body: &[u8], headers: Option<&async_nats::HeaderMap>, queued_ms: u64) -> Option<Due> {
    let request = wire::decode_any::<JobRequest>(body).ok()?;
    let allowed_ms = (request.deadline_s? * 1000.0) as u64;
    let submitted_ms = admission::submitted_ms(headers).unwrap_or(queued_ms);
    Some(Due { at_ms: submitted_ms.saturating_add(allowed_ms), queued_ms, job: request.job })
}

/// How far the queue of waiting jobs was read: each message is read once, however long it waits.
#[derive(Default)]
struct Read {
    /// Time when the stream was made; another one is read from its begin.
    made: Option<i128>,
    /// Sequence behind the last message that was read.
    next: u64,
}

impl Read {
    /// Deadlines of jobs that were queued since the last reading.
    async fn deadlines_of_waiting(&mut self, bus: &Bus) -> Vec<Due> {
        let mut found = Vec::new();
        let (made, last) = match bus.stream(StreamName::Line).await.get_info().await {
            Ok(info) => (Some(info.created.unix_timestamp_nanos()), info.state.last_sequence),
            Err(error) => {
                tracing::debug!(%error, "reading of waiting jobs failed, retrying later");
                return found;
            }
        };
        if made != self.made || last + 1 < self.next {
            *self = Read { made, next: 1 };
        }
        while self.next <= last
            && let Some(message) = bus.first_from(StreamName::Line, ANY, self.next).await
        {
            self.next = message.sequence + 1;
            let stored_ms = (message.time.unix_timestamp_nanos() / 1_000_000) as u64;
            found.extend(due_of(&message.payload, Some(&message.headers), stored_ms));
        }
        self.next = self.next.max(last + 1);
        found
    }
}
