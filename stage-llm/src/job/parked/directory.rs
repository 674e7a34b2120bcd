//! Directory of parked videos, which several processes share: files under a quota, the least recently used of which go first.
//!
//! A file has its name only once it is whole. What is being written is locked by its writer for as long as that lives: what
//! nobody holds a lock on is left over from a process that was killed. Everything that counts or removes files holds the
//! directory's lock.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

/// Ending of a parked video's file.
const ENDING: &str = ".kv.safetensors";
/// Ending of a file that is being written; its name begins with a dot.
const UNFINISHED: &str = ".unfinished";
/// Name of the lock's file. It stays there: a file that is removed can be locked twice.
const LOCK: &str = "lock";

/// Files that this process has begun: no two have the same name.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// Directory of parked videos.
#[derive(Clone, Debug)]
pub struct Directory(PathBuf);

/// File of a parked video.
#[derive(Clone, Debug)]
pub struct ParkedFile {
    /// Its name, without the ending.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// When it was written or read last.
    pub used: SystemTime,
}

/// Place for a file that is to be written.
pub enum Place {
    /// It may be written.
    Free(Begun),
    /// The file is there already, or another process writes it.
    Taken,
    /// It has no room, for this reason.
    Refused(String),
}

impl Directory {
    /// Directory at a path, which need not be there yet.
    pub fn new(path: &Path) -> Self {
        Directory(path.to_owned())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Place of a parked video's file.
    pub fn place(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}{ENDING}"))
    }

    /// Makes the directory, for this user alone, and removes what killed processes have left in it; how many files those were.
    ///
    /// # Errors
    /// The file system's.
    pub fn prepare(&self) -> Result<usize> {
        let _lock = self.lock()?;
        Ok(self.sweep()?.left_over)
    }

