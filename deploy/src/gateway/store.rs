//! Uploaded files on the bus (`http.files = "bus"`): each is copied from the spool to the object store of the pipeline that is to
//! answer about it, where a stage-decode on another host fetches it, and removed there when the spool removes it.
//!
//! The spool stays what decides: a file that the store has lost, or holds for so long that the broker may drop it during a job, is
//! copied again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use config::{BusConfig, HttpConfig};
use protocol::stage::ON_THE_BUS;
use runtime::bus::{Bus, BusError, BusErrorKind, Role};
use runtime::objects::{Object, ObjectError, Objects};
use tokio::sync::{Mutex as Turns, mpsc};

use super::problem::{Kind, Problem};
use super::spool::{Facts, Held};

/// A connection is made within this time.
const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// Copies of uploaded files in the object stores of the pipelines.
pub struct Store {
    bus: Bus,
    bytes: u64,
    age: Duration,
    /// The own pipeline's.
    prefix: String,
    /// Stores that are there, by the prefixes of their pipelines.
    made: Mutex<BTreeMap<String, Objects>>,
    /// What was copied by this process, and when: by name and prefix.
    copied: Mutex<BTreeMap<(String, String), Instant>>,
    /// One copy is made, or removed, at a time.
    turn: Turns<()>,
    removed: mpsc::UnboundedSender<String>,
}

impl Store {
    /// Opens the store of the gateway's own pipeline, in which `files` stay and nothing else does. What is sent to the returned
    /// sender by the spool is removed.
    ///
    /// # Errors
    /// When the broker does not take a connection as `gateway`, or has no room.
    pub async fn open(broker: &BusConfig, http: &HttpConfig, files: BTreeSet<String>) -> Result<Arc<Self>, BusError> {
        let &HttpConfig { spool_bytes, spool_age_s, .. } = http;
        let bus = Bus::connect(broker, Role::Gateway, CONNECT_WAIT).await?;
        let (removed, removing) = mpsc::unbounded_channel();
        let store = Store {
            prefix: bus.subjects().prefix().to_owned(),
            bus,
            bytes: spool_bytes,
            // The spool's age counts from the last use, the broker's from the copy.
            age: Duration::from_secs(spool_age_s.saturating_mul(2).max(60)),
            made: Mutex::default(),
            copied: Mutex::default(),
            turn: Turns::default(),
            removed,
        };
        let own = store.objects(&store.prefix).await?;
        let refused =
            |e: ObjectError| BusError::new(BusErrorKind::JetStream, format!("object store {}: {e}", own.bucket()));
        own.keep(&files).await.map_err(refused)?;
        let store = Arc::new(store);
        tokio::spawn(remove(Arc::downgrade(&store), removing));
        Ok(store)
    }

    /// What a job calls an uploaded file.
    pub fn video(facts: &Facts) -> String {
        format!("{ON_THE_BUS}{}", facts.file)
    }

    /// Way to have files removed, for the spool.
    pub fn removed(&self) -> mpsc::UnboundedSender<String> {
        self.removed.clone()
    }

    /// Prefix of the gateway's own pipeline.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Copies a file to the store of the pipeline below a prefix, unless it is there. A broker that is away is waited for.
    ///
    /// # Errors
    /// `spool_full` where the store has no room, `unavailable` for what else the broker refuses.
    pub async fn copy(&self, held: &Held, prefix: &str) -> Result<(), Problem> {
        let objects = self.objects(prefix).await.map_err(|e| Problem::unavailable(&e.into()))?;
        if self.has(&objects, held, prefix).await {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        if self.has(&objects, held, prefix).await {
            return Ok(());
        }
        let object = object(&held.path, &held.facts).map_err(|e| Problem::unavailable(&e))?;
        let outcome = objects.put(&object, &held.path).await;
        outcome.map_err(|error| refused(objects.bucket(), &held.facts, &error))?;
        self.copied().insert((held.facts.file.clone(), prefix.to_owned()), Instant::now());
        tracing::info!(id = held.facts.id, bytes = held.facts.bytes, store = objects.bucket(), "uploaded file copied");
        Ok(())
    }

    /// Whether a store has a file, and will for long enough.
    async fn has(&self, objects: &Objects, held: &Held, prefix: &str) -> bool {
        let is_young = {
            let mut copied = self.copied();
            copied.retain(|_, at| at.elapsed() < self.age / 2);
            copied.contains_key(&(held.facts.file.clone(), prefix.to_owned()))
        };
        is_young && objects.facts(&held.facts.file).await.is_ok()
    }

    /// Store of the pipeline below a prefix, which is made if it is missing.
    async fn objects(&self, prefix: &str) -> Result<Objects, BusError> {
        if let Some(objects) = self.made().get(prefix) {
            return Ok(objects.clone());
        }
        let objects = Objects::of(&self.bus, prefix);
        objects.make(self.bytes, self.age).await?;
        self.made().insert(prefix.to_owned(), objects.clone());
        Ok(objects)
    }

    fn copied(&self) -> MutexGuard<'_, BTreeMap<(String, String), Instant>> {
        self.copied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn made(&self) -> MutexGuard<'_, BTreeMap<String, Objects>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes from the stores what the spool has removed.
async fn remove(store: Weak<Store>, mut removing: mpsc::UnboundedReceiver<String>) {
    while let Some(name) = removing.recv().await {
        let Some(store) = store.upgrade() else { return };
        // Not while it is copied.
        let _turn = store.turn.lock().await;
        store.copied().retain(|(copy, _), _| *copy != name);
        let stores: Vec<Objects> = store.made().values().cloned().collect();
        for objects in stores {
            objects.remove(&name).await;
        }
    }
}

/// What the store is to know of a file.
fn object(path: &Path, facts: &Facts) -> anyhow::Result<Object> {
    use anyhow::Context;
    let modified = std::fs::metadata(path).and_then(|meta| meta.modified());
    let modified = modified.with_context(|| format!("upload not copied: {}", path.display()))?;
    let modified_ns = modified.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(facts.id.as_bytes().chunks(2)) {
        let pair = std::str::from_utf8(pair).context("an id is hexadecimal")?;
        *byte = u8::from_str_radix(pair, 16).context("an id is hexadecimal")?;
    }
    Ok(Object { name: facts.file.clone(), size: facts.bytes, modified_ns, digest })
}

fn refused(bucket: &str, facts: &Facts, error: &ObjectError) -> Problem {
    let text = format!("upload not copied to the object store {bucket} ({} bytes): {error}", facts.bytes);
    let kind = if matches!(error, ObjectError::Refused(_)) { Kind::SpoolFull } else { Kind::Unavailable };
    Problem::new(kind, text).hint(
        "come again later, or give the broker more room than http.spool_bytes (max_file_store, and nats stream edit of the \
         store's stream)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_the_digest_and_the_time_of_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "x").unwrap();
        let at = std::time::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_000_000_123);
        std::fs::File::options().append(true).open(&path).unwrap().set_modified(at).unwrap();
        let facts = Facts {
            id: format!("0aff{}", "00".repeat(30)),
            file: "x.mp4".to_owned(),
            name: String::new(),
            bytes: 1,
            created_s: 0,
        };
        let object = object(&path, &facts).unwrap();
        assert_eq!((object.digest[0], object.digest[1], object.digest[2]), (0x0a, 0xff, 0));
        assert_eq!(object.modified_ns, 1_700_000_000_000_000_123);
        assert_eq!(Store::video(&facts), "bus:x.mp4");
    }
}
