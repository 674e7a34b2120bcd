//! Open media file: the descriptor that probe and decoding read from, and the path for messages.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use protocol::error::{ErrorKind, JobError};
use protocol::stage::Looked;

use crate::failure;

/// Open regular file. What takes its place in the file system later does not change it.
#[derive(Clone, Debug)]
pub(crate) struct MediaFile {
    path: PathBuf,
    file: Arc<File>,
    reading: Reading,
}

impl MediaFile {
    /// An open file, after a check that it is a regular one.
    ///
    /// # Errors
    /// `unsupported_media` for a directory, device, pipe or socket.
    pub(crate) fn new(path: PathBuf, file: File) -> Result<Self, JobError> {
        let meta = file.metadata().map_err(|e| failure::unreadable(&path, &e))?;
        let reading = Reading::default();
        reading.0.size.store(meta.len(), Ordering::Relaxed);
        if meta.is_file() { Ok(MediaFile { path, file: Arc::new(file), reading }) } else { Err(irregular(&path)) }
    }

    /// Path for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its descriptor, whose offset all readers share.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// How far the work on it is; all clones share it.
    pub(crate) fn reading(&self) -> &Reading {
        &self.reading
    }

    /// Reads what one read gives from position `at` on; 0 bytes at the end.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn read_at(&self, out: &mut [u8], at: u64) -> io::Result<usize> {
        let Counts { at: begun, outstanding, bytes, .. } = &*self.reading.0;
        begun.store(at, Ordering::Relaxed);
        outstanding.fetch_add(1, Ordering::Relaxed);
        let outcome = loop {
            match self.file.read_at(out, at) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome,
            }
        };
        outstanding.fetch_sub(1, Ordering::Relaxed);
        bytes.fetch_add(*outcome.as_ref().unwrap_or(&0) as u64, Ordering::Relaxed);
        outcome
    }

    /// Reads from position `at` on until `out` is full or the file ends, and tells how much there was.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn read_as_far(&self, out: &mut [u8], at: u64) -> io::Result<usize> {
        let mut there = 0;
        while there < out.len() {
            match self.read_at(&mut out[there..], at.saturating_add(there as u64))? {
                0 => break,
                more => there += more,
            }
        }
        Ok(there)
    }

    /// Fills `out` from position `at` on.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before; the file system's.
    pub(crate) fn read_exact_at(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        let there = self.read_as_far(out, at)?;
        if there == out.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// The error for a file that is worked on without progress for so long: `media_not_found` where a read of it does not come
    /// back, else `unsupported_media`.
    pub(crate) fn stuck(&self, quiet: Duration) -> JobError {
        let (path, reading, seconds) = (self.path(), self.reading(), quiet.as_secs_f64());
        let (bytes, size, (at, reads)) = (reading.bytes(), reading.size(), reading.last());
        if reads {
            let text = format!(
                "cannot read {}: a read at byte {at} of {size} has not come back for {seconds:.0} s, after {bytes} bytes",
                path.display()
            );
            return JobError::new(ErrorKind::MediaNotFound, text)
                .hint("look at the disk or share that it lies on, or copy it to another one");
        }
        let what = format!("no progress for {seconds:.0} s, after {bytes} bytes, the last from byte {at} of {size} on");
        failure::unsupported(path, &what)
    }

    /// `unsupported_media` for a file that a demuxer reads over and over.
    pub(crate) fn circling(&self, most: u64) -> JobError {
        let (bytes, size) = (self.reading().bytes(), self.reading().size());
        let what =
            format!("its demuxer has read {bytes} bytes of a file of {size}, more than {most}, and is not at its end");
        failure::unsupported(self.path(), &what)
    }
}

/// How far the work on a file is, as all threads tell that do it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    size: AtomicU64,
    bytes: AtomicU64,
    /// Position of the read that began last.
    at: AtomicU64,
    /// Reads that have not come back.
    outstanding: AtomicU64,
    steps: AtomicU64,
}

impl Reading {
    /// Notes work on what was read.
    pub(crate) fn step(&self) {
        self.0.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Number that grows as long as the work goes on.
    pub(crate) fn mark(&self) -> u64 {
        self.bytes().wrapping_add(self.0.steps.load(Ordering::Relaxed))
    }

    /// Bytes that were read.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Size of the file when it was opened.
    pub(crate) fn size(&self) -> u64 {
        self.0.size.load(Ordering::Relaxed)
    }

    /// Position of the last read, and whether one has not come back yet.
    pub(crate) fn last(&self) -> (u64, bool) {
        (self.0.at.load(Ordering::Relaxed), self.0.outstanding.load(Ordering::Relaxed) > 0)
    }

    /// The figures for whoever waits.
    pub(crate) fn looked(&self) -> Looked {
        Looked { read_bytes: self.bytes(), size_bytes: self.size() }
    }
}

/// `unsupported_media` for a directory, device, pipe or socket.
pub(crate) fn irregular(path: &Path) -> JobError {
    JobError::new(ErrorKind::UnsupportedMedia, format!("cannot open {}: it is not a regular file", path.display()))
        .hint("name a video or audio file, not a directory or device")
}
