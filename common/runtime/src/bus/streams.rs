//! What exists on the server: streams bounded in bytes, and the consumers that read them; those of work queues are in
//! [`queue`](super::queue).

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{Config, Info, LastRawMessageErrorKind, RawMessageErrorKind, Stream};
use config::Storage;
use futures::TryStreamExt;

use super::error::{BusError, BusErrorKind};
use super::handle::Bus;
use super::queue::Queue;
use super::settings::{differences, replicas, stream_config};
use super::size::{bytes_in, storage, stream_bytes};
use super::tries::{Tries, Trouble};
use crate::subject::StreamName;
use protocol::bytes::Bytes;
use protocol::error::StageName;
use protocol::message::JobId;

/// Times that a stream which another may be making at the same time is asked for before that is no excuse any more.
const RACE_TRIES: usize = 25;
/// Times that the queues of a stream are tried again that another may be making at the same time.
const QUEUE_TRIES: usize = 5;
/// Every subject of a stream.
pub const ANY: &str = ">";
/// Time after which a broker has removed the files of a stream that it deletes. It shows the stream no more as soon as it begins to.
/// One that is made meanwhile finds the files, counts on from them, and loses them: then nats-server 2.15.1 answers no publish
/// on it until it is restarted (seen of 4 in 900 that were made within milliseconds of a delete, and of none in 2,000 made a second later).
const DELETING: Duration = Duration::from_secs(1);
/// Pause before a broker that did not answer is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// Whether an error is what a server may say to the second of two that make a stream at the same time: no storage left, no store
/// made (the first one's files are there, or those of a stream that was just deleted still are), or (2.9.10) that the stream's
/// own subjects overlap.
fn may_be_a_race(error: &CreateStreamError) -> bool {
    let CreateStreamErrorKind::JetStream(ref e) = error.kind() else { return false };
    [
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        ErrorCode::MEMORY_RESOURCES_EXCEEDED,
        ErrorCode::STREAM_CREATE,
        ErrorCode::STREAM_SUBJECT_OVERLAP,
    ]
    .contains(&e.error_code())
}

/// Whether the broker says that it has no such stream.
fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(ref e) if e.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Time when a stream was made, Unix nanoseconds of the broker's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MadeAt(i128);

/// How far a stream has counted its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    made: MadeAt,
    /// Sequence of its last message, or of the last one that it had.
    last: u64,
}

impl Counted {
    /// Whether the stream has begun to count anew since it was at `before`: it was made again, or its server came back without
    /// what it had in memory, as one of a cluster does.
    pub fn anew_since(self, before: Counted) -> bool {
        self.made != before.made || self.last < before.last
    }

    /// Whether it is the same stream that stored a message at `sequence`, at a time in Unix milliseconds.
    pub fn has_stored(self, sequence: u64, stored_ms: u64) -> bool {
        self.made.0 / 1_000_000 <= i128::from(stored_ms) && sequence <= self.last
    }
}

impl Bus {
    /// Makes sure that every stream exists, with its queues; a cluster that elects a leader, or waits for one of its servers, has
    /// a minute for each. An existing stream stays as the operator made it; what of it is otherwise than configured is told.
    ///
    /// # Errors
    /// [`BusErrorKind::JetStream`] or [`BusErrorKind::Leaderless`] with the stream and the server's words.
    pub async fn ensure_streams(&self) -> Result<(), BusError> {
        for name in StreamName::ALL {
            let found = self.once_led(|| self.ensure_stream(name)).await?;
            for difference in differences(&found, &self.stream_config(name)) {
                tracing::warn!(stream = name.on(self.subjects()), "the stream is not as configured: {difference}");
            }
        }
        // Behind all of them: a queue may have to wait until its stream is set up.
        for name in StreamName::ALL {
            self.make_queues_behind(name).await?;
        }
        Ok(())
    }

    /// Makes the queues of a stream that was just found or made. While another process makes it at the same time, a server may
    /// say for a moment that there is no such stream.
    async fn make_queues_behind(&self, name: StreamName) -> Result<(), BusError> {
        for _ in 0..QUEUE_TRIES {
            match self.once_led(|| self.make_queues(name)).await {
                // A leader has been waited for already.
                Err(error) if error.kind() != BusErrorKind::Leaderless => {
                    tracing::debug!(%error, "making queues failed, retrying");
                }
                outcome => return outcome,
            }
            tokio::time::sleep(AGAIN).await;
            self.once_led(|| self.ensure_stream(name)).await?;
        }
        self.once_led(|| self.make_queues(name)).await
    }

