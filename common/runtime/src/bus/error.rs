//! Error of a broker that cannot be used.

use std::error::Error;
use std::fmt;

/// Kind of trouble between this process and the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusErrorKind {
    /// The address is none.
    Address,
    /// Nobody answers at the address.
    Unreachable,
    /// The broker refuses these credentials, or ours say that it is not the broker.
    Credentials,
    /// Other processes of the pipeline differ from this one in what all must share.
    Mixed,
    /// The broker has no JetStream, or refuses a stream or consumer.
    JetStream,
    /// A cluster elects a leader, or a server of it is away that a stream or consumer is on: this may pass.
    Leaderless,
}

/// Error of a broker that cannot be used.
#[derive(Clone, Debug)]
pub struct BusError {
    kind: BusErrorKind,
    detail: String,
}

impl BusError {
    /// Error with a sentence for a person.
    pub fn new(kind: BusErrorKind, detail: impl Into<String>) -> Self {
        BusError { kind, detail: detail.into() }
    }

    /// Kind that callers match on.
    pub fn kind(&self) -> BusErrorKind {
        self.kind
    }
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Error for BusError {}
