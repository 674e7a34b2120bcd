//! The file, version 1.
//!
//! Two lines of text, so that `head -2 FILE` says what it is, then blocks:
//!
//! ```text
//! vidi recording 1 <CRC-32 of the next line without its end, 8 hex digits>\n
//! <Header as JSON>\n
//! block*
//!
//! block = stored bytes u32 | raw bytes u32 | CRC-32 u32 | LZ4 block (little-endian; the CRC covers all but itself)
//! ```
//!
//! A block unpacks to MessagePack values, each one [`Entry`] (a map of one key, the entry's name, to its fields). The
//! last entry of a whole file is an [`End`]. A file is only ever appended to, block by block, so whatever interrupts a
//! recording leaves a readable file that lacks its end; a block that was cut or altered does not match its CRC.

use std::fmt;

use protocol::control::ControlRequest;
use protocol::message::{JobId, JobRequest};
use protocol::wire;
use serde::{Deserialize, Serialize};

use super::kind::Kind;

/// Version of this layout.
pub const FORMAT_VERSION: u32 = 1;
/// First words of every recording.
pub const MAGIC: &str = "vidi recording ";
/// Bytes before a block's content.
pub const BLOCK_HEADER_BYTES: usize = 12;
/// A block unpacks to this many bytes at most: the largest message that a server can take, and room for its headers.
pub const MAX_BLOCK_BYTES: usize = 80 << 20;
/// A header line is no longer than this.
pub const MAX_HEADER_BYTES: u64 = 64 << 10;

/// What a recording says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the messages ([`wire::VERSION`]).
    pub wire: u32,
    /// First part of the subjects, which records leave out.
    pub prefix: String,
    /// Unix time of the start, milliseconds; records count from here.
    pub started_ms: u64,
    /// Version of the `vidi` that recorded.
    pub vidi: String,
    /// Name and version of the broker.
    pub server: String,
    /// The largest message that the broker took, bytes.
    pub max_payload: usize,
    /// What was recorded, if not everything.
    pub filter: Filter,
}

/// Which messages are wanted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Filter {
    /// Only this job's.
    pub job: Option<JobId>,
    /// Only these; all if empty.
    pub kinds: Vec<Kind>,
}

impl Filter {
    /// Whether it wants a message.
    pub fn takes(&self, record: &Record) -> bool {
        (self.kinds.is_empty() || record.kind().is_some_and(|k| self.kinds.contains(&k)))
            && (self.job.is_none() || record.job() == self.job)
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Microseconds since the start.
    pub at_us: u64,
    /// Subject, without the prefix and its dot.
    pub subject: String,
    /// Headers, in the order of their names.
    pub headers: Vec<(String, String)>,
    /// The body, as it was.
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
}

impl Record {
    /// What it is.
    pub fn kind(&self) -> Option<Kind> {
        Kind::of(&self.subject)
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Whose it is: told by the subject where that ends in a job, else by the header, else by the body.
    pub fn job(&self) -> Option<JobId> {
        match self.kind()? {
            Kind::Probe => None,
            Kind::Control => wire::decode_any::<ControlRequest>(&self.body).ok()?.job,
            Kind::Jobs | Kind::Waiting => match self.header("Vidi-Job") {
                Some(job) => JobId::new(job).ok(),
                None => wire::decode_any::<JobRequest>(&self.body).ok().map(|r| r.job),
            },
            _ => JobId::new(self.subject.rsplit_once('.')?.1).ok(),
        }
    }
}

/// The last entry of a whole recording.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Microseconds since the start.
    pub at_us: u64,
    /// Messages in the file.
    pub messages: u64,
    /// Messages left out because the same `Nats-Msg-Id` was recorded shortly before: a sender that tries again.
    pub repeats: u64,
    /// Messages that came but could not be kept: this process or its disk was too slow.
    pub lost: u64,
    /// Times that the broker was away; nobody knows what passed meanwhile.
    pub disconnects: u64,
}

impl End {
    /// Whether everything that passed is in the file.
    pub fn is_complete(&self) -> bool {
        self.lost == 0 && self.disconnects == 0
    }
}

/// What a block is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Entry {
    /// A message.
    Message(Record),
    /// Nothing follows.
    End(End),
}

/// What is wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordingErrorKind {
    /// It cannot be opened, read or written.
    Io,
    /// It is something else.
    NotARecording,
    /// It has a version that this program does not know.
    Version,
    /// It ends before its end.
    Cut,
    /// Some of its bytes are not those that were written.
    Damaged,
}

/// A file that cannot be read, or not to its end, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordingError {
    kind: RecordingErrorKind,
    detail: String,
}

impl RecordingError {
    /// An error with a sentence for a person.
    pub fn new(kind: RecordingErrorKind, detail: impl Into<String>) -> Self {
        RecordingError { kind, detail: detail.into() }
    }

    /// What callers match on.
    pub fn kind(&self) -> RecordingErrorKind {
        self.kind
    }
}

impl fmt::Display for RecordingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for RecordingError {}

/// The checksum of a block: its two lengths and its stored bytes.
pub(super) fn block_crc(lengths: &[u8], stored: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(lengths);
    crc.update(stored);
    crc.finalize()
}
