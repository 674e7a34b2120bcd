//! What exists on the server: streams bounded in bytes, and one shared consumer per work queue.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RawMessageErrorKind, RetentionPolicy, StorageType, Stream};
use futures::TryStreamExt;

use super::error::{BusError, BusErrorKind};
use super::handle::Bus;
use crate::subject::StreamName;
use protocol::error::StageName;
use protocol::message::JobId;

/// Window in which a second publish of the same `Nats-Msg-Id` is dropped.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// Window in which a job submitted again is the same job even before its events are looked at.
const JOB_DUPLICATE_WINDOW: Duration = Duration::from_secs(3600);
/// Nothing stays longer, whoever forgot it.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Bytes of jobs that may wait.
const JOB_BYTES: i64 = 64 << 20;
/// Bytes of events of all jobs; the oldest go first.
const EVENT_BYTES: i64 = 256 << 20;
/// Bytes of unusable messages kept for an operator; the oldest go first.
const DEAD_BYTES: i64 = 256 << 20;
/// Bytes of the ledger of the token stream's capacity: one message, replaced by every newer one.
const CAPACITY_BYTES: i64 = 16 << 20;
/// Times that a stream which another may be making at the same time is asked for before that is no excuse any more.
const RACE_TRIES: usize = 25;
/// Every subject of a stream.
pub const ANY: &str = ">";
/// Pause before a broker that did not answer is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// Whether an error is what a server may say to the second of two that make a stream at the same time: no storage left, or (2.9.10) that the
/// stream's own subjects overlap.
fn may_be_a_race(error: &CreateStreamError) -> bool {
    let CreateStreamErrorKind::JetStream(ref e) = error.kind() else { return false };
    [ErrorCode::STORAGE_RESOURCES_EXCEEDED, ErrorCode::STREAM_SUBJECT_OVERLAP].contains(&e.error_code())
}

impl Bus {
    /// Makes sure that every stream exists. An existing stream stays as the operator made it.
    ///
    /// # Errors
    /// [`BusErrorKind::JetStream`] with the stream and the server's words.
    pub async fn ensure_streams(&self) -> Result<(), BusError> {
        for name in StreamName::ALL {
            let config = self.stream_config(name);
            let stream = config.name.clone();
            self.ensure_stream(config).await.map_err(|e| {
                BusError::new(
                    BusErrorKind::JetStream,
                    format!("stream {stream}: {e}; the broker needs JetStream (nats-server -js) with storage for it"),
                )
            })?;
        }
        Ok(())
    }

    /// While two make a stream at the same time (stage-llm and `vidi up`, say), the server counts its storage twice, and may
    /// tell the second that there is not enough; a moment later the stream is there.
    async fn ensure_stream(&self, config: Config) -> Result<(), CreateStreamError> {
        for _ in 0..RACE_TRIES {
            match self.js.get_or_create_stream(config.clone()).await {
                Err(e) if may_be_a_race(&e) => tokio::time::sleep(AGAIN).await,
                outcome => return outcome.map(drop),
            }
        }
        self.js.get_or_create_stream(config).await.map(drop)
    }

