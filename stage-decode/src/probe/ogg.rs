//! Last page of an Ogg Vorbis stream, which says how much of the last packet is audio.
//!
//! Format: RFC 3533, and the Vorbis I specification, A.2 (granule positions count samples).

use super::bytes::Bytes;
use super::examined::Trim;

/// Size of the end of the file that is searched: pages have at most 64 KiB, so it holds the last page of each stream.
const TAIL_BYTES: u64 = 256 * 1024;
/// Size of the fixed part of a page header.
const HEADER_BYTES: u64 = 27;

/// Samples to keep of a Vorbis stream; all if the file does not say.
pub(super) fn trim(bytes: &mut Bytes<'_>) -> Trim {
    last_position(bytes).map_or_else(Trim::default, |end| Trim::after(0, Some(end)))
}

fn last_position(bytes: &mut Bytes<'_>) -> Option<u64> {
    let serial = vorbis_serial(bytes)?;
    let start = bytes.size().saturating_sub(TAIL_BYTES);
    let mut tail = vec![0; (bytes.size() - start) as usize];
    bytes.read(start, &mut tail).ok()?;
    let pages = tail.windows(HEADER_BYTES as usize).rev().filter(|p| p.starts_with(b"OggS") && p[14..18] == serial);
    let mut positions = pages.map(|p| u64::from_le_bytes([p[6], p[7], p[8], p[9], p[10], p[11], p[12], p[13]]));
    positions.find(|&position| position != u64::MAX)
}

/// Serial number of the stream whose first packet is a Vorbis header.
fn vorbis_serial(bytes: &mut Bytes<'_>) -> Option<[u8; 4]> {
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
        if &bytes.array::<7>(body).ok()? == b"\x01vorbis" {
            return Some([header[14], header[15], header[16], header[17]]);
        }
        at = body + sizes.iter().map(|&s| u64::from(s)).sum::<u64>();
    }
}
