//! Reading a job's events: all of them, and where the log ends.

use async_nats::jetstream::message::StreamMessage;

use super::handle::Bus;
use super::headers::FencingToken;
use crate::subject::StreamName;
use protocol::event::{Event, JobEvent};
use protocol::message::JobId;
use protocol::wire::{self, Encoding};

/// End of a job's log, as last seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail {
    /// Sequence on the stream of the last event; 0 if there is none.
    pub stream_sequence: u64,
    pub event: Option<JobEvent>,
    /// Token of the owner that wrote it; 0 if none did.
    pub token: FencingToken,
    pub encoding: Encoding,
}

/// Whether an event is the one that a job's log begins with.
pub(super) fn is_first(event: &JobEvent) -> bool {
    matches!(event.event, Event::Accepted {})
}

/// Every readable event of a job, with the message that it came in; waits for a broker that is away.
pub(super) async fn read_all(bus: &Bus, job: &JobId) -> Vec<(StreamMessage, JobEvent)> {
    let subject = bus.subjects().events(job);
    let mut events = Vec::new();
    let mut from = 1;
    while let Some(message) = bus.first_from(StreamName::Events, &subject, from).await {
        from = message.sequence + 1;
        if let Ok(event) = wire::decode_any::<JobEvent>(&message.payload) {
            events.push((message, event));
        }
    }
    events
}

/// Reads the last event on a job's subject, waiting for a broker that is away.
pub(super) async fn read_tail(bus: &Bus, job: &JobId) -> Tail {
    let subject = bus.subjects().events(job);
    let Some(message) = bus.last_on(StreamName::Events, &subject).await else { return Tail::default() };
    if let Ok(event) = wire::decode_any::<JobEvent>(&message.payload) {
        return tail(&message, event, message.sequence);
    }
    // A stranger wrote there: the log goes on behind it, from the last event that can be read.
    tracing::warn!(%job, "event unreadable, skipped");
    bus.note_unreadable();
    let events = read_all(bus, job).await;
    match events.into_iter().next_back() {
        Some((readable, event)) => tail(&readable, event, message.sequence.max(readable.sequence)),
        None => Tail { stream_sequence: message.sequence, ..Tail::default() },
    }
}

fn tail(message: &StreamMessage, event: JobEvent, stream_sequence: u64) -> Tail {
    let token = FencingToken::of(&message.headers);
    Tail { stream_sequence, event: Some(event), token, encoding: Encoding::of(&message.payload) }
}
