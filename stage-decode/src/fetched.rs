//! Copies of files that travel over the bus, below a directory that is a media root. A copy has the name and the modification time
//! of its file, so that its content id is the same on every host, and lies there as a whole or not at all: several processes may
//! share the directory.

use std::collections::HashMap;
use std::fs::{File, FileTimes};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, TryLockError, Weak};
use std::time::{Duration, SystemTime};

use protocol::error::{ErrorKind, JobError, StageName};
use protocol::stage::{FileSource, Looked, ON_THE_BUS, Stop, Tell};

/// Time between two looks whether a fetch that another thread began is over.
const POLL: Duration = Duration::from_millis(50);
/// Time between two looks for copies whose file is gone.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Time after which a copy that is not whole is nobody's.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Beginning of a copy that is not whole.
const UNFINISHED: &str = "fetch-";
/// Hexadecimal digits that a file's name begins with: a SHA-256.
const DIGITS: usize = 64;
/// Characters of its ending at most.
const ENDING: usize = 5;

/// Spool of copies.
pub(crate) struct Fetched {
    dir: Option<PathBuf>,
    quota: u64,
    source: Mutex<Option<Arc<dyn FileSource>>>,
    /// One lock for each file that is being fetched.
    fetching: Mutex<HashMap<String, Arc<Mutex<()>>>>,
}

impl Fetched {
    /// A spool in a directory, which is made if it is missing; none takes no files.
    ///
    /// # Errors
    /// `bad_request` for a directory that cannot be made.
    pub(crate) fn open(dir: Option<&Path>, quota: u64) -> Result<Arc<Self>, JobError> {
        let unusable = |dir: &Path, e: io::Error| {
            JobError::new(ErrorKind::BadRequest, format!("cannot use decode.spool {}: {e}", dir.display()))
                .hint("name a directory that stage-decode may write to")
        };
        if let Some(dir) = dir {
            std::fs::create_dir_all(dir).map_err(|e| unusable(dir, e))?;
            // Written to now, so that it is said at the start where that is not allowed.
            tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(dir).map_err(|e| unusable(dir, e))?;
        }
        let dir = dir.map(Path::to_owned);
        Ok(Arc::new(Fetched { dir, quota, source: Mutex::default(), fetching: Mutex::default() }))
    }

    /// Takes note of where the files are, and from now on removes copies whose file is gone.
    pub(crate) fn use_source(self: &Arc<Self>, source: Arc<dyn FileSource>) {
        *self.source.lock().unwrap_or_else(PoisonError::into_inner) = Some(source);
        if self.dir.is_none() {
            return;
        }
        let fetched = Arc::downgrade(self);
        let sweeping = std::thread::Builder::new().name("decode-spool".to_owned()).spawn(move || sweep(&fetched));
        if let Err(error) = sweeping {
            tracing::warn!(%error, "copies of files that are gone stay: no thread removes them");
        }
    }

    /// Name of the file that `video` names, if it travels over the bus.
    ///
    /// # Errors
    /// `bad_request` for no name of a file there.
    pub(crate) fn name(video: &str) -> Result<Option<&str>, JobError> {
        let Some(name) = video.strip_prefix(ON_THE_BUS) else { return Ok(None) };
        let (id, ending) = name.split_once('.').map_or((name, None), |(id, ending)| (id, Some(ending)));
        let is_plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let is_id = id.len() == DIGITS && id.bytes().all(|c| is_plain(c) && c.is_ascii_hexdigit());
        let is_ending = ending.is_none_or(|e| (1..=ENDING).contains(&e.len()) && e.bytes().all(is_plain));
        match is_id && is_ending {
            true => Ok(Some(name)),
            false => {
                let shown: String = video.chars().take(100).collect();
                Err(JobError::new(ErrorKind::BadRequest, format!("cannot open {shown:?}: it names no file on the bus"))
                    .hint("upload the video (POST /v1/files) and send its file_id"))
            }
        }
    }

    /// Whether a file can be fetched: it is there, and has a place here.
    ///
    /// # Errors
    /// `media_not_found`; [`Stop::Unavailable`] never.
    pub(crate) fn is_there(&self, name: &str) -> Result<(), Stop> {
        let (_, source) = self.place(name)?;
        source.size(name).map(|_| ())
    }

