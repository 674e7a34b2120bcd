//! Xing/LAME header of an MP3 file, which gives the encoder's delay and padding.
//!
//! Source of the figures: ffmpeg `libavformat/mp3dec.c`, `mp3_parse_info_tag`.

use super::bytes::Bytes;
use super::examined::Trim;

/// Delay of a decoder in samples: half a filter bank and one sample.
const DECODER_DELAY: u64 = 528 + 1;

/// Samples to drop; none if the file has no such header.
pub(super) fn trim(bytes: &mut Bytes<'_>) -> Trim {
    read(bytes).unwrap_or_default()
}

fn read(bytes: &mut Bytes<'_>) -> Option<Trim> {
    let mut at = 0;
    let tag: [u8; 10] = bytes.array(0).ok()?;
    if &tag[..3] == b"ID3" {
        let size = tag[6..].iter().fold(0u64, |n, &b| n << 7 | u64::from(b & 0x7f));
        at = 10 + size + 10 * u64::from(tag[5] >> 4 & 1);
    }
    let header = bytes.u32(at).ok()?;
    if header >> 21 != 0x7ff || header >> 17 & 3 != 1 {
        return None;
    }
    // MPEG-1 has two granules a frame; the lower rates have one.
    let first_version = header >> 19 & 3 == 3;
    let mono = header >> 6 & 3 == 3;
    let frame_samples = if first_version { 1152 } else { 576 };
    let side = match (first_version, mono) {
        (true, false) => 32,
        (true, true) | (false, false) => 17,
        (false, true) => 9,
    };
    at += 4 + side;
    let name = bytes.u32(at).ok()?.to_be_bytes();
    if !matches!(&name, b"Xing" | b"Info") {
        return None;
    }
    let flags = bytes.u32(at + 4).ok()?;
    at += 8;
    let mut frames = 0;
    if flags & 1 != 0 {
        frames = u64::from(bytes.u32(at).ok()?);
        at += 4;
    }
    at += 4 * u64::from(flags >> 1 & 1) + 100 * u64::from(flags >> 2 & 1) + 4 * u64::from(flags >> 3 & 1);
    let version = bytes.u32(at).ok()?.to_be_bytes();
    if !matches!(&version, b"LAME" | b"Lavf" | b"Lavc") {
        return None;
    }
    let pads = bytes.u32(at + 20).ok()? & 0xff_ffff;
    let skip = u64::from(pads >> 12) + DECODER_DELAY;
    if frames == 0 {
        return Some(Trim::after(skip, None));
    }
    let all = frames * frame_samples;
    let end = (all + DECODER_DELAY).saturating_sub(u64::from(pads & 0xfff)).clamp(skip.min(all), all);
    // What lies behind the frames that were counted was joined to them later.
    Some(Trim { passes: vec![vec![skip..end, all..u64::MAX]], ..Trim::default() })
}
