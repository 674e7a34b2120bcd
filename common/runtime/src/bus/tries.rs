//! Asking the broker again, until it answers: what keeps it from answering, and what is done about that meanwhile.
//!
//! Trouble is of four kinds. A broker that is *away* (no connection, no answer, a cluster without a leader, or without the
//! server that a stream is on) is waited for. A stream or
//! consumer that is *gone* (deleted, or lost with the store of a broker that came back empty) is made again by who makes
//! streams, and waited for by the others. A publish that is *unanswered* may mean either: the broker says that nobody keeps a
//! subject only where nobody hears of it at all, and a client who follows its job does. So the stream is looked for, and made
//! again if it is gone. What the broker *refuses* (no room, no permission) is told, and tried again: it may be granted later.
//!
//! Whoever waits here is counted. A process that shall leave while something has waited for long leaves without it: what
//! it had in flight is delivered again ([`Bus::is_held_up`]).

use std::error::Error;
use std::fmt::Display;
use std::time::{Duration, Instant};

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::stream::{LastRawMessageError, LastRawMessageErrorKind};
use async_nats::jetstream::{self, ErrorCode};

use super::handle::Bus;
use crate::subject::StreamName;

/// First pause before a request is sent again; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(320);
/// Time between two log lines about one request.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// What an operator does where the broker has a stream and confirms nothing that is published on it: nats-server 2.15.1 keeps a
/// stream that it could not write once, and answers no publish on it any more.
const CANNOT_WRITE: &str = "the broker has the stream and confirms no message for it: look for a write error in its log, see that \
                            its store has room, and restart it";

/// Kind of trouble between a request and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The broker does not answer, or not definitely: it is away, or has no leader.
    Away,
    /// The stream or consumer is not there; of a cluster, nobody there leads it perhaps, which is found out when it is looked
    /// for to be made again.
    Gone,
    /// Nobody has confirmed a message that was sent. The broker stands still; or the stream is gone, and somebody else hears of
    /// its subject; or the broker has the stream and cannot write it.
    Unanswered,
    /// The broker says no: there is no room, or no permission.
    Refused,
}

/// Code of the error that a request to JetStream was answered with, where it is one.
fn of_code(code: ErrorCode) -> Trouble {
    match code {
        ErrorCode::STREAM_NOT_FOUND | ErrorCode::CONSUMER_NOT_FOUND => Trouble::Gone,
        ErrorCode::CLUSTER_NOT_AVAILABLE
        | ErrorCode::CLUSTER_NOT_LEADER
        | ErrorCode::CLUSTER_NOT_ACTIVE
        | ErrorCode::STREAM_OFFLINE
        | ErrorCode::CONSUMER_OFFLINE => Trouble::Away,
        _ => Trouble::Refused,
    }
}

impl From<&PublishError> for Trouble {
    fn from(error: &PublishError) -> Self {
        match error.kind() {
            PublishErrorKind::StreamNotFound => Trouble::Gone,
            PublishErrorKind::TimedOut => Trouble::Unanswered,
            PublishErrorKind::MaxPayloadExceeded | PublishErrorKind::WrongLastMessageId => Trouble::Refused,
            PublishErrorKind::Other => match error.source().and_then(|e| e.downcast_ref::<jetstream::Error>()) {
                Some(e) => of_code(e.error_code()),
                None => Trouble::Away,
            },
            _ => Trouble::Away,
        }
    }
}

impl From<&LastRawMessageError> for Trouble {
    fn from(error: &LastRawMessageError) -> Self {
        match error.kind() {
            LastRawMessageErrorKind::JetStream(e) => of_code(e.error_code()),
            _ => Trouble::Away,
        }
    }
}

/// Tries of one request.
pub(super) struct Tries<'a> {
    bus: &'a Bus,
    /// Stream that it is about; none for one that is not ours.
    stream: Option<StreamName>,
    /// What is tried, for the log.
    what: &'static str,
    pause: Duration,
    told: Option<Instant>,
    counted: bool,
}

impl<'a> Tries<'a> {
    /// Tries to publish on a subject; `what` names them in the log.
    pub fn new(bus: &'a Bus, subject: &str, what: &'static str) -> Self {
        Tries { bus, stream: bus.subjects().stream_of(subject), what, pause: FIRST_PAUSE, told: None, counted: false }
    }

    /// Tries of a request about a stream.
    pub fn of(bus: &'a Bus, stream: StreamName, what: &'static str) -> Self {
        Tries { bus, stream: Some(stream), what, pause: FIRST_PAUSE, told: None, counted: false }
    }

    /// Waits before the next try. A stream that is gone, or may be, is looked for, and made again if that is this process's to
    /// do; no longer than until a lost connection is there again.
    pub async fn again(&mut self, trouble: Trouble, error: &(dyn Display + Sync)) {
        if !self.counted && trouble != Trouble::Refused {
            self.counted = true;
            self.bus.held_up.begin();
        }
        let mut there = false;
        if let (Trouble::Gone | Trouble::Unanswered, Some(stream)) = (trouble, self.stream) {
            let mut reconnects = self.bus.reconnects_from_now();
            tokio::select! {
                found = self.bus.restore(stream) => there = found,
                _ = reconnects.changed() => {}
            }
        }
        if self.pause >= MAX_PAUSE && self.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            let stream = self.stream.map(|stream| stream.on(self.bus.subjects()));
            // Answered for the stream, the broker would have answered for the message.
            let hint = (there && trouble == Trouble::Unanswered).then_some(CANNOT_WRITE);
            tracing::warn!(stream, ?trouble, %error, hint, "{} failed, retrying", self.what);
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(MAX_PAUSE);
    }
}

impl Drop for Tries<'_> {
    fn drop(&mut self) {
        if self.counted {
            self.bus.held_up.end();
        }
    }
}

impl Bus {
    /// Whether this process has lost the broker, or some request of it waits for an answer or a stream that is not there.
    pub fn is_held_up(&self) -> bool {
        !self.is_connected() || self.held_up.is_any()
    }
}
