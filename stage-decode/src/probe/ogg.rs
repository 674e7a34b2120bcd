//! Which samples of a stream of Vorbis or Opus in Ogg are heard: its last page says how much of the last packet is audio, the head of
//! Opus how much its decoder gives before the sound begins.
//!
//! Format: RFC 3533; the Vorbis I specification, A.2 (granule positions count samples); RFC 7845, 4.2 and 5.1 (pre-skip).

use super::bytes::Bytes;
use super::examined::Trim;

/// Size of the end of the file that is searched: pages have at most 64 KiB, so it holds the last page of each stream.
const TAIL_BYTES: u64 = 256 * 1024;
/// Size of the fixed part of a page header.
const HEADER_BYTES: u64 = 27;

/// Samples to keep of a Vorbis stream that begins at a position; all if the file does not say.
pub(super) fn vorbis(bytes: &mut Bytes<'_>, start: u64) -> Trim {
    let length = last_position(bytes).and_then(|end| end.checked_sub(start));
    length.map_or_else(Trim::default, |length| Trim::after(0, Some(length)))
}

/// Samples to keep of an Opus stream that begins later than at zero: GStreamer leaves the pre-skip out only of one that begins there.
pub(super) fn late_opus(bytes: &mut Bytes<'_>) -> Trim {
    Trim { timescale: 48_000, ..Trim::after(pre_skip(bytes), None) }
}

/// Samples at 48 kHz that a decoder of Opus gives before the sound begins; 0 of another codec.
pub(super) fn pre_skip(bytes: &mut Bytes<'_>) -> u64 {
    let head = stream(bytes, b"OpusHead").and_then(|(_, head)| bytes.array(head + 10).ok());
    head.map_or(0, |skip| u16::from_le_bytes(skip).into())
}

fn last_position(bytes: &mut Bytes<'_>) -> Option<u64> {
    let (serial, _) = stream(bytes, b"\x01vorbis")?;
    let start = bytes.size().saturating_sub(TAIL_BYTES);
    let mut tail = vec![0; (bytes.size() - start) as usize];
    bytes.read(start, &mut tail).ok()?;
    let pages = tail.windows(HEADER_BYTES as usize).rev().filter(|p| p.starts_with(b"OggS") && p[14..18] == serial);
    let mut positions = pages.map(|p| u64::from_le_bytes([p[6], p[7], p[8], p[9], p[10], p[11], p[12], p[13]]));
    positions.find(|&position| position != u64::MAX)
}

/// Serial number of the stream whose first packet begins like that, and that packet's position.
fn stream<const N: usize>(bytes: &mut Bytes<'_>, first: &[u8; N]) -> Option<([u8; 4], u64)> {
    let mut at = 0;
    loop {
        let header: [u8; HEADER_BYTES as usize] = bytes.array(at).ok()?;
        // Bit 1 marks the first page of a stream; all of those come first.
        if &header[..4] != b"OggS" || header[5] & 2 == 0 {
            return None;
        }
        let segments = u64::from(header[26]);
        let mut sizes = vec![0; segments as usize];
        bytes.read(at + HEADER_BYTES, &mut sizes).ok()?;
        let body = at + HEADER_BYTES + segments;
        if &bytes.array::<N>(body).ok()? == first {
            return Some(([header[14], header[15], header[16], header[17]], body));
        }
        at = body + sizes.iter().map(|&s| u64::from(s)).sum::<u64>();
    }
}