    /// Parked videos, the least recently used first; none without the directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn files(&self) -> Result<Vec<ParkedFile>> {
        let mut files = Vec::new();
        for entry in self.entries()? {
            let Some(name) = entry.1.strip_suffix(ENDING).filter(|name| !name.starts_with('.')) else { continue };
            // Another process may have removed it meanwhile.
            let Ok(data) = std::fs::symlink_metadata(&entry.0) else { continue };
            if data.is_file() {
                let used = data.modified()?;
                files.push(ParkedFile { name: name.to_owned(), path: entry.0, bytes: data.len(), used });
            }
        }
        files.sort_by(|a, b| a.used.cmp(&b.used).then_with(|| a.name.cmp(&b.name)));
        Ok(files)
    }

    /// Begins the file of a video, of `bytes` bytes, within a quota: the least recently used files go, and no more than must.
    ///
    /// # Errors
    /// The file system's.
    pub fn begin(&self, name: &str, bytes: u64, quota: u64) -> Result<Place> {
        let _lock = self.lock()?;
        let swept = self.sweep()?;
        if self.place(name).exists() || swept.writing.iter().any(|writing| writing == name) {
            return Ok(Place::Taken);
        }
        if swept.writing_bytes.saturating_add(bytes) > quota {
            let writing = swept.writing_bytes;
            let why = format!("it has {bytes} bytes, {writing} are being written, and llm.park_bytes allows {quota}");
            return Ok(Place::Refused(why));
        }
        let files = self.files()?;
        let total: u64 = files.iter().map(|file| file.bytes).sum();
        let disk = statvfs(&self.0)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free.saturating_add(total) < bytes {
            let why =
                format!("it has {bytes} bytes, {free} are free on the disk, and {total} are other parked videos'");
            return Ok(Place::Refused(why));
        }
        let over_quota = (swept.writing_bytes + total + bytes).saturating_sub(quota);
        evict(&files, over_quota.max(bytes.saturating_sub(free)))?;
        match self.create(name, bytes) {
            Ok(begun) => Ok(Place::Free(begun)),
            Err(error) if error.kind() == ErrorKind::StorageFull => {
                Ok(Place::Refused(format!("the disk has no room for its {bytes} bytes: {error}")))
            }
            Err(error) => Err(error),
        }
    }

    /// Removes a parked video; false if there is none of that name.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self, name: &str) -> Result<bool> {
        let _lock = self.lock()?;
        gone(std::fs::remove_file(self.place(name)))
    }

    /// Removes a file that was found damaged, unless another one has its name by now.
    ///
    /// # Errors
    /// The file system's.
    pub fn discard(&self, name: &str, damaged: &File) -> Result<bool> {
        let _lock = self.lock()?;
        let (ours, place) = (damaged.metadata()?, self.place(name));
        match std::fs::symlink_metadata(&place) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => gone(std::fs::remove_file(place)),
            Ok(_) => Ok(false),
            Err(error) => gone(Err(error)),
        }
    }

    /// Lock on the directory, which is made if it is missing; free again once this is dropped, or the process ends.
    fn lock(&self) -> Result<File> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let mut options = File::options();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(self.0.join(LOCK))?;
        file.lock()?;
        Ok(file)
    }

    /// Paths and names of all that is in it.
    fn entries(&self) -> Result<Vec<(PathBuf, String)>> {
        let entries = match std::fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry?;
            all.extend(entry.file_name().into_string().ok().map(|name| (entry.path(), name)));
        }
        Ok(all)
    }

    /// Removes files whose writer is gone, and counts those whose writer lives.
    fn sweep(&self) -> Result<Swept> {
        let mut swept = Swept::default();
        for (path, name) in self.entries()? {
            let Some(name) = name.strip_prefix('.').and_then(|name| name.strip_suffix(UNFINISHED)) else { continue };
            let Ok(file) = File::open(&path) else { continue };
            match file.try_lock() {
                Ok(()) => swept.left_over += usize::from(gone(std::fs::remove_file(&path))?),
                Err(TryLockError::WouldBlock) => {
                    swept.writing.push(name.split_once('.').map_or(name, |(name, _)| name).to_owned());
                    swept.writing_bytes += file.metadata()?.len();
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Ok(swept)
    }

    /// File of so many bytes, locked, which the disk has room for.
    fn create(&self, name: &str, bytes: u64) -> Result<Begun> {
        let number = BEGUN.fetch_add(1, Ordering::Relaxed);
        let path = self.0.join(format!(".{name}.{}-{number}{UNFINISHED}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        let begun = Begun { file, path, name: name.to_owned(), directory: self.clone(), is_finished: false };
        begun.file.try_lock().map_err(Error::other)?;
        match fallocate(&begun.file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => {}
            // A file system that reserves nothing: a full disk is found while it is written.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => begun.file.set_len(bytes)?,
            Err(error) => return Err(error.into()),
        }
        Ok(begun)
    }
}

/// What is being written in a directory.
#[derive(Default)]
struct Swept {
    /// Files that nobody wrote any more, and that are gone.
    left_over: usize,
    /// Names of the videos that are being written.
    writing: Vec<String>,
    /// Bytes of their files.
    writing_bytes: u64,
}

/// Removes files, the first ones first, until `bytes` bytes are free.
fn evict(files: &[ParkedFile], mut bytes: u64) -> Result<()> {
    for file in files {
        if bytes == 0 {
            break;
        }
        gone(std::fs::remove_file(&file.path))?;
        bytes = bytes.saturating_sub(file.bytes);
        tracing::info!(video = file.name, file.bytes, "a parked video gives way to another one");
    }
    Ok(())
}

/// Whether a file was removed; false if it was not there.
fn gone(outcome: Result<()>) -> Result<bool> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// File that is being written. Dropped before it is finished, it is gone.
#[derive(Debug)]
pub struct Begun {
    file: File,
    path: PathBuf,
    name: String,
    directory: Directory,
    is_finished: bool,
}

impl Begun {
    /// The file, to be written.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file its name, once its bytes are on the disk.
    ///
    /// # Errors
    /// The file system's.
    pub fn finish(mut self) -> Result<()> {
        self.file.sync_all()?;
        let _lock = self.directory.lock()?;
        std::fs::rename(&self.path, self.directory.place(&self.name))?;
        self.is_finished = true;
        File::open(&self.directory.0)?.sync_all()
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if !self.is_finished
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished parked video was not removed; the next process does that");
        }
    }
}
