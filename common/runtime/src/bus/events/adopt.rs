//! What others have written to a job's log meanwhile: the log goes on behind it.

use super::EventLog;
use crate::bus::conditional::message_id;
use crate::bus::headers::FencingToken;
use crate::bus::past_events::{Tail, is_first, read_all, read_tail};
use crate::subject::StreamName;
use protocol::event::JobEvent;
use protocol::wire;

/// Looks at what follows an event that was refused, before nothing does.
const LOOKS: u32 = 5;

impl EventLog {
    /// Looks again where the log ends. What others have written since is adopted, unless it is [another job's](Self::is_anothers).
    pub async fn look(&mut self) {
        let behind = self.tail.stream_sequence;
        if read_tail(&self.bus, &self.job).await.stream_sequence != behind {
            self.adopt_what_follows(behind, &[]).await;
        }
    }

    /// Whether the log is another job's by now, which was admitted under this id once the events of this one were gone, or
    /// another owner writes it.
    pub fn is_anothers(&self) -> bool {
        self.taken
    }

    /// Reads every message that stands behind sequence `behind` of the job's subject and takes the last one for the tail.
    /// The sequence of the one with one of these ids, if it is among them.
    pub(super) async fn adopt_what_follows(&mut self, behind: u64, ids: &[String]) -> Option<u64> {
        let mut own = None;
        for look in 1.. {
            let from = self.adopt_from(behind + 1, ids, &mut own).await;
            if from > behind + 1 {
                break;
            }
            let tail = read_tail(&self.bus, &self.job).await;
            if tail.stream_sequence > behind && look < LOOKS {
                // It follows after all: a server that is no leader any more has answered before.
                continue;
            }
            // Nothing follows, and yet the place was refused: what stood there is gone, as when the stream was emptied.
            self.tail = Tail { encoding: self.tail.encoding, ..tail };
            let events = read_all(&self.bus, &self.job).await;
            let later = |event: &JobEvent| is_first(event) && event.at_ms > self.seen_ms;
            self.taken |= self.has_begun() && events.iter().any(|(_, event)| later(event));
            break;
        }
        if !self.taken {
            self.seen_ms = self.tail.event.as_ref().map_or(self.seen_ms, |e| e.at_ms);
        }
        own
    }

    /// Takes the last message from a sequence on for the tail; the sequence behind it, or `from` if there is none. Notes in
    /// `own` which one has one of these ids.
    async fn adopt_from(&mut self, mut from: u64, ids: &[String], own: &mut Option<u64>) -> u64 {
        let subject = self.bus.subjects().events(&self.job);
        while let Some(message) = self.bus.first_from(StreamName::Events, &subject, from).await {
            from = message.sequence + 1;
            if message_id(&message.headers).is_some_and(|id| ids.iter().any(|own| own == id)) {
                *own = Some(message.sequence);
            }
            self.tail.stream_sequence = message.sequence;
            match wire::decode_any::<JobEvent>(&message.payload) {
                Ok(event) => {
                    self.tail.token = FencingToken::of(&message.headers);
                    // A job is admitted once: behind what was seen of one begins another.
                    self.taken |= self.has_begun() && is_first(&event);
                    // A broker that was killed may deliver a job twice with one number. Whoever comes second leaves.
                    let is_own = message_id(&message.headers).is_some_and(|id| id.starts_with(&self.signature()));
                    self.taken |= self.token > FencingToken::default()
                        && self.tail.token == self.token
                        && !is_own
                        && !event.event.is_terminal();
                    self.tail.event = Some(event);
                }
                Err(error) => {
                    // A stranger wrote there: the log goes on behind it, from the last event that can be read.
                    tracing::warn!(job = %self.job, %error, "event unreadable, the log goes on behind it");
                    self.bus.note_unreadable();
                }
            }
        }
        from
    }
}
