//! One process's connection to the broker, and publishing over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_nats::jetstream;
use tokio::sync::watch;

use super::clock::Clock;
use super::held_up::HeldUp;
use crate::subject::Subjects;
use config::BusConfig;

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
    pub(super) reconnects: Arc<watch::Sender<u64>>,
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
        *self.reconnects.borrow()
    }

    /// Whether the broker is there, as far as this process has noticed.
    pub(crate) fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Changes each time that the connection was lost and made again: what the broker was asked before may never be answered.
    pub(crate) fn reconnects_from_now(&self) -> watch::Receiver<u64> {
        self.reconnects.subscribe()
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
        self.max_message().min(stream.saturating_sub(HEADER_BYTES)).min(self.config.message_bytes)
    }

    /// Bytes of a body that the server takes, in one message with our headers.
    pub fn max_message(&self) -> usize {
        // Each connection hears of the limit when it is made again; until both have, the smaller one holds.
        self.client.max_payload().min(self.outlet.client().max_payload()).saturating_sub(HEADER_BYTES)
    }

    /// Publishes one message that may be lost.
    pub async fn tell(&self, subject: String, body: Vec<u8>) {
        if let Err(error) = self.client.publish(subject, body.into()).await {
            tracing::debug!(%error, "publish failed, message dropped");
        }
    }
}
