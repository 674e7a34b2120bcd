//! Boxes of an ISO media file, and the two forms that most of them have: a header with a clock, and a table.

use std::io;
use std::ops::Range;

use crate::probe::bytes::Bytes;

/// Limit on the boxes of one level; no real file comes near it.
const MAX_BOXES: u64 = 1 << 22;

/// Position and width, in bytes, of a header's duration.
#[derive(Clone, Copy, Debug)]
pub(super) struct LengthField {
    pub(super) at: u64,
    pub(super) width: usize,
}

/// A box: its name, where that stands, and its content.
pub(super) struct Found {
    pub(super) name: [u8; 4],
    pub(super) name_at: u64,
    pub(super) body: Range<u64>,
    /// Whether the file ends before the box does.
    pub(super) cut: bool,
}

/// An error about data that contradicts the format.
pub(super) fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// The boxes of `range`; a last one that the file cuts short ends with the file.
pub(super) fn boxes(bytes: &mut Bytes<'_>, range: Range<u64>) -> io::Result<Vec<Found>> {
    let mut at = range.start;
    let mut found = Vec::new();
    while at + 8 <= range.end {
        let size = u64::from(bytes.u32(at)?);
        let name = bytes.array(at + 4)?;
        let (header, size) = match size {
            0 => (8, range.end - at),
            1 if at + 16 <= range.end => (16, bytes.u64(at + 8)?),
            size => (8, size),
        };
        if size < header {
            return Err(bad("a box is smaller than its header"));
        }
        let told = at.saturating_add(size);
        let end = told.min(range.end);
        bytes.spend(1)?;
        found.push(Found { name, name_at: at + 4, body: at + header..end, cut: told > range.end });
        if found.len() as u64 > MAX_BOXES {
            return Err(bad("more than 4,194,304 boxes in one"));
        }
        at = end;
    }
    Ok(found)
}

/// Ticks per second, duration in ticks and its position, as `mvhd` and `mdhd` have them.
pub(super) fn clock(bytes: &mut Bytes<'_>, body: &Range<u64>) -> io::Result<(u32, u64, LengthField)> {
    let at = body.start;
    Ok(if bytes.array::<1>(at)?[0] == 1 {
        (bytes.u32(at + 20)?, bytes.u64(at + 24)?, LengthField { at: at + 24, width: 8 })
    } else {
        let duration = bytes.u32(at + 16)?;
        let told = if duration == u32::MAX { 0 } else { duration.into() };
        (bytes.u32(at + 12)?, told, LengthField { at: at + 16, width: 4 })
    })
}

/// Rows of a counted table behind version and flags.
pub(super) fn table<const N: usize>(bytes: &mut Bytes<'_>, body: &Range<u64>) -> io::Result<Vec<[u8; N]>> {
    let count = u64::from(bytes.u32(body.start + 4)?);
    if body.start + 8 + count * N as u64 > body.end {
        return Err(bad("a table is truncated"));
    }
    bytes.spend(count)?;
    (0..count).map(|i| bytes.array(body.start + 8 + i * N as u64)).collect()
}
