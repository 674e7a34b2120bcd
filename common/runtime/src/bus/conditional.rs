//! Writing behind a known message of a subject, exactly once.
//!
//! A conditional write whose acknowledgement is lost may have been stored or not, and no read can tell: a read may be
//! answered without a write that was sent before it (seen 27 of 40 times on nats-server 2.15.1). Nor does a message id
//! alone: servers from 2.12 on check the condition before the id, so that a message sent again is refused (10071) and not
//! recognised. So the very same message is sent again until the answer is definite: stored, or refused. Only then is the
//! subject read, behind the place of the write, for a message with the own id: the refusal came after every earlier copy
//! was dealt with, so that a copy that was stored is there.
//!
//! In a cluster that holds of the stream's leader. For some milliseconds two servers may take themselves for it, where one
//! stood still and goes on: the older one stores nothing (most of the others have to have it first), but it refuses by what it
//! knew, and shows that to who reads. So "nothing of mine follows" is not definite there, and whoever tries again with another
//! id looks for all the ids that it has tried.

use async_nats::HeaderMap;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;

use super::handle::Bus;
use super::tries::{Tries, Trouble};

/// The header that names a message.
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// A message that shall stand right behind sequence `behind` of its subject, or not at all.
pub(crate) struct Conditional {
    pub subject: String,
    /// No other message has it.
    pub id: String,
    pub headers: HeaderMap,
    /// Sequence on the stream of the subject's last message; 0 for none.
    pub behind: u64,
    pub body: Bytes,
}

/// The definite answer to a conditional write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// It has this sequence on the stream.
    At(u64),
    /// Another message stands at its place. That may be an earlier copy of itself: look for its id behind its place.
    Refused,
}

/// The id of a message on a stream.
pub(super) fn message_id(headers: &HeaderMap) -> Option<&str> {
    headers.get(MESSAGE_ID).map(|id| id.as_str())
}

impl Bus {
    /// Sends a message until the broker's answer is definite. Waits for a broker that is away.
    pub(crate) async fn store_behind(&self, message: &Conditional) -> Stored {
        let mut tries = Tries::new(self, &message.subject, "conditional publish");
        loop {
            let publish = PublishMessage::build()
                .headers(message.headers.clone())
                .message_id(&message.id)
                .expected_last_subject_sequence(message.behind)
                .payload(message.body.clone());
            let answer = match self.js.send_publish(message.subject.clone(), publish).await {
                Ok(ack) => ack.await,
                Err(e) => Err(e),
            };
            match answer {
                // A duplicate's sequence is that of the copy that was stored.
                Ok(ack) => return Stored::At(ack.sequence),
                Err(e) if e.kind() == PublishErrorKind::WrongLastSequence => return Stored::Refused,
                // Not definite: no answer, no leader, the subject or the id in process in a cluster (10164, 10158).
                Err(error) => tries.again(Trouble::from(&error), &error).await,
            }
        }
    }
}
