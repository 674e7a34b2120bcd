//! Files on the bus: JetStream's object store (ADR-20), so that a stage-decode reads what a gateway on another host took in.
//!
//! A bucket is a stream: a file's chunks are messages on one subject, and one message with its facts, written last, makes it be
//! there. The layout is that of `nats object`, which lists and reads such a bucket too. The client library's own reader makes a
//! consumer, and whoever may make one may have the broker write anywhere: this one asks for each chunk by itself, which is a
//! permission to read and nothing else. And its writer gives up where an acknowledgement is lost; here a broker that is away is
//! waited for.
//!
//! `layout`: names and facts; `reading` and `writing`; [`Fetching`]: the same for a stage, which knows no bus.

mod layout;
mod reading;
mod writing;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::CreateStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType, Stream};
use tokio::runtime::Handle;

use crate::bus::{Bus, BusError, BusErrorKind};
use layout::Names;
use protocol::bytes::Bytes;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::stage::{FileSource, Looked, Stop, Tell};

pub use layout::Object;

/// Pause before a broker that did not answer is asked again; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of a bucket for each byte that its files may have: subjects, headers and facts of the messages.
const OVERHEAD: f64 = 1.02;
/// Bytes of a bucket that its facts may have besides.
const FACTS_BYTES: i64 = 1 << 20;
/// Time between two words on how far a fetch is.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// Reason for which a file is not written or read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectError {
    /// It is not there: never was, was removed, or was too old.
    Gone,
    /// What was read is not what was written.
    Damaged(String),
    /// The broker says no: there is no room, or no permission.
    Refused(String),
    /// The file system's.
    File(String),
}

impl fmt::Display for ObjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObjectError::Gone => f.write_str("it is not in the object store"),
            ObjectError::Damaged(why) | ObjectError::Refused(why) | ObjectError::File(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ObjectError {}

/// Bucket of the files of one pipeline. Cheap to clone.
#[derive(Clone)]
pub struct Objects {
    bus: Bus,
    names: Names,
}

impl Objects {
    /// Bucket of the pipeline below a prefix; nothing is asked of the broker.
    pub fn of(bus: &Bus, prefix: &str) -> Self {
        Objects { bus: bus.clone(), names: Names::of(prefix) }
    }

    /// Name of the bucket.
    pub fn bucket(&self) -> &str {
        &self.names.bucket
    }

    /// Makes the bucket, for so many bytes of files, each dropped by the broker after `age`, on as many servers of a cluster as
    /// `bus.replicas` says: a client was told that its file is there. One that is there stays as it is.
    ///
    /// # Errors
    /// [`BusErrorKind::JetStream`] with the broker's words, and what it takes.
    pub async fn make(&self, bytes: u64, age: Duration) -> Result<(), BusError> {
        let max_bytes = (bytes as f64 * OVERHEAD).min(i64::MAX as f64 / 2.0) as i64 + FACTS_BYTES;
        let config = Config {
            name: self.names.stream.clone(),
            subjects: vec![self.names.all_chunks(), self.names.all_facts()],
            max_bytes,
            max_age: age,
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            allow_rollup: true,
            allow_direct: true,
            num_replicas: self.bus.config().replicas,
            ..Default::default()
        };
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.bus.jetstream().get_or_create_stream(config.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let refused = match error.kind() {
                CreateStreamErrorKind::JetStream(ref e) => !is_away(e.error_code()),
                CreateStreamErrorKind::TimedOut => false,
                _ => self.bus.is_connected(),
            };
            if refused {
                let text = format!(
                    "object store {}: {error}; it takes {}: the broker needs that much storage beside its other streams \
                     (max_file_store, and room in store_dir), or a smaller http.spool_bytes, on each of bus.replicas = {} servers; \
                     this user needs the permissions of `gateway` in deploy/users.conf",
                    self.names.bucket,
                    Bytes(max_bytes.unsigned_abs()),
                    config.num_replicas
                );
                return Err(BusError::new(BusErrorKind::JetStream, text));
            }
            tracing::debug!(%error, "making the object store failed, retrying");
            wait(&mut pause).await;
        }
    }

    async fn stream(&self) -> Stream<()> {
        let stream = self.bus.jetstream().get_stream_no_info(&self.names.stream).await;
        stream.expect("a prefix that was checked makes a valid name. This is a bug.")
    }
}

/// Whether the broker has no leader to answer yet.
fn is_away(code: ErrorCode) -> bool {
    [ErrorCode::CLUSTER_NOT_AVAILABLE, ErrorCode::CLUSTER_NOT_LEADER, ErrorCode::CLUSTER_NOT_ACTIVE].contains(&code)
}

/// Waits before the next try.
async fn wait(pause: &mut Duration) {
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(MAX_PAUSE);
}

/// How far a fetch is.
#[derive(Default)]
struct Progress {
    read: AtomicU64,
    size: AtomicU64,
}

/// Files of the bus for a stage's own threads.
pub struct Fetching {
    objects: Objects,
    runtime: Handle,
}

impl Fetching {
    /// Files of the pipeline that a bus belongs to. Must be called in the runtime that the bus lives in.
    pub fn new(bus: &Bus) -> Self {
        Fetching { objects: Objects::of(bus, bus.subjects().prefix()), runtime: Handle::current() }
    }

    fn failed(&self, name: &str, error: &ObjectError) -> Stop {
        let bucket = self.objects.bucket();
        let (kind, hint) = match error {
            ObjectError::Gone => (
                ErrorKind::MediaNotFound,
                "it was removed, was not used for http.spool_age_s, or the broker has lost it: upload it again \
                 (POST /v1/files)",
            ),
            ObjectError::Damaged(_) => {
                (ErrorKind::MediaNotFound, "upload the file again, and look at the disk of the broker")
            }
            ObjectError::Refused(_) => {
                (ErrorKind::MediaNotFound, "give the user of stage-decode the permissions in deploy/users.conf")
            }
            ObjectError::File(_) => (ErrorKind::Internal, "look at the disk of decode.spool"),
        };
        let text = format!("cannot fetch {name} from the object store {bucket}: {error}");
        Stop::Failed(JobError::new(kind, text).hint(hint).at(StageName::Decode))
    }
}

impl FileSource for Fetching {
    fn fetch(&self, name: &str, into: &Path, tell: &mut Tell<'_>) -> Result<(), Stop> {
        let progress = Progress::default();
        self.runtime.block_on(async {
            let fetch = self.objects.fetch(name, into, &progress);
            tokio::pin!(fetch);
            let mut ticks = tokio::time::interval(TELL_EVERY);
            loop {
                tokio::select! {
                    fetched = &mut fetch => return fetched.map_err(|error| self.failed(name, &error)),
                    _ = ticks.tick() => {
                        let read_bytes = progress.read.load(Ordering::Relaxed);
                        let size_bytes = progress.size.load(Ordering::Relaxed);
                        if !tell(Looked { read_bytes, size_bytes }) {
                            return Err(Stop::Cancelled);
                        }
                    }
                }
            }
        })
    }

    fn size(&self, name: &str) -> Result<u64, Stop> {
        let facts = self.runtime.block_on(self.objects.facts(name));
        facts.map(|object| object.size).map_err(|error| self.failed(name, &error))
    }
}
