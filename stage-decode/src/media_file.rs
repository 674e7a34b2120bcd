//! Open media file: the descriptor that probe and decoding read from, and the path for messages.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::error::{ErrorKind, JobError};

use crate::failure;

/// Open regular file. What takes its place in the file system later does not change it.
#[derive(Clone, Debug)]
pub(crate) struct MediaFile {
    path: PathBuf,
    file: Arc<File>,
}

impl MediaFile {
    /// An open file, after a check that it is a regular one.
    ///
    /// # Errors
    /// `unsupported_media` for a directory, device, pipe or socket.
    pub(crate) fn new(path: PathBuf, file: File) -> Result<Self, JobError> {
        let meta = file.metadata().map_err(|e| failure::unreadable(&path, &e))?;
        if meta.is_file() { Ok(MediaFile { path, file: Arc::new(file) }) } else { Err(irregular(&path)) }
    }

    /// Path for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its descriptor, to be read by position only: all readers share its offset.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }
}

/// `unsupported_media` for a directory, device, pipe or socket.
pub(crate) fn irregular(path: &Path) -> JobError {
    JobError::new(ErrorKind::UnsupportedMedia, format!("cannot open {}: it is not a regular file", path.display()))
        .hint("name a video or audio file, not a directory or device")
}