    /// Makes a stream again that is gone, and those of its queues that are, if making streams is this process's to do; true if it
    /// is there. One that was deleted just now is made when the broker has done with it.
    pub(crate) async fn restore(&self, name: StreamName) -> bool {
        if !self.makes_streams {
            return false;
        }
        let found = match self.js.get_stream(name.on(self.subjects())).await {
            Ok(stream) => Ok(stream.cached_info().clone()),
            Err(error) if is_missing(&error) => {
                tokio::time::sleep(DELETING).await;
                self.get_or_make(self.stream_config(name)).await.map_err(|e| e.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        let made = match found {
            // Nothing else reads a work queue: where there are as many consumers as queues, each queue has its own.
            Ok(info) if info.state.consumer_count >= Queue::of(name, self.subjects()).len() => Ok(()),
            Ok(_) => self.make_queues(name).await.map_err(|e| e.to_string()),
            Err(error) => Err(error),
        };
        if let Err(error) = &made {
            tracing::debug!(error, stream = name.on(self.subjects()), "making a stream again failed, retrying");
        }
        made.is_ok()
    }

    /// Makes sure that a stream exists, and that one which exists holds what it is to hold; its settings.
    async fn ensure_stream(&self, name: StreamName) -> Result<Config, BusError> {
        let wanted = self.stream_config(name);
        let on = wanted.name.clone();
        let found = match self.get_or_make(wanted.clone()).await {
            Ok(info) => info.config,
            Err(error) => {
                return Err(BusError::new(
                    self.kind_of(&error),
                    format!("stream {on}: {}", self.not_made(name, &error)),
                ));
            }
        };
        if found.subjects != wanted.subjects || found.retention != wanted.retention {
            let text = format!(
                "stream {on}: it holds {:?} as {:?}, not {:?} as {:?}: another version of Vidi made it; when its jobs have ended, \
                 delete it (`nats stream rm {on}`), or stop the broker and remove its store",
                found.subjects, found.retention, wanted.subjects, wanted.retention
            );
            return Err(BusError::new(BusErrorKind::JetStream, text));
        }
        Ok(found)
    }

    /// Why a stream is neither there nor made, and what to do, for a person.
    fn not_made(&self, name: StreamName, error: &CreateStreamError) -> String {
        let code = match error.kind() {
            CreateStreamErrorKind::JetStream(e) => Some(e.error_code()),
            _ => None,
        };
        let replicas = replicas(name, self.config());
        match code {
            Some(ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED) => format!(
                "{error}; bus.replicas is {replicas}, and the broker is one server without a cluster: set bus.replicas = 1, or \
                 run a cluster of {replicas} servers and name them in bus.url (deploy/README.md)"
            ),
            Some(ErrorCode::CLUSTER_NO_PEERS) => format!(
                "{error}; it is to be held by {replicas} (bus.replicas) servers of the cluster, and fewer are there that have \
                 room for it: start the missing ones (`nats server report jetstream` shows them), or lower bus.replicas"
            ),
            Some(ErrorCode::CLUSTER_NOT_AVAILABLE | ErrorCode::STREAM_OFFLINE) => {
                format!(
                    "{error}; more than half of the cluster's servers, and those that hold the stream, have to be there"
                )
            }
            _ => {
                let own = Bytes(stream_bytes(name, self.config()).max(0).unsigned_abs());
                let place = storage(name, self.config());
                let all = Bytes(bytes_in(place, self.config()));
                let (here, room) = match place {
                    Storage::File => ("in files", "storage (max_file_store, and room in store_dir)"),
                    Storage::Memory => {
                        ("in memory", "memory (max_memory_store; bus.data_storage = \"file\" needs none)")
                    }
                };
                format!(
                    "{error}; it takes {own} of the {all} of all streams {here}: the broker needs JetStream (nats-server -js) \
                     with that much {room}, or smaller streams (bus.token_bytes, bus.stream_bytes, bus.queue_bytes)"
                )
            }
        }
    }

    /// A stream, which is made if it is not there. While two make one at the same time (stage-llm and
    /// `vidi up`, say), the server counts its storage twice, and may tell the second that there is not enough; a moment
    /// later the stream is there.
    async fn get_or_make(&self, wanted: Config) -> Result<Info, CreateStreamError> {
        let made = async || Ok(self.js.get_or_create_stream(wanted.clone()).await?.cached_info().clone());
        for _ in 0..RACE_TRIES {
            match made().await {
                Err(e) if may_be_a_race(&e) => tokio::time::sleep(AGAIN).await,
                outcome => return outcome,
            }
        }
        made().await
    }

    /// Waits for a stream that others make: stage-llm and operators make all of them, so that the other stages need no
    /// permission to. Waits also for a cluster that has no leader for it.
    ///
    /// # Errors
    /// [`BusErrorKind::JetStream`] when the broker has none, or does not let us see the stream.
    pub async fn await_stream(&self, name: StreamName) -> Result<(), BusError> {
        let on = name.on(self.subjects());
        let mut told = false;
        loop {
            let Err(error) = self.js.get_stream(&on).await else { return Ok(()) };
            if !is_missing(&error) && self.kind_of(&error) != BusErrorKind::Leaderless {
                let text = format!(
                    "stream {on}: {error}; the broker needs JetStream (nats-server -js), and this user the permissions \
                     in deploy/users.conf"
                );
                return Err(BusError::new(BusErrorKind::JetStream, text));
            }
            if !told {
                told = true;
                tracing::info!(stream = on, %error, "stream missing, waiting for stage-llm to make it, or for its servers");
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Time when a stream was made: another one if it was deleted and made again.
    ///
    /// # Errors
    /// [`BusErrorKind::JetStream`] when it is not there, or the broker does not answer.
    pub async fn made_at(&self, name: StreamName) -> Result<MadeAt, BusError> {
        Ok(self.counted(name).await?.made)
    }

    /// How far a stream has counted.
    ///
    /// # Errors
    /// [`BusErrorKind::JetStream`] when it is not there, or the broker does not answer.
    pub async fn counted(&self, name: StreamName) -> Result<Counted, BusError> {
        let info = self.stream(name).await.get_info().await;
        let on = name.on(self.subjects());
        let info = info.map_err(|e| BusError::new(BusErrorKind::JetStream, format!("stream {on}: {e}")))?;
        Ok(Counted { made: MadeAt(info.created.unix_timestamp_nanos()), last: info.state.last_sequence })
    }

    /// Messages that a stream holds, in flight or not; none where the broker does not say.
    pub async fn messages_in(&self, name: StreamName) -> Option<u64> {
        Some(self.stream(name).await.get_info().await.ok()?.state.messages)
    }

    fn stream_config(&self, name: StreamName) -> Config {
        stream_config(name, self.subjects(), self.config())
    }

    /// Stream by its name, without asking the server about it.
    pub async fn stream(&self, name: StreamName) -> Stream<()> {
        let on = name.on(self.subjects());
        self.js.get_stream_no_info(on).await.expect("a prefix that was checked makes a valid name. This is a bug.")
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
        self.stream(stream).await.create_consumer(config).await.map_err(|e| {
            let on = stream.on(self.subjects());
            BusError::new(self.kind_of(&e), format!("consumer of {filter} on {on}: {e}"))
        })
    }

    /// First message on a subject, or of the whole [stream](ANY), at or behind a sequence; waits for a broker that is
    /// away. No other wildcards: see [`Queue`].
    pub async fn first_from(&self, stream: StreamName, subject: &str, sequence: u64) -> Option<StreamMessage> {
        let mut tries = Tries::of(self, stream, "reading a stream");
        loop {
            match self.stream(stream).await.get_first_raw_message_by_subject(subject, sequence.max(1)).await {
                Ok(message) => return Some(message),
                Err(e) if e.kind() == RawMessageErrorKind::NoMessageFound => return None,
                Err(error) => tries.again(Trouble::from(&error), &error).await,
            }
        }
    }

    /// Last message on a subject; waits for a broker that is away.
    pub async fn last_on(&self, stream: StreamName, subject: &str) -> Option<StreamMessage> {
        let mut tries = Tries::of(self, stream, "reading a stream");
        loop {
            match self.stream(stream).await.get_last_raw_message_by_subject(subject).await {
                Ok(message) => return Some(message),
                Err(e) if e.kind() == LastRawMessageErrorKind::NoMessageFound => return None,
                Err(error) => tries.again(Trouble::from(&error), &error).await,
            }
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
        self.has_tokens_behind(job, seen).await
    }

    /// Whether a job has tokens behind those that its owner has seen, up to a sequence.
    pub async fn has_tokens_behind(&self, job: &JobId, seen: u64) -> bool {
        self.first_from(StreamName::Tokens, &self.subjects().tokens(job), seen + 1).await.is_some()
    }

    /// Subjects that a stream holds messages on.
    ///
    /// # Errors
    /// [`BusErrorKind::JetStream`].
    pub async fn subjects_in(&self, stream: StreamName) -> Result<Vec<String>, BusError> {
        let failed = |e: String| BusError::new(BusErrorKind::JetStream, format!("subjects of {stream:?}: {e}"));
        let info = self.stream(stream).await.info_with_subjects(">").await.map_err(|e| failed(e.to_string()))?;
        info.map_ok(|(subject, _)| subject).try_collect().await.map_err(|e| failed(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_was_made_again_or_counts_anew_is_another_one() {
        let at = |ms: i128, last: u64| Counted { made: MadeAt(ms * 1_000_000 + 5), last };
        assert!(!at(1000, 8).anew_since(at(1000, 7)) && !at(1000, 7).anew_since(at(1000, 7)));
        assert!(at(2000, 8).anew_since(at(1000, 7)) && at(1000, 6).anew_since(at(1000, 7)));
        // Stored in its first millisecond, and by a stream that was there before it.
        assert!(at(1000, 7).has_stored(7, 1000) && at(1000, 7).has_stored(1, 5000));
        assert!(!at(1000, 7).has_stored(7, 999) && !at(1000, 7).has_stored(8, 5000));
    }
}
