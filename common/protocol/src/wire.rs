//! Bytes to messages and back: MessagePack with named fields, or JSON where a client asks for it.
//!
//! Nothing is allocated from a length that the bytes do not back: [`decode`] first walks the MessagePack
//! structure without recursion, and only then lets serde see it.

use serde::{Deserialize, Serialize};

use crate::job_id::JobId;
use crate::json;
pub use crate::wire_error::{WireError, WireErrorKind};

/// Version of every message in this crate; it also stands in the subjects.
pub const VERSION: u32 = 1;
/// Nesting that a message may have at most.
pub const MAX_DEPTH: usize = 16;
/// Values (of any type) that a message may hold at most: metadata and one tensor need a few hundred.
pub const MAX_VALUES: usize = 1 << 20;

/// Message that checks itself once its fields are read.
pub trait Message {
    /// Refuses values that no honest sender produces.
    ///
    /// # Errors
    /// The first field that is off, by name.
    fn check(&self) -> Result<(), WireError>;

    /// Job that the message belongs to; it must be the job in the subject it came on.
    fn job(&self) -> Option<&JobId> {
        None
    }
}

/// Encoding that a client writes in, and so is answered in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// MessagePack with named fields.
    #[default]
    MessagePack,
    /// A JSON object.
    Json,
}

impl Encoding {
    /// Encoding of a body: JSON if it starts with `{`, behind a byte-order mark and white space, with neither of which a
    /// message in MessagePack starts.
    pub fn of(body: &[u8]) -> Self {
        if json::is_object(body) { Encoding::Json } else { Encoding::MessagePack }
    }
}

/// Encodes as MessagePack with named fields.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(message).expect("messages serialize to memory. This is a bug.")
}

/// Encodes the way the other side writes.
pub fn encode_as(encoding: Encoding, message: &impl Serialize) -> Vec<u8> {
    match encoding {
        Encoding::MessagePack => encode(message),
        Encoding::Json => serde_json::to_vec(message).expect("messages serialize to memory. This is a bug."),
    }
}

/// Decodes and checks a MessagePack message; tensors borrow from `body`.
///
/// # Errors
/// See [`WireErrorKind`]; never panics, whatever the bytes.
pub fn decode<'a, M: Message + Deserialize<'a>>(body: &'a [u8]) -> Result<M, WireError> {
    walk(body)?;
    check_version(rmp_serde::from_slice::<Versioned>(body).map_err(schema)?.v)?;
    let message: M = rmp_serde::from_slice(body).map_err(schema)?;
    message.check()?;
    Ok(message)
}

/// The fields of `M` from a message whose rest may be wrong; none where even that fails.
pub fn decode_loosely<'a, M: Deserialize<'a>>(body: &'a [u8]) -> Option<M> {
    walk(body).ok()?;
    rmp_serde::from_slice(body).ok()
}

/// Decodes a client's message, MessagePack or JSON.
///
/// # Errors
/// As [`decode`].
pub fn decode_any<M>(body: &[u8]) -> Result<M, WireError>
where
    M: Message + for<'a> Deserialize<'a>,
{
    match Encoding::of(body) {
        Encoding::MessagePack => decode(body),
        Encoding::Json => {
            let malformed = |e: serde_json::Error| {
                let kind = match e.classify() {
                    serde_json::error::Category::Data => WireErrorKind::Schema,
                    _ => WireErrorKind::Malformed,
                };
                WireError::new(kind, e.to_string())
            };
            let body = json::unmarked(body);
            check_version(serde_json::from_slice::<Versioned>(body).map_err(malformed)?.v)?;
            let message: M = serde_json::from_slice(body).map_err(malformed)?;
            message.check()?;
            Ok(message)
        }
    }
}

/// Read before the rest, so that another version is called that and not "field x is missing".
#[derive(Deserialize)]
struct Versioned {
    #[serde(default = "version")]
    v: u32,
}

/// Default of every `v` field.
pub fn version() -> u32 {
    VERSION
}

fn check_version(v: u32) -> Result<(), WireError> {
    if v == VERSION {
        return Ok(());
    }
    let detail = format!("message has version {v}, this stage speaks {VERSION}");
    Err(WireError::new(WireErrorKind::Version, detail))
}

fn schema(e: rmp_serde::decode::Error) -> WireError {
    WireError::new(WireErrorKind::Schema, e.to_string())
}

/// Walks one MessagePack value: every length is backed by bytes, nesting is bounded, nothing trails.
fn walk(body: &[u8]) -> Result<(), WireError> {
    let cut = || WireError::new(WireErrorKind::Malformed, format!("cut short at {} bytes", body.len()));
    let mut at = 0usize;
    let mut values = 0usize;
    // Values still to come at each level; a map of n pairs is 2n values.
    let mut pending = vec![1u64];
    while let Some(top) = pending.last_mut() {
        if *top == 0 {
            pending.pop();
            continue;
        }
        *top -= 1;
        values += 1;
        let marker = *body.get(at).ok_or_else(cut)?;
        at += 1;
        let mut uint = |width: usize| -> Result<u64, WireError> {
            let bytes = body.get(at..at + width).ok_or_else(cut)?;
            at += width;
            Ok(bytes.iter().fold(0, |n, &b| n << 8 | u64::from(b)))
        };
        // (bytes to skip, values nested inside)
        let (skip, nested) = match marker {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => (0, 0),
            0x80..=0x8f => (0, 2 * u64::from(marker & 0x0f)),
            0x90..=0x9f => (0, u64::from(marker & 0x0f)),
            0xa0..=0xbf => (u64::from(marker & 0x1f), 0),
            0xc4 | 0xd9 => (uint(1)?, 0),
            0xc5 | 0xda => (uint(2)?, 0),
            0xc6 | 0xdb => (uint(4)?, 0),
            0xc7 => (uint(1)? + 1, 0),
            0xc8 => (uint(2)? + 1, 0),
            0xc9 => (uint(4)? + 1, 0),
            0xca | 0xce | 0xd2 => (4, 0),
            0xcb | 0xcf | 0xd3 => (8, 0),
            0xcc | 0xd0 => (1, 0),
            0xcd | 0xd1 => (2, 0),
            0xd4..=0xd8 => (1 + (1 << (marker - 0xd4)), 0),
            0xdc => (0, uint(2)?),
            0xdd => (0, uint(4)?),
            0xde => (0, 2 * uint(2)?),
            0xdf => (0, 2 * uint(4)?),
            0xc1 => {
                let detail = format!("reserved marker 0xc1 at byte {}", at - 1);
                return Err(WireError::new(WireErrorKind::Malformed, detail));
            }
        };
        let left = (body.len() - at) as u64;
        if skip > left || nested > left {
            return Err(cut());
        }
        at += skip as usize;
        if nested > 0 {
            pending.push(nested);
        }
        if pending.len() > MAX_DEPTH + 1 || values > MAX_VALUES {
            let detail = format!("more than {MAX_DEPTH} levels or {MAX_VALUES} values");
            return Err(WireError::new(WireErrorKind::TooComplex, detail));
        }
    }
    if at != body.len() {
        let detail = format!("{} bytes after the message", body.len() - at);
        return Err(WireError::new(WireErrorKind::Malformed, detail));
    }
    Ok(())
}
