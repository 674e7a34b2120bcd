//! The broker: connection, streams and consumers, reliable publishing, and each job's event log.
//!
//! In reading order: this file (connecting, publishing), [`streams`] (what exists on the server), [`follow`] (reading
//! a subject for as long as it takes), [`events`] (what a client hears), [`room`] (whose tokens fit the token stream).

pub mod events;
pub mod follow;
pub mod room;
pub mod streams;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;

use crate::config::BusConfig;
use crate::message::JobId;
use crate::stage::Stop;
use crate::subject::Subjects;

/// First pause before a publish is tried again; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_millis(320);
/// What headers take beside a body; the server counts both against `max_payload`.
const HEADER_BYTES: usize = 1024;
/// The smallest stream holds this many messages of the largest size.
const STREAM_MESSAGES: usize = 4;

/// What went wrong between this process and the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusErrorKind {
    /// Nobody answers at the address.
    Unreachable,
    /// The broker refuses these credentials.
    Credentials,
    /// The broker has no JetStream, or refuses a stream or consumer.
    JetStream,
}

/// A broker that cannot be used, and why.
#[derive(Clone, Debug)]
pub struct BusError {
    kind: BusErrorKind,
    detail: String,
}

impl BusError {
    /// An error with a sentence for a person.
    pub fn new(kind: BusErrorKind, detail: impl Into<String>) -> Self {
        BusError { kind, detail: detail.into() }
    }

    /// What callers match on.
    pub fn kind(&self) -> BusErrorKind {
        self.kind
    }
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for BusError {}

/// One process's connection. Cheap to clone; all clones share it.
#[derive(Clone)]
pub struct Bus {
    client: async_nats::Client,
    js: jetstream::Context,
    subjects: Subjects,
    config: Arc<BusConfig>,
    /// Tells this process from its replicas.
    instance: Arc<str>,
    reconnects: Arc<AtomicU64>,
    unreadable: Arc<AtomicU64>,
}

impl Bus {
    /// Connects, waiting up to `patience` for a broker that is still starting.
    ///
    /// # Errors
    /// [`BusErrorKind::Credentials`] at once, [`BusErrorKind::Unreachable`] when patience ends.
    pub async fn connect(config: &BusConfig, role: &str, patience: Duration) -> Result<Self, BusError> {
        let instance = format!("{role}-{}-{:04x}", std::process::id(), rand_u16());
        let reconnects = Arc::new(AtomicU64::new(0));
        let give_up = tokio::time::Instant::now() + patience;
        let client = loop {
            let options = connect_options(config, role, &instance, reconnects.clone()).await?;
            let error = match options.connect(&config.url).await {
                Ok(client) => break client,
                Err(e) => e,
            };
            use async_nats::ConnectErrorKind as K;
            if matches!(error.kind(), K::Authentication | K::AuthorizationViolation) {
                return Err(BusError::new(
                    BusErrorKind::Credentials,
                    format!("the broker at {} refuses these credentials: {error}", config.url),
                ));
            }
            if tokio::time::Instant::now() >= give_up {
                return Err(BusError::new(
                    BusErrorKind::Unreachable,
                    format!("no broker answers at {:?} within {patience:?}: {error}", config.url),
                ));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let js = jetstream::new(client.clone());
        let subjects = Subjects::new(&config.prefix);
        let config = Arc::new(config.clone());
        Ok(Bus { client, js, subjects, config, instance: instance.into(), reconnects, unreadable: Arc::default() })
    }

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
        self.client.max_payload().min(stream).saturating_sub(HEADER_BYTES).min(self.config.message_bytes)
    }

    /// Stores one message and returns when the broker has it. A full stream, or a broker that is away, is tried again
    /// until it works or `stop` says that nobody wants it any more.
    ///
    /// # Errors
    /// [`Stop::Cancelled`]; [`Stop::Unavailable`] when the broker takes smaller messages than when the body was made.
    pub async fn store(
        &self,
        subject: String,
        message_id: &str,
        job: &JobId,
        body: Bytes,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), Stop> {
        let mut pause = FIRST_PAUSE;
        let mut complained = false;
        loop {
            if stop() {
                return Err(Stop::Cancelled);
            }
            let publish = PublishMessage::build().headers(headers(job)).message_id(message_id).payload(body.clone());
            let error = match self.js.send_publish(subject.clone(), publish).await {
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

fn rand_u16() -> u16 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() as u16
}

async fn connect_options(
    config: &BusConfig,
    role: &str,
    instance: &str,
    reconnects: Arc<AtomicU64>,
) -> Result<async_nats::ConnectOptions, BusError> {
    let unreadable = |path: &std::path::Path, e: std::io::Error| {
        BusError::new(BusErrorKind::Credentials, format!("{}: {e}", path.display()))
    };
    let first = AtomicBool::new(true);
    let mut options = async_nats::ConnectOptions::new()
        .name(instance)
        // Counted in messages of up to max_payload: enough for control traffic, small enough not to hoard tensors.
        .subscription_capacity(256)
        .client_capacity(64)
        .custom_inbox_prefix(format!("_INBOX.{role}"))
        .reconnect_delay_callback(|n| Duration::from_millis((50 * n as u64).min(1000)))
        .event_callback(move |event| {
            match &event {
                async_nats::Event::Connected if !first.swap(false, Ordering::Relaxed) => {
                    reconnects.fetch_add(1, Ordering::Relaxed);
                    tracing::info!("connected to the broker again");
                }
                async_nats::Event::Connected | async_nats::Event::Closed => {}
                async_nats::Event::Disconnected => tracing::warn!("broker is away"),
                other => tracing::warn!(event = %other, "broker connection"),
            }
            async {}
        });
    if !config.user.is_empty() {
        options = options.user_and_password(config.user.clone(), config.password.clone());
    }
    if let Some(path) = &config.nkey_file {
        let seed = std::fs::read_to_string(path).map_err(|e| unreadable(path, e))?;
        options = options.nkey(seed.trim().to_owned());
    }
    if let Some(path) = &config.credentials_file {
        options = options.credentials_file(path).await.map_err(|e| unreadable(path, e))?;
    }
    if let Some(path) = &config.tls_ca {
        options = options.add_root_certificates(path.clone()).require_tls(true);
    }
    if let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) {
        options = options.add_client_certificate(cert.clone(), key.clone()).require_tls(true);
    }
    Ok(options)
}
