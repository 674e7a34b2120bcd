//! Uploaded files: content-addressed, with a quota and an age.
//!
//! A file is called by the SHA-256 of its bytes, so the same video twice is one file, with one modification time, and the language
//! model finds what it kept of it. Beside each lies `ID.json` with its facts, whose modification time is the last use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use config::HttpConfig;
use protocol::bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedSender;

use super::problem::{Kind, Problem};
use crate::up::lock::{Lock, Taken};
use crate::up::private;

/// Beginning of a file that is being uploaded.
pub const UNFINISHED: &str = "upload-";
/// A gateway that was killed has ended within this time.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Facts about an uploaded file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Hexadecimal SHA-256 of its bytes.
    pub id: String,
    /// Name of the file in the spool.
    pub file: String,
    /// Name that it was uploaded by first; empty for none.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// Time of its upload, Unix seconds.
    pub created_s: u64,
}

struct Stored {
    facts: Facts,
    used: SystemTime,
    /// Jobs that need it.
    holders: usize,
}

#[derive(Default)]
struct Index {
    files: BTreeMap<String, Stored>,
    /// Bytes of uploads that are not finished.
    unfinished: u64,
    /// Bytes that were ever uploaded.
    received: u64,
}

/// Bytes of the uploaded files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of whole files.
    pub stored: u64,
    /// Bytes of uploads that are not finished.
    pub unfinished: u64,
    /// Bytes that came since the start, kept or not.
    pub received: u64,
}

impl Index {
    fn stored(&self) -> u64 {
        self.files.values().map(|stored| stored.facts.bytes).sum()
    }
}

/// Directory of uploaded files, which is this process's alone.
pub struct Spool {
    dir: PathBuf,
    quota: u64,
    age: Duration,
    index: Mutex<Index>,
    /// Hears the names of files that are removed.
    removed: OnceLock<UnboundedSender<String>>,
    _lock: Lock,
}

impl Spool {
    /// Opens a spool directory, which is made if it is missing, and removes what an earlier gateway left unfinished.
    ///
    /// # Errors
    /// The process that has it, and the file system's.
    pub async fn open(dir: &Path, http: &HttpConfig) -> anyhow::Result<Self> {
        let lock = match Lock::take(dir, LOCK_WAIT).await? {
            Taken::Ours(lock) => lock,
            Taken::HeldBy(pid) => {
                bail!("another gateway (process {pid}) has the spool {}: stop it, or set http.spool", dir.display())
            }
        };
        let dir = dir.canonicalize().with_context(|| format!("spool {}", dir.display()))?;
        let files = read(&dir).with_context(|| format!("spool {}", dir.display()))?;
        let index = Mutex::new(Index { files, ..Index::default() });
        let age = Duration::from_secs(http.spool_age_s);
        let spool = Spool { dir, quota: http.spool_bytes, age, index, removed: OnceLock::new(), _lock: lock };
        spool.sweep();
        Ok(spool)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Names of all files.
    pub fn names(&self) -> BTreeSet<String> {
        self.index().files.values().map(|stored| stored.facts.file.clone()).collect()
    }

    /// Tells the names of files that are removed from now on to `removed`.
    pub fn tell_removed(&self, removed: UnboundedSender<String>) {
        // Told once, by who opened it.
        let _ = self.removed.set(removed);
    }

    /// Facts about a file.
    pub fn facts(&self, id: &str) -> Option<Facts> {
        self.index().files.get(id).map(|stored| stored.facts.clone())
    }

    /// Keeps a file for as long as the returned hold lives; none where there is no such file.
    pub fn hold(self: &Arc<Self>, id: &str) -> Option<Held> {
        let mut index = self.index();
        let stored = index.files.get_mut(id)?;
        stored.holders += 1;
        self.touch(stored);
        let path = self.dir.join(&stored.facts.file);
        Some(Held { spool: self.clone(), facts: stored.facts.clone(), path })
    }

    /// Takes in a finished upload, or drops it where its bytes are here already; returns whether it is new, and holds it.
    ///
    /// # Errors
    /// The file system's.
    pub fn take(self: &Arc<Self>, file: tempfile::TempPath, facts: Facts) -> anyhow::Result<(bool, Held)> {
        if let Some(held) = self.hold(&facts.id) {
            return Ok((false, held));
        }
        let path = self.dir.join(&facts.file);
        let mut index = self.index();
        if let Some(stored) = index.files.get_mut(&facts.id) {
            // Uploaded twice at once.
            stored.holders += 1;
        } else {
            file.persist(&path).context("keeping an upload failed")?;
            // Without its facts a file is removed at the next start.
            private::write(&self.facts_file(&facts.id), &serde_json::to_vec(&facts)?)?;
            let stored = Stored { facts: facts.clone(), used: SystemTime::now(), holders: 1 };
            index.files.insert(facts.id.clone(), stored);
        }
        Ok((true, Held { spool: self.clone(), facts, path }))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// Where there is none, and where a job needs it.
    pub fn remove(&self, id: &str) -> Result<(), Problem> {
        let mut index = self.index();
        match index.files.get(id).map(|stored| stored.holders) {
            None => Err(no_file(id)),
            Some(0) => {
                self.forget(&mut index, id);
                Ok(())
            }
            Some(n) => {
                let text = format!("file not removed: {n} jobs in flight need {id}");
                Err(Problem::new(Kind::Conflict, text).hint("cancel them, or wait for their end"))
            }
        }
    }

    /// Counts bytes of an upload that are about to be written; files that nobody needs make way.
    ///
    /// # Errors
    /// `spool_full` with the figures.
    pub fn reserve(&self, bytes: u64) -> Result<(), Problem> {
        let mut index = self.index();
        loop {
            let stored = index.stored();
            if stored + index.unfinished + bytes <= self.quota {
                index.unfinished += bytes;
                index.received += bytes;
                return Ok(());
            }
            let idle = index.files.iter().filter(|(_, stored)| stored.holders == 0);
            let Some(oldest) = idle.min_by_key(|(_, stored)| stored.used).map(|(id, _)| id.clone()) else {
                let text = format!(
                    "upload refused: jobs in flight need {} of the spool, other uploads {}, of {}",
                    Bytes(stored),
                    Bytes(index.unfinished),
                    Bytes(self.quota)
                );
                let problem = Problem::new(Kind::SpoolFull, text).detail("quota_bytes", self.quota);
                return Err(problem.hint("come again later, or raise http.spool_bytes"));
            };
            tracing::info!(id = oldest, "uploaded file removed: another one needs its place");
            self.forget(&mut index, &oldest);
        }
    }

    /// Bytes of an upload that are written and kept, or gone.
    pub fn release(&self, bytes: u64) {
        let mut index = self.index();
        index.unfinished = index.unfinished.saturating_sub(bytes);
    }

    /// Bytes of all files.
    pub fn usage(&self) -> Usage {
        let index = self.index();
        Usage { stored: index.stored(), unfinished: index.unfinished, received: index.received }
    }

    /// Removes the files that were not used for too long.
    pub fn sweep(&self) {
        let mut index = self.index();
        let is_old = |stored: &&Stored| stored.holders == 0 && stored.used.elapsed().is_ok_and(|age| age > self.age);
        let old: Vec<String> = index.files.values().filter(is_old).map(|stored| stored.facts.id.clone()).collect();
        for id in old {
            tracing::info!(id, "uploaded file removed: it was not used for long");
            self.forget(&mut index, &id);
        }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // What is counted is right after each statement.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn facts_file(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn forget(&self, index: &mut Index, id: &str) {
        let Some(stored) = index.files.remove(id) else { return };
        for path in [self.dir.join(&stored.facts.file), self.facts_file(id)] {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "removing an uploaded file failed");
            }
        }
        if let Some(removed) = self.removed.get() {
            // Nobody hears it at the end of the process; the next one removes what is too much.
            let _ = removed.send(stored.facts.file);
        }
    }