    /// Path of the copy of a file, which is fetched if it is not here.
    ///
    /// # Errors
    /// The source's, and `internal` for trouble with the disk.
    pub(crate) fn copy(&self, name: &str, tell: &mut Tell<'_>) -> Result<PathBuf, Stop> {
        let (dir, source) = self.place(name)?;
        let path = dir.join(name);
        let lock = {
            let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            fetching.retain(|other, lock| other == name || Arc::strong_count(lock) > 1);
            fetching.entry(name.to_owned()).or_default().clone()
        };
        let _turn = loop {
            match lock.try_lock() {
                Ok(turn) => break turn,
                Err(TryLockError::Poisoned(turn)) => break turn.into_inner(),
                Err(TryLockError::WouldBlock) if !tell(Looked::default()) => return Err(Stop::Cancelled),
                Err(TryLockError::WouldBlock) => std::thread::sleep(POLL),
            }
        };
        // Asked for first: what was removed is not answered about, though a copy is still here.
        let size = source.size(name)?;
        if path.metadata().is_ok_and(|found| found.len() == size) {
            used(&path);
            return Ok(path);
        }
        self.make_room(dir, size);
        let failed = |e: io::Error| {
            let text = format!("cannot copy {name} to {}: {e}", dir.display());
            JobError::new(ErrorKind::Internal, text).hint("look at the disk of decode.spool").at(StageName::Decode)
        };
        let copy = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(dir).map_err(failed)?.into_temp_path();
        source.fetch(name, &copy, tell)?;
        copy.persist(&path).map_err(|e| failed(e.error))?;
        used(&path);
        Ok(path)
    }

    fn place(&self, name: &str) -> Result<(&Path, Arc<dyn FileSource>), JobError> {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let nowhere = |why: &str, hint: &str| {
            JobError::new(ErrorKind::MediaNotFound, format!("cannot open {ON_THE_BUS}{name}: {why}"))
                .hint(hint)
                .at(StageName::Decode)
        };
        let dir = self.dir.as_deref().ok_or_else(|| {
            nowhere("this stage-decode fetches no files", "set decode.spool to a directory that it may write to")
        })?;
        Ok((dir, source.ok_or_else(|| nowhere("there is no bus", "run stage-decode as a process of a pipeline"))?))
    }

    /// Removes the copies that were used least recently, until there is room for `bytes` more.
    fn make_room(&self, dir: &Path, bytes: u64) {
        let mut copies = copies(dir);
        copies.sort_by_key(|copy| std::cmp::Reverse(copy.used));
        let mut all: u64 = copies.iter().map(|copy| copy.bytes).sum();
        while all.saturating_add(bytes) > self.quota
            && let Some(oldest) = copies.pop()
        {
            all -= oldest.bytes;
            remove(&oldest.path, "another one needs its place");
        }
    }
}

/// Copy in a spool.
struct Copy {
    path: PathBuf,
    name: String,
    bytes: u64,
    used: SystemTime,
}

/// The whole copies in a directory.
fn copies(dir: &Path) -> Vec<Copy> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let copy = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        Fetched::name(&format!("{ON_THE_BUS}{name}")).ok()??;
        let meta = entry.metadata().ok()?;
        Some(Copy { path: entry.path(), name, bytes: meta.len(), used: meta.accessed().ok()? })
    };
    entries.flatten().filter_map(copy).collect()
}

/// Notes the use of a copy. Its modification time, by which its content is known, stays.
fn used(path: &Path) {
    let noted = File::options()
        .append(true)
        .open(path)
        .and_then(|f| f.set_times(FileTimes::new().set_accessed(SystemTime::now())));
    if let Err(error) = noted {
        tracing::debug!(%error, path = %path.display(), "noting the use of a copy failed");
    }
}

fn remove(path: &Path, why: &str) {
    tracing::info!(path = %path.display(), why, "copy of a file on the bus removed");
    // Another process of this host may have been faster.
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "removing a copy failed");
    }
}

/// Removes copies whose file is gone, every now and then, for as long as the spool is used.
fn sweep(fetched: &Weak<Fetched>) {
    while let Some(spool) = fetched.upgrade() {
        spool.sweep();
        drop(spool);
        std::thread::sleep(SWEEP_EVERY);
    }
}

impl Fetched {
    /// Removes copies whose file is gone, and what was left unfinished long ago.
    fn sweep(&self) {
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (Some(dir), Some(source)) = (self.dir.as_deref(), source) else { return };
        for copy in copies(dir) {
            if matches!(source.size(&copy.name), Err(Stop::Failed(e)) if e.kind == ErrorKind::MediaNotFound) {
                remove(&copy.path, "its file is gone");
            }
        }
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let old = entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
            let is_ours = entry.file_name().to_string_lossy().starts_with(UNFINISHED);
            if is_ours && old.is_some_and(|age| age > ABANDONED) {
                remove(&entry.path(), "it was left unfinished");
            }
        }
    }
}

#[cfg(test)]
mod tests;
