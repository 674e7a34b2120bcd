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

/// Watches the deadlines of all jobs that wait or are in flight anywhere, until `shutdown`. Every stage-llm worker does.
pub async fn watch(bus: Bus, mut shutdown: Shutdown) {
    let mut due: BTreeSet<(u64, JobId)> = BTreeSet::new();
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
        while due.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, job)) = due.pop_first() else { break };
            let encoding = Encoding::default();
            tokio::spawn(ensure_ended(bus.clone(), StageName::Llm, job, CancelledBy::Deadline, encoding));
        }
        let next = due.first().map(|(at, _)| Duration::from_millis(at.saturating_sub(now)));
        tokio::select! {
            Some(message) = announced.next() => due.extend(deadline_of(&message.payload, message.headers.as_ref(), now)),
            _ = reread.tick() => due.extend(read.deadlines_of_waiting(&bus).await),
            () = tokio::time::sleep(next.unwrap_or(REREAD_EVERY)), if next.is_some() => {}
            () = shutdown::begun(&mut shutdown) => return,
        }
    }
}

/// Deadline of a request, Unix milliseconds of the broker, and its job; none without a deadline. `stored_ms` stands for a
/// time of submission that its headers do not tell.
fn deadline_of(body: &[u8], headers: Option<&async_nats::HeaderMap>, stored_ms: u64) -> Option<(u64, JobId)> {
    let request = wire::decode_any::<JobRequest>(body).ok()?;
    let allowed_ms = (request.deadline_s? * 1000.0) as u64;
    let submitted_ms = admission::submitted_ms(headers).unwrap_or(stored_ms);
    Some((submitted_ms.saturating_add(allowed_ms), request.job))
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
    async fn deadlines_of_waiting(&mut self, bus: &Bus) -> Vec<(u64, JobId)> {
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
            found.extend(deadline_of(&message.payload, Some(&message.headers), stored_ms));
        }
        self.next = self.next.max(last + 1);
        found
    }
}