    /// Notes a use, on the disk too. The file itself keeps its time: with the size it is what a kept video is known by.
    fn touch(&self, stored: &mut Stored) {
        stored.used = SystemTime::now();
        let facts = std::fs::File::options().append(true).open(self.facts_file(&stored.facts.id));
        if let Err(error) = facts.and_then(|file| file.set_modified(stored.used)) {
            tracing::debug!(%error, "noting the use of an uploaded file failed");
        }
    }
}

/// No such file.
pub fn no_file(id: &str) -> Problem {
    let shown: String = id.chars().take(80).collect();
    Problem::new(Kind::NotFound, format!("no uploaded file {shown:?}")).hint("upload it again: POST /v1/files")
}

/// Files of a spool directory; those without facts are removed.
fn read(dir: &Path) -> anyhow::Result<BTreeMap<String, Stored>> {
    let mut files = BTreeMap::new();
    let mut others = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let facts = name.ends_with(".json").then(|| std::fs::read(entry.path()).ok()).flatten();
        match facts.and_then(|bytes| serde_json::from_slice::<Facts>(&bytes).ok()) {
            Some(facts) if name == format!("{}.json", facts.id) => {
                let is_whole = dir.join(&facts.file).metadata().is_ok_and(|found| found.len() == facts.bytes);
                let used = entry.metadata()?.modified()?;
                if is_whole {
                    files.insert(facts.id.clone(), Stored { facts, used, holders: 0 });
                } else {
                    others.push(name);
                }
            }
            _ => others.push(name),
        }
    }
    let ours = |name: &str| {
        let id = name.split('.').next().unwrap_or_default();
        name.starts_with(UNFINISHED) || (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    for name in others {
        let known = files.values().any(|stored: &Stored| stored.facts.file == name);
        // What somebody else put there is not ours to remove.
        if !known && ours(&name) {
            std::fs::remove_file(dir.join(&name)).with_context(|| format!("removing {name}"))?;
        }
    }
    Ok(files)
}

/// Hold on an uploaded file: it stays until the last one is dropped.
pub struct Held {
    spool: Arc<Spool>,
    /// Facts about the file.
    pub facts: Facts,
    /// Its path.
    pub path: PathBuf,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut index = self.spool.index();
        if let Some(stored) = index.files.get_mut(&self.facts.id) {
            stored.holders = stored.holders.saturating_sub(1);
            self.spool.touch(stored);
        }
    }
}

#[cfg(test)]
mod tests;
