//! EBML, the binary form of Matroska: elements with an id, a size and a content.
//!
//! Format: RFC 8794.

use std::io;
use std::ops::Range;

use super::bytes::Bytes;

/// Limit on the children of one element other than a cluster or segment.
const MAX_CHILDREN: usize = 1 << 16;

/// An element: its id, length marker included, and the position of its content.
pub(super) struct Element {
    pub(super) id: u32,
    pub(super) body: Range<u64>,
    /// Whether the size is unknown: the element ends at its next sibling or with the file.
    pub(super) open: bool,
    /// Whether what it lies in ends before it does.
    pub(super) cut: bool,
}

/// A variable-length number and its length in bytes; ids keep their length marker.
pub(super) fn number(bytes: &mut Bytes<'_>, at: u64, keep_marker: bool) -> io::Result<(u64, u64)> {
    let first = bytes.array::<1>(at)?[0];
    let length = u64::from(first.leading_zeros()) + 1;
    if length > 8 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a number has more than eight bytes"));
    }
    let mut raw = [0u8; 8];
    bytes.read(at, &mut raw[8 - length as usize..])?;
    let value = u64::from_be_bytes(raw);
    let marker = 1u64 << (7 * length);
    Ok((if keep_marker { value } else { value & (marker - 1) }, length))
}

/// The element at `at`, clipped to `end`.
pub(super) fn element(bytes: &mut Bytes<'_>, at: u64, end: u64) -> io::Result<Element> {
    let (id, id_length) = number(bytes, at, true)?;
    let (size, length) = number(bytes, at + id_length, false)?;
    let start = at + id_length + length;
    let open = size == (1 << (7 * length)) - 1;
    let id = u32::try_from(id)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "an element id has more than four bytes"))?;
    let stop = if open { end } else { start.saturating_add(size).min(end) };
    let cut = !open && start.saturating_add(size) > end;
    Ok(Element { id, body: start..stop.max(start), open, cut })
}

/// The children of a short element.
pub(super) fn children(bytes: &mut Bytes<'_>, body: &Range<u64>) -> io::Result<Vec<Element>> {
    let mut at = body.start;
    let mut all = Vec::new();
    while at < body.end {
        let child = element(bytes, at, body.end)?;
        at = child.body.end;
        all.push(child);
        if all.len() > MAX_CHILDREN {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an element has more than 65,536 children"));
        }
    }
    Ok(all)
}

/// An unsigned integer of up to eight bytes.
pub(super) fn unsigned(bytes: &mut Bytes<'_>, body: &Range<u64>) -> io::Result<u64> {
    let length = ((body.end - body.start) as usize).min(8);
    let mut raw = [0; 8];
    bytes.read(body.start, &mut raw[8 - length..])?;
    Ok(u64::from_be_bytes(raw))
}

/// A signed integer of up to eight bytes.
pub(super) fn signed(bytes: &mut Bytes<'_>, body: &Range<u64>) -> io::Result<i64> {
    let unused = 64 - 8 * (body.end - body.start).clamp(1, 8) as u32;
    Ok((unsigned(bytes, body)? << unused) as i64 >> unused)
}

/// A float of four or eight bytes.
pub(super) fn float(bytes: &mut Bytes<'_>, body: &Range<u64>) -> io::Result<f64> {
    let raw = unsigned(bytes, body)?;
    Ok(if body.end - body.start == 4 { f32::from_bits(raw as u32).into() } else { f64::from_bits(raw) })
}

/// A text, of which at most 256 bytes are read.
pub(super) fn text(bytes: &mut Bytes<'_>, body: &Range<u64>) -> io::Result<String> {
    let mut raw = vec![0; (body.end - body.start).min(256) as usize];
    bytes.read(body.start, &mut raw)?;
    Ok(String::from_utf8_lossy(&raw).trim_end_matches('\0').to_owned())
}
