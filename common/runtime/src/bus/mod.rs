//! The broker: connection, streams and consumers, reliable publishing, and each job's event log.
//!
//! In reading order: `connect` (who a process is to the broker), this file (publishing), [`streams`] (what exists on the
//! server), [`follow`] (reading a subject for as long as it takes), [`events`] (what a client hears), [`room`] (whose
//! tokens fit the token stream).

mod connect;
pub mod events;
pub mod follow;
pub mod room;
pub mod streams;

pub use connect::{BusError, BusErrorKind};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;

use crate::subject::Subjects;
use config::BusConfig;
use protocol::message::JobId;
use protocol::stage::Stop;

/// First pause before a publish is tried again; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(320);
/// What headers take beside a body; the server counts both against `max_payload`.
const HEADER_BYTES: usize = 1024;
/// The smallest stream holds this many messages of the largest size.
const STREAM_MESSAGES: usize = 4;
/// Header with the number of a later [`Attempt`].
const ATTEMPT: &str = "Vidi-Attempt";

/// One process's connection. Cheap to clone; all clones share it.
#[derive(Clone)]
pub struct Bus {
    client: async_nats::Client,
    js: jetstream::Context,
    /// Stores messages; a connection of its own where there is much to store, see [`Bus::with_outlet`].
    outlet: jetstream::Context,
    subjects: Subjects,
    config: Arc<BusConfig>,
    /// Tells this process from its replicas.
    instance: Arc<str>,
    reconnects: Arc<AtomicU64>,
    unreadable: Arc<AtomicU64>,
}

impl Bus {
    /// The core connection.
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }

    /// The streams' side of the connection.
    pub(crate) fn jetstream(&self) -> &jetstream::Context {
        &self.js
    }

    /// Names of subjects.
    pub fn subjects(&self) -> &Subjects {
        &self.subjects
    }

    /// How it is used.
    pub fn config(&self) -> &BusConfig {
        &self.config
    }

    /// This process among its replicas: stage, process id, and four random digits.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Times that the connection was lost and made again.
    pub fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// Messages outside the work queues (tokens, reports, control) that could not be read.
    pub fn unreadable(&self) -> u64 {
        self.unreadable.load(Ordering::Relaxed)
    }

    /// Counts a message that could not be read.
    pub(crate) fn note_unreadable(&self) {
        self.unreadable.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes that the body of one message may have: the size aimed at, or less if the server takes less, or if a stream
    /// would not hold a few of them.
    pub fn max_body(&self) -> usize {
        let stream = self.config.stream_bytes.max(0) as usize / STREAM_MESSAGES;
        // Each connection hears of the limit when it is made again; until both have, the smaller one holds.
        let max_payload = self.client.max_payload().min(self.outlet.client().max_payload());
        max_payload.min(stream).saturating_sub(HEADER_BYTES).min(self.config.message_bytes)
    }

    /// Stores one message, with the [headers] of its job, and returns when the broker has it. A full stream, or a broker
    /// that is away, is tried again until it works or `stop` says that nobody wants it any more.
    ///
    /// # Errors
    /// [`Stop::Cancelled`]; [`Stop::Unavailable`] when the broker takes smaller messages than when the body was made.
    pub async fn store(
        &self,
        subject: String,
        message_id: &str,
        headers: &HeaderMap,
        body: Bytes,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Stop> {
        let mut pause = FIRST_PAUSE;
        let mut complained = false;
        loop {
            if stop() {
                return Err(Stop::Cancelled);
            }
            let publish = PublishMessage::build().headers(headers.clone()).message_id(message_id).payload(body.clone());
            let error = match self.outlet.send_publish(subject.clone(), publish).await {
                Ok(ack) => match ack.await {
                    Ok(_) => return Ok(()),
                    Err(e) => e,
                },
                Err(e) => e,
            };
            if error.kind() == PublishErrorKind::MaxPayloadExceeded {
                return Err(Stop::Unavailable(format!("{message_id}: {error}")));
            }
            if pause >= MAX_PAUSE && !complained {
                complained = true;
                tracing::warn!(%message_id, %error, "broker does not take it; trying again");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Sends one message that may be lost.
    pub async fn tell(&self, subject: String, body: Vec<u8>) {
        if let Err(error) = self.client.publish(subject, body.into()).await {
            tracing::debug!(%error, "not told");
        }
    }
}

/// Headers of every message about a job (PROTOCOL.md).
pub fn headers(job: &JobId) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Vidi-Job", job.as_str());
    headers.insert("traceparent", trace_parent(job).as_str());
    headers
}

/// Which attempt at a job's work a message belongs to: what is asked for again, and all that is made of it, has ids of
/// its own. A broker may have lost the first attempt's messages and still know their ids, and would drop theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempt(
    /// Nothing else of the job has this number; 0 is the first attempt.
    pub u64,
);

impl Attempt {
    /// Of a message that came with these headers.
    pub fn of(headers: Option<&HeaderMap>) -> Self {
        let number = headers.and_then(|h| h.get(ATTEMPT)).and_then(|n| n.as_str().parse().ok());
        Attempt(number.unwrap_or(0))
    }

    /// Headers of every message of the attempt.
    pub fn headers(self, job: &JobId) -> HeaderMap {
        let mut headers = headers(job);
        if self.0 > 0 {
            headers.insert(ATTEMPT, self.0.to_string().as_str());
        }
        headers
    }

    /// The id, `<job>/<kind>/<offset>`, of a message of the attempt: the kind names a later one.
    pub fn id(self, first: String) -> String {
        match first.rsplit_once('/') {
            Some((kind, offset)) if self.0 > 0 => format!("{kind}-again-{}/{offset}", self.0),
            _ => first,
        }
    }
}

/// A W3C trace context that is the same wherever a job is worked on: its trace id is derived from the job's.
fn trace_parent(job: &JobId) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, job.as_str()).hash(&mut hasher);
        hasher.finish() | 1
    };
    format!("00-{:016x}{:016x}-{:016x}-01", half(0), half(1), half(2))
}
