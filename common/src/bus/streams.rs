//! What exists on the server: streams bounded in bytes, and one shared consumer per work queue.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream};

use super::{Bus, BusError, BusErrorKind};
use crate::error::StageName;
use crate::message::JobId;
use crate::subject::StreamName;

/// Window in which a second publish of the same `Nats-Msg-Id` is dropped.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// A job submitted again within this time is the same job even before its events are looked at.
const JOB_DUPLICATE_WINDOW: Duration = Duration::from_secs(3600);
/// Nothing stays longer, whoever forgot it.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Jobs that may wait, bytes.
const JOB_BYTES: i64 = 64 << 20;
/// Events of all jobs, bytes; the oldest go first.
const EVENT_BYTES: i64 = 256 << 20;
/// Unusable messages kept for an operator, bytes; the oldest go first.
const DEAD_BYTES: i64 = 256 << 20;

impl Bus {
    /// Makes sure that every stream exists. An existing stream stays as the operator made it.
    ///
    /// # Errors
    /// [`BusErrorKind::JetStream`] with the stream and the server's words.
    pub async fn ensure_streams(&self) -> Result<(), BusError> {
        for name in StreamName::ALL {
            let config = self.stream_config(name);
            let stream = config.name.clone();
            self.js.get_or_create_stream(config).await.map_err(|e| {
                BusError::new(
                    BusErrorKind::JetStream,
                    format!("stream {stream}: {e}; the broker needs JetStream (nats-server -js) with room for it"),
                )
            })?;
        }
        Ok(())
    }

    fn stream_config(&self, name: StreamName) -> Config {
        let c = self.config();
        let (retention, discard, max_bytes, max_age) = match name {
            StreamName::Jobs => (RetentionPolicy::WorkQueue, DiscardPolicy::New, JOB_BYTES, MAX_AGE),
            StreamName::Decode => (RetentionPolicy::WorkQueue, DiscardPolicy::New, JOB_BYTES, MAX_AGE),
            StreamName::Frames | StreamName::Audio | StreamName::Features => {
                (RetentionPolicy::WorkQueue, DiscardPolicy::New, c.stream_bytes, MAX_AGE)
            }
            StreamName::Tokens => (RetentionPolicy::Limits, DiscardPolicy::New, c.token_bytes, MAX_AGE),
            StreamName::Events => {
                (RetentionPolicy::Limits, DiscardPolicy::Old, EVENT_BYTES, Duration::from_secs(c.event_age_s))
            }
            StreamName::Dead => (RetentionPolicy::Limits, DiscardPolicy::Old, DEAD_BYTES, 7 * MAX_AGE),
        };
        let window = if name == StreamName::Jobs { JOB_DUPLICATE_WINDOW } else { DUPLICATE_WINDOW };
        Config {
            name: name.on(self.subjects()),
            subjects: name.subjects(self.subjects()),
            retention,
            discard,
            max_bytes,
            max_age,
            duplicate_window: window.min(max_age),
            storage: StorageType::File,
            num_replicas: 1,
            ..Default::default()
        }
    }

    /// A stream, without asking the server about it.
    ///
    /// # Errors
    /// [`BusErrorKind::JetStream`].
    pub async fn stream(&self, name: StreamName) -> Result<Stream<()>, BusError> {
        let on = name.on(self.subjects());
        self.js
            .get_stream_no_info(&on)
            .await
            .map_err(|e| BusError::new(BusErrorKind::JetStream, format!("stream {on}: {e}")))
    }

    /// The consumer that all workers of a queue share. `name` tells queues of one stream apart.
    ///
    /// # Errors
    /// [`BusErrorKind::JetStream`].
    pub async fn work_queue(&self, stream: StreamName, name: &str, filter: String) -> Result<PullConsumer, BusError> {
        let config = pull::Config {
            durable_name: Some(name.to_owned()),
            name: Some(name.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs_f64(self.config().ack_wait_s),
            max_deliver: self.config().max_deliver,
            filter_subject: filter,
            ..Default::default()
        };
        self.consumer(stream, config).await
    }

    /// A consumer of this process alone that reads a subject from sequence `start`, without acknowledging.
    ///
    /// # Errors
    /// [`BusErrorKind::JetStream`].
    pub async fn reader(&self, stream: StreamName, filter: String, start: u64) -> Result<PullConsumer, BusError> {
        let config = pull::Config {
            deliver_policy: match start {
                0 => DeliverPolicy::All,
                start_sequence => DeliverPolicy::ByStartSequence { start_sequence },
            },
            ack_policy: AckPolicy::None,
            filter_subject: filter,
            inactive_threshold: Duration::from_secs(60),
            memory_storage: true,
            ..Default::default()
        };
        self.consumer(stream, config).await
    }

    async fn consumer(&self, stream: StreamName, config: pull::Config) -> Result<PullConsumer, BusError> {
        let filter = config.filter_subject.clone();
        self.stream(stream).await?.create_consumer(config).await.map_err(|e| {
            let on = stream.on(self.subjects());
            BusError::new(BusErrorKind::JetStream, format!("consumer of {filter} on {on}: {e}"))
        })
    }

    /// Drops what waits in a stage's queue for a job, or, for stage-llm, the job's tokens.
    pub async fn purge(&self, stage: StageName, job: &JobId) {
        let stream = match stage {
            StageName::Llm => StreamName::Tokens,
            other => StreamName::input_of(other),
        };
        let filter = self.subjects().input(stage, job);
        match self.stream(stream).await {
            Ok(s) => {
                if let Err(error) = s.purge().filter(filter).await {
                    tracing::warn!(%job, %error, "could not purge");
                }
            }
            Err(error) => tracing::warn!(%job, %error, "could not purge"),
        }
    }
}
