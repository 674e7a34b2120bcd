//! Uploaded files: content-addressed, with a quota and an age.
//!
//! A file is called by the SHA-256 of its bytes, so the same video twice is one file, with one modification time, and the language
//! model finds what it kept of it. Beside each lies `ID.json` with its facts, whose modification time is the last use.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use config::HttpConfig;
use protocol::bytes::Bytes;
use serde::{Deserialize, Serialize};

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
}

/// Directory of uploaded files, which is this process's alone.
pub struct Spool {
    dir: PathBuf,
    quota: u64,
    age: Duration,
    index: Mutex<Index>,
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
        let index = Mutex::new(Index { files, unfinished: 0 });
        let age = Duration::from_secs(http.spool_age_s);
        let spool = Spool { dir, quota: http.spool_bytes, age, index, _lock: lock };
        spool.sweep();
        Ok(spool)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
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
            let stored: u64 = index.files.values().map(|stored| stored.facts.bytes).sum();
            if stored + index.unfinished + bytes <= self.quota {
                index.unfinished += bytes;
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
mod tests {
    use std::io::Write;

    use super::*;

    async fn spool(dir: &Path, quota: u64, age_s: u64) -> Arc<Spool> {
        let http = HttpConfig { spool_bytes: quota, spool_age_s: age_s, ..HttpConfig::default() };
        Arc::new(Spool::open(dir, &http).await.unwrap())
    }

    /// Puts `bytes` bytes into the spool, as uploads do.
    fn put(spool: &Arc<Spool>, name: char, bytes: u64) -> (bool, Held) {
        spool.reserve(bytes).unwrap();
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(spool.dir()).unwrap();
        file.write_all(&vec![0; bytes as usize]).unwrap();
        let id = name.to_string().repeat(64);
        let facts = Facts { file: format!("{id}.mp4"), id, name: String::new(), bytes, created_s: 0 };
        let taken = spool.take(file.into_temp_path(), facts).unwrap();
        spool.release(bytes);
        taken
    }

    #[tokio::test]
    async fn the_least_recently_used_make_way_and_what_a_job_needs_stays() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path(), 100, 1000).await;
        let ids = ['a', 'b', 'c'].map(|name| name.to_string().repeat(64));
        drop(put(&spool, 'a', 40));
        drop(put(&spool, 'b', 40));
        // Used after b.
        drop(spool.hold(&ids[0]).unwrap());
        let (is_new, held) = put(&spool, 'c', 40);
        assert!(is_new && spool.facts(&ids[0]).is_some() && spool.facts(&ids[1]).is_none());
        assert!(!dir.path().join(format!("{}.mp4", ids[1])).exists());
        assert_eq!(spool.remove(&ids[2]).unwrap_err().kind, Kind::Conflict);
        let full = spool.reserve(70).unwrap_err();
        assert_eq!(full.kind, Kind::SpoolFull);
        assert_eq!(full.details["quota_bytes"], 100);
        drop(held);
        spool.reserve(70).unwrap();
        assert!(spool.facts(&ids[2]).is_none());
    }

    #[tokio::test]
    async fn the_same_bytes_are_one_file_with_one_modification_time() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path(), 100, 1000).await;
        let modified = |held: &Held| held.path.metadata().unwrap().modified().unwrap();
        let (first, second) = (put(&spool, 'a', 10), put(&spool, 'a', 10));
        assert_eq!((first.0, second.0), (true, false));
        assert_eq!((&first.1.path, modified(&first.1)), (&second.1.path, modified(&second.1)));
    }

    #[tokio::test]
    async fn a_start_keeps_whole_files_and_removes_what_was_left_unfinished_or_grew_old() {
        let dir = tempfile::tempdir().unwrap();
        let first = spool(dir.path(), 100, 1000).await;
        drop(put(&first, 'a', 10));
        drop(put(&first, 'b', 10));
        assert!(Spool::open(dir.path(), &HttpConfig::default()).await.is_err(), "two have one spool");
        drop(first);
        let [a, b, c] = ['a', 'b', 'c'].map(|name| name.to_string().repeat(64));
        for left in [format!("{UNFINISHED}x"), format!("{c}.mp4"), "mine.txt".to_owned()] {
            std::fs::write(dir.path().join(left), "left").unwrap();
        }
        let used = std::fs::File::options().append(true).open(dir.path().join(format!("{b}.json"))).unwrap();
        used.set_modified(SystemTime::now() - Duration::from_secs(2000)).unwrap();
        let second = spool(dir.path(), 100, 1000).await;
        assert!(second.facts(&a).is_some() && second.facts(&b).is_none());
        let mut names: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names, [format!("{a}.json"), format!("{a}.mp4"), "lock".to_owned(), "mine.txt".to_owned()]);
    }
}
