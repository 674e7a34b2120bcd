//! File format of a recording, version 1.
//!
//! Two lines of text, so that `head -2 FILE` identifies it, then blocks:
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
/// Largest size of an unpacked block: the largest message that a server can take, and its headers.
pub const MAX_BLOCK_BYTES: usize = 80 << 20;
/// Largest length of a header line.
pub const MAX_HEADER_BYTES: u64 = 64 << 10;

/// Header of a recording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the messages ([`wire::VERSION`]).
    pub wire: u32,
    /// First part of the subjects, which records leave out.
    pub prefix: String,
    /// Unix time of the start, milliseconds; records count from here.
    pub started_ms: u64,
    /// Version of the `vidi` that wrote it.
    pub vidi: String,
    /// Name and version of the broker.
    pub server: String,
    /// Largest message that the broker accepted, bytes.
    pub max_payload: usize,
    /// Messages that were recorded, if not all.
    pub filter: Filter,
}

/// Filter of the messages to record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Filter {
    /// Only messages of this job.
    pub job: Option<JobId>,
    /// Only messages of these kinds; of all if empty.
    pub kinds: Vec<Kind>,
}

impl Filter {
    /// Whether a message passes.
    pub fn takes(&self, record: &Record) -> bool {
        (self.kinds.is_empty() || record.kind().is_some_and(|k| self.kinds.contains(&k)))
            && (self.job.is_none() || record.job() == self.job)
    }
}

/// One recorded message.
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
    /// Kind of the message; none for an unknown subject.
    pub fn kind(&self) -> Option<Kind> {
        Kind::of(&self.subject)
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Job of the message: of the subject where that ends in a job, else of the header, else of the body.
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
    /// Messages left out because the same `Nats-Msg-Id` was recorded shortly before: publishes that were retried.
    pub repeats: u64,
    /// Messages received but not written: this process or its disk was too slow.
    pub lost: u64,
    /// Times that the connection was lost; what passed meanwhile is not known.
    pub disconnects: u64,
}

impl End {
    /// Whether every message that passed is in the file.
    pub fn is_complete(&self) -> bool {
        self.lost == 0 && self.disconnects == 0
    }
}

/// Entry of a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Entry {
    /// A message.
    Message(Record),
    /// The closing entry.
    End(End),
}

/// Kind of error in a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordingErrorKind {
    /// The file cannot be opened, read or written.
    Io,
    /// The file is no recording.
    NotARecording,
    /// The format's version is unknown to this program.
    Version,
    /// The file ends before its closing entry.
    Cut,
    /// Some bytes are not those that were written.
    Damaged,
}

/// Reason why a recording cannot be read, or not to its end.
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

    /// Kind of the error.
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
