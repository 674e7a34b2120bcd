//! Descriptions of sound (`stsd`): uncompressed, and the delay of Opus.
//!
//! Formats: QuickTime File Format, "Sound Sample Description" versions 0 to 2; ISO/IEC 23003-5 (`ipcm`, `fpcm`); "Encapsulation of
//! Opus in ISO Base Media File Format", 4.3.2 (`dOps`). What a code
//! means follows ffmpeg (`libavformat/mov.c`, `mov_parse_stsd_audio`).

use std::io;
use std::ops::Range;

use super::boxes::boxes;
use crate::pcm::{Encoding, Form};
use crate::probe::bytes::Bytes;

/// Encoding, channels and samples a second of a description; none for compressed sound, and what is not read.
pub(super) fn encoding(bytes: &mut Bytes<'_>, entry: Range<u64>) -> io::Result<Option<(Encoding, u32, u32)>> {
    let at = entry.start;
    let code: [u8; 4] = bytes.array(at + 4)?;
    let version = bytes.u32(at + 16)? >> 16;
    let (channels, bits) = (bytes.u32(at + 24)? >> 16, bytes.u32(at + 24)? & 0xffff);
    let rate = bytes.u32(at + 32)? >> 16;
    let inside = match version {
        0 => at + 36,
        1 => at + 52,
        _ => at + 72,
    };
    let (form, bits, little, channels, rate) = match &code {
        b"raw " | b"NONE" if bits == 8 => (Form::Unsigned, 8, false, channels, rate),
        b"raw " | b"NONE" | b"twos" => (Form::Signed, bits, false, channels, rate),
        b"sowt" => (Form::Signed, bits, true, channels, rate),
        b"in24" => (Form::Signed, 24, is_little(bytes, inside..entry.end, 0)?, channels, rate),
        b"in32" => (Form::Signed, 32, is_little(bytes, inside..entry.end, 0)?, channels, rate),
        b"fl32" => (Form::Float, 32, is_little(bytes, inside..entry.end, 0)?, channels, rate),
        b"fl64" => (Form::Float, 64, is_little(bytes, inside..entry.end, 0)?, channels, rate),
        b"lpcm" if version == 2 => {
            let flags = bytes.u32(at + 60)?;
            let form = match (flags & 1 != 0, flags & 4 != 0) {
                (true, _) => Form::Float,
                (false, true) => Form::Signed,
                (false, false) => Form::Unsigned,
            };
            let (channels, bits) = (bytes.u32(at + 48)?, bytes.u32(at + 56)?);
            // Samples with bits of padding.
            if u64::from(bytes.u32(at + 64)?) * 8 != u64::from(channels) * u64::from(bits) {
                return Ok(None);
            }
            let rate = f64::from_bits(bytes.u64(at + 40)?) as u32;
            (form, bits, flags & 2 == 0, channels, rate)
        }
        b"ipcm" | b"fpcm" => {
            let inside = boxes(bytes, inside..entry.end)?;
            let Some(found) = inside.iter().find(|found| &found.name == b"pcmC") else { return Ok(None) };
            let [flags, bits] = bytes.array(found.body.start + 4)?;
            let form = if &code == b"ipcm" { Form::Signed } else { Form::Float };
            (form, bits.into(), flags & 1 == 1, channels, rate)
        }
        _ => return Ok(None),
    };
    let sane = (1..=64).contains(&channels) && (1..=768_000).contains(&rate);
    Ok(Encoding::new(form, bits, little).filter(|_| sane).map(|encoding| (encoding, channels, rate)))
}

/// Samples at 48 kHz that a decoder gives before the sound begins, of a description of Opus.
pub(super) fn pre_skip(bytes: &mut Bytes<'_>, entry: Range<u64>) -> io::Result<u32> {
    let inside = boxes(bytes, entry.start + 36..entry.end)?;
    let Some(found) = inside.iter().find(|found| &found.name == b"dOps") else { return Ok(0) };
    Ok(u16::from_be_bytes(bytes.array(found.body.start + 2)?).into())
}

/// Whether an `enda` box within says that the least significant byte comes first.
fn is_little(bytes: &mut Bytes<'_>, range: Range<u64>, depth: u32) -> io::Result<bool> {
    for found in boxes(bytes, range)? {
        match &found.name {
            b"enda" => return Ok(bytes.array::<2>(found.body.start)? == [0, 1]),
            b"wave" if depth == 0 => return is_little(bytes, found.body, 1),
            _ => {}
        }
    }
    Ok(false)
}
