//! Errors of a checkpoint, and the reading of its small files.

use std::fmt;
use std::path::Path;

use serde::Deserialize;

use compute::failure::{is_out_of_memory, sentence};
use protocol::error::{ErrorKind, JobError};

/// Kind of a [`CheckpointError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointErrorKind {
    /// The directory or one of its files is not there, or cannot be read.
    Missing,
    /// A file is cut short or not what its name says.
    Malformed,
    /// The checkpoint is another model's, or was converted for another program.
    Unsupported,
    /// A tensor that the model needs is in no shard.
    MissingTensor,
    /// A tensor has another shape, or a type that no model computes with.
    Misshapen,
    /// There is no memory for a tensor.
    OutOfMemory,
}

/// Error of a checkpoint that cannot be used: which file or tensor, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointError {
    kind: CheckpointErrorKind,
    detail: String,
}

impl CheckpointError {
    /// An error with a sentence that names file or tensor.
    pub fn new(kind: CheckpointErrorKind, detail: impl Into<String>) -> Self {
        CheckpointError { kind, detail: detail.into() }
    }

    /// The error of weights that the device has no memory for, or that it cannot rearrange.
    pub fn from_device(error: candle_core::Error) -> Self {
        CheckpointError::new(CheckpointErrorKind::OutOfMemory, sentence(&error))
    }

    /// What callers match on.
    pub fn kind(&self) -> CheckpointErrorKind {
        self.kind
    }
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for CheckpointError {}

impl From<CheckpointError> for JobError {
    fn from(e: CheckpointError) -> Self {
        let (kind, hint) = match e.kind {
            CheckpointErrorKind::OutOfMemory => {
                (ErrorKind::OutOfMemory, "`vidi plan MODEL` shows what every stage will hold")
            }
            CheckpointErrorKind::Unsupported => (ErrorKind::Model, "model.dir names a checkpoint as it was released"),
            _ => (ErrorKind::Model, "`vidi inspect MODEL` lists what is missing or misshapen"),
        };
        JobError::new(kind, e.detail).hint(hint)
    }
}

/// Bytes of a file that has to be there.
pub fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    std::fs::read(path)
        .map_err(|e| CheckpointError::new(CheckpointErrorKind::Missing, format!("{}: {e}", path.display())))
}

/// A file's JSON.
pub fn parse<T: for<'a> Deserialize<'a>>(text: &[u8], path: &Path) -> Result<T, CheckpointError> {
    serde_json::from_slice(text).map_err(|e| malformed(path)(e.to_string()))
}

/// [`read`] and [`parse`].
pub fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, CheckpointError> {
    parse(&read(path)?, path)
}

/// The error of a checkpoint of another model, or one that was converted.
pub fn unsupported(place: &Path, what: &str) -> CheckpointError {
    let detail = format!("checkpoint refused: {}: {what}", place.display());
    CheckpointError::new(CheckpointErrorKind::Unsupported, detail)
}

/// The error of a file that is not what its name says.
pub fn malformed(place: &Path) -> impl Fn(String) -> CheckpointError {
    move |what| CheckpointError::new(CheckpointErrorKind::Malformed, format!("{}: {what}", place.display()))
}

/// The error of a tensor that the device has no memory for, or that is of a type that no model computes with.
pub fn unusable(path: &Path, name: &str, error: &candle_core::Error) -> CheckpointError {
    let kind = match is_out_of_memory(error) {
        true => CheckpointErrorKind::OutOfMemory,
        false => CheckpointErrorKind::Misshapen,
    };
    CheckpointError::new(kind, format!("{}: {name}: {}", path.display(), sentence(error)))
}
