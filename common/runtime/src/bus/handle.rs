//! One process's connection to the broker, and publishing over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use futures::FutureExt;

use super::clock::Clock;
use super::tries::{HeldUp, Tries, Trouble};
use crate::subject::Subjects;
use config::BusConfig;
use protocol::stage::Stop;

/// Bytes that headers take beside a body; the server counts both against `max_payload`.
const HEADER_BYTES: usize = 1024;
/// Messages of the largest size that the smallest stream holds.
const STREAM_MESSAGES: usize = 4;

/// Connection of one process. Cheap to clone; all clones share it.
#[derive(Clone)]
pub struct Bus {
    pub(super) client: async_nats::Client,
    pub(super) js: jetstream::Context,
    /// Stores messages; a connection of its own where there is much to store, see [`Bus::with_outlet`].
    pub(super) outlet: jetstream::Context,
    pub(super) subjects: Subjects,
    pub(super) config: Arc<BusConfig>,
    /// Tells this process from its replicas.
    pub(super) instance: Arc<str>,
    pub(super) reconnects: Arc<AtomicU64>,
    pub(super) unreadable: Arc<AtomicU64>,
    pub(super) clock: Arc<Clock>,
    /// Whether this process makes streams; the others wait for those that are not there.
    pub(super) makes_streams: bool,
    pub(super) held_up: Arc<HeldUp>,
}

impl Bus {
    /// Core connection.
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }

    /// JetStream's side of the connection.
    pub(crate) fn jetstream(&self) -> &jetstream::Context {
        &self.js
    }

    /// Names of subjects.
    pub fn subjects(&self) -> &Subjects {
        &self.subjects
    }

    /// Configuration of the bus.
    pub fn config(&self) -> &BusConfig {
        &self.config
    }

    /// Name of this process among its replicas: stage, process id, and four random digits.
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

    /// Stores one message, with the [headers](super::headers) of its job, and returns when the broker has it. A full
    /// stream, or a broker that is away, is tried again until it works, or until `unwanted` is over: then nobody wants
    /// the message any more. A publish that is on its way is waited for all the same: broken off, it could still arrive,
    /// behind whoever clears up.
    ///
    /// # Errors
    /// [`Stop::Cancelled`]; [`Stop::Unavailable`] when the broker takes smaller messages than when the body was made.
    pub async fn store(
        &self,
        subject: String,
        message_id: &str,
        headers: &HeaderMap,
        body: Bytes,
        unwanted: impl Future<Output = ()>,
    ) -> Result<(), Stop> {
        tokio::pin!(unwanted);
        if unwanted.as_mut().now_or_never().is_some() {
            return Err(Stop::Cancelled);
        }
        let mut tries = Tries::new(self, &subject, "publish");
        loop {
            let publish = PublishMessage::build().headers(headers.clone()).message_id(message_id).payload(body.clone());
            let error = match self.outlet.send_publish(subject.clone(), publish).await {
                Ok(ack) => match ack.await {
                    Ok(_) => return Ok(()),
                    Err(e) => e,
                },
                Err(e) => e,
            };
            if error.kind() == PublishErrorKind::MaxPayloadExceeded {
                return Err(Stop::Unavailable(format!("publish of {message_id} failed: {error}")));
            }
            tokio::select! {
                biased;
                () = &mut unwanted => return Err(Stop::Cancelled),
                () = tries.again(Trouble::from(&error), &error) => {}
            }
        }
    }

    /// Publishes one message that may be lost.
    pub async fn tell(&self, subject: String, body: Vec<u8>) {
        if let Err(error) = self.client.publish(subject, body.into()).await {
            tracing::debug!(%error, "publish failed, message dropped");
        }
    }
}
