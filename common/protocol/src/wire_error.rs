//! Error of a message that cannot be understood.

use std::fmt;

use crate::error::{ErrorKind, JobError};

/// Kind of what is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireErrorKind {
    /// Not MessagePack (or JSON), cut short, or with trailing bytes.
    Malformed,
    /// Nested deeper than [`MAX_DEPTH`](crate::wire::MAX_DEPTH), or more than [`MAX_VALUES`](crate::wire::MAX_VALUES) values.
    TooComplex,
    /// A field is missing, or of another type.
    Schema,
    /// Another protocol version.
    Version,
    /// A tensor whose bytes, shape or dtype do not agree with the message.
    Shape,
    /// A field's value is outside what the protocol allows.
    Value,
    /// The message is larger than the server takes, and cannot be split.
    Oversize,
}

/// Error of a message that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError {
    kind: WireErrorKind,
    detail: String,
}

impl WireError {
    /// Error with a sentence for a person.
    pub fn new(kind: WireErrorKind, detail: impl Into<String>) -> Self {
        WireError { kind, detail: detail.into() }
    }

    /// Kind that callers match on.
    pub fn kind(&self) -> WireErrorKind {
        self.kind
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.detail)
    }
}

impl std::error::Error for WireError {}

impl From<WireError> for JobError {
    /// Error of a message that was made here: whoever receives one that cannot be read says so in other words.
    fn from(error: WireError) -> Self {
        JobError::new(ErrorKind::Internal, error.to_string())
    }
}
