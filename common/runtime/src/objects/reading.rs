//! Reading files out of a bucket, chunk by chunk, without a consumer.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{DirectGetErrorKind, LastRawMessageErrorKind};
use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use super::layout::{Facts, Object};
use super::{FIRST_PAUSE, ObjectError, Objects, Progress, is_away, wait};

/// Time within which a copy of the stream on another server has what its leader acknowledged.
const LAG: Duration = Duration::from_secs(5);

/// Outcome of reading one writing of a file.
enum Read {
    Whole,
    /// Its chunks are not there any more: the file may have been written again.
    Replaced,
}

impl Objects {
    /// Facts of a file; waits for a broker that is away.
    ///
    /// # Errors
    /// `Gone`, and `Refused`.
    pub async fn facts(&self, name: &str) -> Result<Object, ObjectError> {
        self.written(name).await?.object().ok_or_else(|| ObjectError::Damaged(format!("{name} has no digest")))
    }

    /// Reads a file into one at `into`, with the same modification time; waits for a broker that is away.
    ///
    /// # Errors
    /// `Gone`; `Damaged` for bytes that are not those that were written; `Refused`; the file system's.
    pub(super) async fn fetch(&self, name: &str, into: &Path, progress: &Progress) -> Result<(), ObjectError> {
        let on_disk = |e: std::io::Error| ObjectError::File(format!("{}: {e}", into.display()));
        let mut before = String::new();
        loop {
            let facts = self.written(name).await?;
            let object = facts.object().ok_or_else(|| ObjectError::Damaged(format!("{name} has no digest")))?;
            if facts.nuid == before {
                return Err(ObjectError::Damaged(format!("chunks of {name} are missing")));
            }
            progress.size.store(object.size, Ordering::Relaxed);
            progress.read.store(0, Ordering::Relaxed);
            let mut file = File::create(into).await.map_err(on_disk)?;
            if let Read::Whole = self.read(&facts, &object, &mut file, progress).await? {
                let modified = SystemTime::UNIX_EPOCH + Duration::from_nanos(object.modified_ns);
                return file.into_std().await.set_modified(modified).map_err(on_disk);
            }
            before = facts.nuid;
        }
    }

    async fn read(
        &self,
        facts: &Facts,
        object: &Object,
        file: &mut File,
        progress: &Progress,
    ) -> Result<Read, ObjectError> {
        let on_disk = |e: std::io::Error| ObjectError::File(format!("writing {}: {e}", object.name));
        let (subject, mut hash, mut sequence, mut bytes) = (self.names.chunks(&facts.nuid), Sha256::new(), 0, 0);
        for _ in 0..facts.chunks {
            let Some(chunk) = self.chunk_behind(&subject, sequence).await? else { return Ok(Read::Replaced) };
            sequence = chunk.sequence;
            bytes += chunk.payload.len() as u64;
            hash.update(&chunk.payload);
            file.write_all(&chunk.payload).await.map_err(on_disk)?;
            progress.read.store(bytes, Ordering::Relaxed);
        }
        file.flush().await.map_err(on_disk)?;
        if bytes != object.size || hash.finalize().as_slice() != object.digest {
            let text =
                format!("{bytes} bytes of {} came, which are not the {} that were written", object.name, object.size);
            return Err(ObjectError::Damaged(text));
        }
        Ok(Read::Whole)
    }

    /// First message on a subject behind a sequence; none if there is none.
    async fn chunk_behind(&self, subject: &str, sequence: u64) -> Result<Option<StreamMessage>, ObjectError> {
        let (mut pause, began) = (FIRST_PAUSE, Instant::now());
        loop {
            let error = match self.stream().await.direct_get_next_for_subject(subject, Some(sequence + 1)).await {
                Ok(message) => return Ok(Some(message)),
                Err(error) => error,
            };
            match error.kind() {
                DirectGetErrorKind::NotFound if began.elapsed() >= LAG => return Ok(None),
                DirectGetErrorKind::ErrorResponse(..) => return Err(ObjectError::Refused(error.to_string())),
                _ => {}
            }
            tracing::debug!(%error, subject, "reading a chunk failed, retrying");
            wait(&mut pause).await;
        }
    }

    /// Facts of a file that is there.
    pub(super) async fn written(&self, name: &str) -> Result<Facts, ObjectError> {
        let (subject, mut pause) = (self.names.facts(name), FIRST_PAUSE);
        loop {
            let error = match self.stream().await.get_last_raw_message_by_subject(&subject).await {
                Ok(message) => {
                    let facts = serde_json::from_slice::<Facts>(&message.payload);
                    let facts = facts.map_err(|e| ObjectError::Damaged(format!("facts of {name}: {e}")))?;
                    return if facts.deleted { Err(ObjectError::Gone) } else { Ok(facts) };
                }
                Err(error) => error,
            };
            match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => return Err(ObjectError::Gone),
                LastRawMessageErrorKind::JetStream(e)
                    if e.error_code() == async_nats::jetstream::ErrorCode::STREAM_NOT_FOUND =>
                {
                    return Err(ObjectError::Gone);
                }
                LastRawMessageErrorKind::JetStream(e) if !is_away(e.error_code()) => {
                    return Err(ObjectError::Refused(error.to_string()));
                }
                _ => {}
            }
            tracing::debug!(%error, name, "reading the facts of a file failed, retrying");
            wait(&mut pause).await;
        }
    }
}
