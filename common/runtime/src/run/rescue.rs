//! Messages that their queue has forgotten, sent again.
//!
//! A work queue drops what is acknowledged, so a message at or below the consumer's acknowledgement floor cannot be
//! there; yet nats-server 2.9.10 leaves some when workers die (its filters miss them, see [`Queue`]), and never
//! delivers them again. And when it is killed while a stream is empty it begins to count that stream anew, but not its
//! consumers: they deliver nothing until the stream has come to where they are.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::Stream;

use super::shutdown::{self, Shutdown};
use crate::bus::Bus;
use crate::bus::events::EventLog;
use crate::bus::queue::Queue;
use crate::bus::streams::ANY;
use crate::subject::StreamName;

/// Time between two searches of the queues for forgotten messages.
const EVERY: Duration = Duration::from_secs(3);
/// Messages of a stream that are looked at at a time. Seen once, a forgotten one may be acknowledged just now; so it is
/// looked at once more the next time.
const MOST: usize = 64;

/// Search of one stream, which goes on at the next look where it stopped: a look costs as much however many wait.
pub struct Search {
    stream: StreamName,
    queues: Vec<Queue>,
    /// Sequence from which the next look goes on.
    next: u64,
    /// Sequences of messages that may be forgotten.
    suspects: BTreeSet<u64>,
}

/// Looks, now and then until `shutdown`, for messages that their queue has forgotten, and sends them again. Every
/// stage-llm worker looks.
pub async fn rescue(bus: Bus, mut shutdown: Shutdown) {
    let mut searches = StreamName::ALL.map(|stream| Search::of(stream, &bus));
    loop {
        for search in &mut searches {
            search.look(&bus).await;
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = shutdown::begun(&mut shutdown) => return,
        }
    }
}

/// What a queue has delivered, or had acknowledged, up to a sequence: it will not deliver that again.
struct Behind<'a> {
    filter: &'a str,
    sequence: u64,
    /// Whether the stream counts anew, from below this sequence: what is there now cannot be what was delivered.
    anew: bool,
}

impl Search {
    /// Search of a stream from its first message on.
    pub fn of(stream: StreamName, bus: &Bus) -> Self {
        Search { stream, queues: Queue::of(stream, bus.subjects()), next: 1, suspects: BTreeSet::new() }
    }

    /// Looks at messages of the stream: what was a suspect at an earlier look and still is one is sent again.
    pub async fn look(&mut self, bus: &Bus) {
        if self.queues.is_empty() {
            return;
        }
        // What holds nothing has forgotten nothing.
        if bus.messages_in(self.stream).await == Some(0) {
            self.suspects.clear();
            self.next = 1;
            return;
        }
        let on = bus.stream(self.stream).await;
        let mut found = Vec::new();
        for queue in &self.queues {
            let Ok(info) = on.consumer_info(&queue.name).await else { continue };
            found.push((queue.takes.as_str(), info.delivered.stream_sequence, info.ack_floor.stream_sequence));
        }
        // After its queues: what is stored and delivered between the two answers is not what a stream that counts anew lacks.
        let Ok(info) = on.get_info().await else { return };
        let last = info.state.last_sequence;
        let behind = |(filter, delivered, acknowledged)| {
            let anew = last < delivered;
            Behind { filter, sequence: if anew { delivered } else { acknowledged }, anew }
        };
        let queues: Vec<Behind<'_>> = found.into_iter().map(behind).collect();
        let highest = queues.iter().map(|queue| queue.sequence).max().unwrap_or(0);
        let forgotten = |message: &StreamMessage| {
            let takes =
                |queue: &&Behind<'_>| takes(queue.filter, &message.subject) && message.sequence <= queue.sequence;
            queues.iter().find(takes)
        };
        for sequence in std::mem::take(&mut self.suspects) {
            let Some(message) = bus.first_from(self.stream, ANY, sequence).await else { continue };
            if message.sequence == sequence
                && let Some(queue) = forgotten(&message)
            {
                rescue_one(bus, self.stream, &on, message, queue.sequence).await;
            }
        }
        for _ in 0..MOST {
            let message = match self.next <= highest {
                true => bus.first_from(self.stream, ANY, self.next).await.filter(|m| m.sequence <= highest),
                false => None,
            };
            let Some(message) = message else {
                self.next = 1;
                return;
            };
            self.next = message.sequence + 1;
            match forgotten(&message) {
                Some(queue) if queue.anew => rescue_one(bus, self.stream, &on, message, queue.sequence).await,
                Some(_) => drop(self.suspects.insert(message.sequence)),
                None => {}
            }
        }
    }
}

/// Sends a forgotten message again, unless its job has ended, until it stands `behind` what its queue has delivered.
async fn rescue_one(bus: &Bus, stream: StreamName, on: &Stream<()>, message: StreamMessage, behind: u64) {
    let gone = match bus.subjects().job_of(&message.subject) {
        // Sent again it may be forgotten again, without end: 2.9.10 does not find it by its subject any more.
        Some(job) => EventLog::open(bus, &job).await.ended().is_some(),
        None => false,
    };
    let (subject, sequence) = (message.subject.as_str(), message.sequence);
    if !gone {
        tracing::warn!(subject, sequence, behind, "message forgotten by its queue, publishing again");
    }
    let mut at = sequence;
    loop {
        let sent = if gone { None } else { send_again(bus, stream, &message, sequence, at).await };
        // Another worker that sent it removes it: nothing is to be removed twice, see `Queue`.
        if (gone || sent.is_some())
            && let Err(error) = on.delete_message(at).await
        {
            tracing::debug!(%error, "removal failed of a message that its queue has forgotten");
        }
        match sent {
            Some(sent) if sent <= behind && sent > at => at = sent,
            _ => return,
        }
    }
}

/// Sends a message again that stood at `first` and stands `at` a sequence now; its next one, if it was this worker that did.
async fn send_again(bus: &Bus, stream: StreamName, message: &StreamMessage, first: u64, at: u64) -> Option<u64> {
    let mut headers = HeaderMap::new();
    // What it was to stand behind was told when it was first sent, and would refuse it now.
    for (name, values) in message.headers.iter().filter(|(name, _)| !name.to_string().starts_with("Nats-")) {
        values.iter().for_each(|value| headers.append(name.clone(), value.clone()));
    }
    // A stream that counts anew has had a message at this place before: the time tells them apart.
    let stored = message.time.unix_timestamp_nanos();
    let id = format!("rescued/{}/{first}/{at}/{stored}", stream.on(bus.subjects()));
    headers.insert("Nats-Msg-Id", id.as_str());
    let sent = bus.jetstream().publish_with_headers(message.subject.clone(), headers, message.payload.clone()).await;
    let ack = sent.ok()?.await.ok()?;
    (!ack.duplicate).then_some(ack.sequence)
}

/// Whether a queue's filter, a subject or one that ends in `.*`, takes a subject.
fn takes(filter: &str, subject: &str) -> bool {
    match filter.strip_suffix(".*") {
        Some(all_of) => subject.rsplit_once('.').is_some_and(|(parent, _)| parent == all_of),
        None => filter == subject,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_takes_its_own_subjects_only() {
        for (filter, taken, not) in [
            ("v.jobs", "v.jobs", "v.jobs.5.j"),
            ("v.jobs.5.*", "v.jobs.5.j", "v.jobs.6.j"),
            ("v.frames.*", "v.frames.j", "v.audio.j"),
        ] {
            assert!(takes(filter, taken) && !takes(filter, not), "{filter}");
        }
    }
}
