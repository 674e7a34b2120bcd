//! Writing files into a bucket, and removing them.

use std::collections::BTreeSet;
use std::error::Error;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;

use async_nats::jetstream;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::PurgeErrorKind;
use bytes::Bytes;
use futures::TryStreamExt;
use tokio::fs::File;
use tokio::io::AsyncReadExt;

use super::layout::{Facts, Object};
use super::{FIRST_PAUSE, ObjectError, Objects, is_away, wait};

/// Bytes of a chunk: with headers they fit the default `max_payload` of 1 MB.
const CHUNK_BYTES: usize = 512 << 10;
/// Header by which a message takes the place of the others on its subject.
const ROLLUP: (&str, &str) = ("Nats-Rollup", "sub");

/// Purges the chunks of a writing that was not finished, where its writer is given up.
struct Unfinished {
    objects: Objects,
    subject: Option<String>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(subject) = self.subject.take() else { return };
        let objects = self.objects.clone();
        tokio::spawn(async move { objects.purge(&subject).await });
    }
}

impl Objects {
    /// Writes the file at a path, in place of one of the same name; waits for a broker that is away. Given up half-way, it leaves
    /// nothing.
    ///
    /// # Errors
    /// `Refused` where there is no room, or no permission; the file system's.
    pub async fn put(&self, object: &Object, from: &Path) -> Result<(), ObjectError> {
        let on_disk = |e: std::io::Error| ObjectError::File(format!("{}: {e}", from.display()));
        let before = self.written(&object.name).await.ok();
        let mut file = File::open(from).await.map_err(on_disk)?;
        let writing = new_writing();
        let subject = self.names.chunks(&writing);
        let mut unfinished = Unfinished { objects: self.clone(), subject: Some(subject.clone()) };
        let (mut chunks, mut last, mut bytes) = (0, 0, 0);
        let most = CHUNK_BYTES.min(self.bus.max_message());
        loop {
            let mut chunk = Vec::with_capacity(most);
            let read = (&mut file).take(most as u64).read_to_end(&mut chunk).await.map_err(on_disk)?;
            if read == 0 {
                break;
            }
            (chunks, bytes) = (chunks + 1, bytes + read as u64);
            last = self.store(&subject, last, Bytes::from(chunk)).await?;
        }
        if bytes != object.size {
            return Err(ObjectError::File(format!("{} has {bytes} bytes, not {}", from.display(), object.size)));
        }
        let facts = Facts::new(object, &self.names, &writing, chunks, most);
        self.publish_facts(&object.name, &facts).await?;
        unfinished.subject = None;
        if let Some(before) = before {
            self.purge(&self.names.chunks(&before.nuid)).await;
        }
        Ok(())
    }

    /// Removes a file; waits for a broker that is away.
    pub async fn remove(&self, name: &str) {
        let before = self.written(name).await.ok();
        // First, so that nobody begins to read it.
        self.purge(&self.names.facts(name)).await;
        if let Some(before) = before {
            self.purge(&self.names.chunks(&before.nuid)).await;
        }
    }

    /// Removes what is in the bucket but for the files that `wanted` names, and chunks of writings that were not finished.
    ///
    /// # Errors
    /// `Refused`.
    pub async fn keep(&self, wanted: &BTreeSet<String>) -> Result<(), ObjectError> {
        let subjects = self.subjects().await?;
        let mut writings = BTreeSet::new();
        for name in subjects.iter().filter_map(|subject| self.names.name_of(subject)) {
            match wanted.contains(&name) {
                true => writings.extend(self.written(&name).await.ok().map(|facts| facts.nuid)),
                false => self.remove(&name).await,
            }
        }
        for subject in &subjects {
            if self.names.writing_of(subject).is_some_and(|writing| !writings.contains(writing)) {
                self.purge(subject).await;
            }
        }
        Ok(())
    }

    async fn subjects(&self) -> Result<Vec<String>, ObjectError> {
        let refused =
            |e: &dyn std::fmt::Display| ObjectError::Refused(format!("subjects of {}: {e}", self.names.bucket));
        let info = self.stream().await.info_with_subjects(">").await.map_err(|e| refused(&e))?;
        info.map_ok(|(subject, _)| subject).try_collect().await.map_err(|e| refused(&e))
    }

    /// Stores a message behind the one with sequence `last` on its subject; its own sequence. By that a message that is sent again,
    /// since its acknowledgement was lost, is stored once.
    async fn store(&self, subject: &str, last: u64, body: Bytes) -> Result<u64, ObjectError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let message = PublishMessage::build().expected_last_subject_sequence(last).payload(body.clone());
            let error = match self.published(subject, message).await {
                Ok(sequence) => return Ok(sequence),
                Err(error) => error,
            };
            if error.kind() == PublishErrorKind::WrongLastSequence {
                // Nobody else writes on this subject: it is the one that was sent before.
                match self.stream().await.get_last_raw_message_by_subject(subject).await {
                    Ok(message) if message.sequence > last => return Ok(message.sequence),
                    Ok(_) => {
                        return Err(ObjectError::Refused(
                            "chunks of a file are lost: the store was emptied".to_owned(),
                        ));
                    }
                    Err(error) => tracing::debug!(%error, "looking for a chunk failed, retrying"),
                }
            } else {
                check(&error)?;
                tracing::debug!(%error, "storing a chunk failed, retrying");
            }
            wait(&mut pause).await;
        }
    }

    async fn publish_facts(&self, name: &str, facts: &Facts) -> Result<(), ObjectError> {
        let (subject, mut pause) = (self.names.facts(name), FIRST_PAUSE);
        let body = Bytes::from(serde_json::to_vec(facts).map_err(|e| ObjectError::Damaged(e.to_string()))?);
        loop {
            let message = PublishMessage::build().header(ROLLUP.0, ROLLUP.1).payload(body.clone());
            match self.published(&subject, message).await {
                Ok(_) => return Ok(()),
                Err(error) => check(&error)?,
            }
            wait(&mut pause).await;
        }
    }

    async fn published(&self, subject: &str, message: PublishMessage) -> Result<u64, PublishError> {
        let sent = self.bus.jetstream().send_publish(subject.to_owned(), message).await?;
        sent.await.map(|ack| ack.sequence)
    }

    /// Purges a subject; what is not purged ends with its age.
    async fn purge(&self, subject: &str) {
        let mut pause = FIRST_PAUSE;
        while let Err(error) = self.stream().await.purge().filter(subject.to_owned()).await {
            if matches!(error.kind(), PurgeErrorKind::JetStream(ref e) if !is_away(e.error_code())) {
                tracing::warn!(%error, subject, "removing an object failed");
                return;
            }
            tracing::debug!(%error, subject, "removing an object failed, retrying");
            wait(&mut pause).await;
        }
    }
}

/// Whether the broker is to be asked again.
///
/// # Errors
/// `Refused`, where it is not.
fn check(error: &PublishError) -> Result<(), ObjectError> {
    let refused = match error.kind() {
        PublishErrorKind::StreamNotFound | PublishErrorKind::MaxPayloadExceeded => true,
        PublishErrorKind::Other => {
            error.source().and_then(|e| e.downcast_ref::<jetstream::Error>()).is_some_and(|e| !is_away(e.error_code()))
        }
        _ => false,
    };
    if refused { Err(ObjectError::Refused(error.to_string())) } else { Ok(()) }
}

/// Name of a writing that no other one has.
fn new_writing() -> String {
    // Each has a key of its own, from the system.
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}