    /// Waits for a stream that others make: stage-llm and operators make all of them, so that the other stages need no
    /// permission to.
    ///
    /// # Errors
    /// [`BusErrorKind::JetStream`] when the broker has none, or does not let us see the stream.
    pub async fn await_stream(&self, name: StreamName) -> Result<(), BusError> {
        let on = name.on(self.subjects());
        let mut told = false;
        loop {
            let Err(error) = self.js.get_stream(&on).await else { return Ok(()) };
            let missing = matches!(error.kind(), GetStreamErrorKind::JetStream(ref e) if e.error_code() == ErrorCode::STREAM_NOT_FOUND);
            if !missing {
                let text = format!(
                    "stream {on}: {error}; the broker needs JetStream (nats-server -js), and this user the permissions \
                     in deploy/nats.conf"
                );
                return Err(BusError::new(BusErrorKind::JetStream, text));
            }
            if !told {
                told = true;
                tracing::info!(stream = on, "stream missing, waiting for stage-llm to make it");
            }
            tokio::time::sleep(AGAIN).await;
        }
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
            StreamName::Capacity => (RetentionPolicy::Limits, DiscardPolicy::Old, CAPACITY_BYTES, Duration::ZERO),
        };
        let window = if name == StreamName::Jobs { JOB_DUPLICATE_WINDOW } else { DUPLICATE_WINDOW };
        let duplicate_window = if max_age.is_zero() { window } else { window.min(max_age) };
        Config {
            name: name.on(self.subjects()),
            subjects: name.subjects(self.subjects()),
            retention,
            discard,
            max_bytes,
            max_age,
            duplicate_window,
            max_messages_per_subject: if name == StreamName::Capacity { 1 } else { -1 },
            storage: StorageType::File,
            num_replicas: 1,
            ..Default::default()
        }
    }

    /// Stream by its name, without asking the server about it.
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

    /// Consumer that all workers of a queue share. `name` tells queues of one stream apart, and `filter` what is theirs;
    /// none where the stream is one queue. A filter is not given without need: nats-server 2.9.10 loses count of a
    /// subject's messages when one is removed twice (acknowledged by two workers, say), and then finds none of them by a
    /// filter with a wildcard. The server delivers without end; whoever receives a message more than `max_deliver` times
    /// fails its job (`Delivery::exhausted` of the run loop). So nothing stays behind in the queue unseen.
    ///
    /// # Errors
    /// [`BusErrorKind::JetStream`].
    pub async fn work_queue(
        &self,
        stream: StreamName,
        name: &str,
        filter: Option<String>,
    ) -> Result<PullConsumer, BusError> {
        let config = pull::Config {
            durable_name: Some(name.to_owned()),
            name: Some(name.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs_f64(self.config().ack_wait_s),
            max_deliver: -1,
            filter_subject: filter.unwrap_or_default(),
            ..Default::default()
        };
        self.consumer(stream, config).await
    }

    /// Consumer of this process alone that reads a subject from sequence `start`, without acknowledging.
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

    pub(super) async fn consumer(&self, stream: StreamName, config: pull::Config) -> Result<PullConsumer, BusError> {
        let filter = if config.filter_subject.is_empty() { ANY.to_owned() } else { config.filter_subject.clone() };
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
        self.purge_subject(stream, self.subjects().input(stage, job)).await;
    }

    /// Drops what a stage has handed on for a job that has ended.
    pub async fn purge_outputs(&self, stage: StageName, job: &JobId) {
        let takers: &[StageName] = match stage {
            StageName::Decode => &[StageName::Vision, StageName::Audio],
            StageName::Vision | StageName::Audio => &[StageName::Fuse],
            StageName::Fuse => &[StageName::Llm],
            StageName::Llm => &[StageName::Decode],
        };
        for &taker in takers {
            self.purge(taker, job).await;
        }
    }

    /// Drops all that the streams hold of a job that has ended, but its events.
    pub async fn purge_job(&self, job: &JobId) {
        for stage in StageName::ALL {
            self.purge(stage, job).await;
        }
        self.purge_subject(StreamName::Jobs, self.subjects().waiting_anywhere(job)).await;
    }

    /// Drops what a stream holds on a subject.
    pub async fn purge_subject(&self, stream: StreamName, subject: String) {
        match self.stream(stream).await {
            Ok(s) => {
                if let Err(error) = s.purge().filter(subject.clone()).await {
                    tracing::warn!(subject, %error, "purge failed");
                }
            }
            Err(error) => tracing::warn!(subject, %error, "purge failed"),
        }
    }

    /// First message on a subject, or of the whole [stream](ANY), at or behind a sequence; waits for a broker that is
    /// away. No other wildcards: see [`work_queue`](Self::work_queue).
    pub async fn first_from(&self, stream: StreamName, subject: &str, sequence: u64) -> Option<StreamMessage> {
        loop {
            let error = match self.stream(stream).await {
                Ok(s) => match s.get_first_raw_message_by_subject(subject, sequence.max(1)).await {
                    Ok(message) => return Some(message),
                    Err(e) if e.kind() == RawMessageErrorKind::NoMessageFound => return None,
                    Err(e) => e.to_string(),
                },
                Err(e) => e.to_string(),
            };
            tracing::warn!(subject, error, "reading a stream failed, retrying");
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Whether anything of a job is still on its way to its owner, who has seen its tokens up to a sequence. A message
    /// stays in its queue until what is made of it is in the next one: looked for in that order, none is missed.
    pub async fn is_on_its_way(&self, job: &JobId, seen: u64) -> bool {
        for stage in [StageName::Decode, StageName::Vision, StageName::Audio, StageName::Fuse] {
            let queue = StreamName::input_of(stage);
            if self.first_from(queue, &self.subjects().input(stage, job), 1).await.is_some() {
                return true;
            }
        }
        self.first_from(StreamName::Tokens, &self.subjects().tokens(job), seen + 1).await.is_some()
    }

    /// Subjects that a stream holds messages on.
    ///
    /// # Errors
    /// [`BusErrorKind::JetStream`].
    pub async fn subjects_in(&self, stream: StreamName) -> Result<Vec<String>, BusError> {
        let failed = |e: String| BusError::new(BusErrorKind::JetStream, format!("subjects of {stream:?}: {e}"));
        let info = self.stream(stream).await?.info_with_subjects(">").await.map_err(|e| failed(e.to_string()))?;
        info.map_ok(|(subject, _)| subject).try_collect().await.map_err(|e| failed(e.to_string()))
    }
}
