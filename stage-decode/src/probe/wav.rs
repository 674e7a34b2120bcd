//! The last block of ADPCM in a WAV file that is cut short (Microsoft, New Multimedia Data Types and Data Techniques, rev. 3.0).
//!
//! GStreamer's decoder takes whole blocks only. ffmpeg decodes the samples that are there of one that is cut (`libavcodec/adpcm.c`,
//! `get_nb_samples`); so it is filled up with zeros, and what they give is left out.

use std::io;

use super::bytes::Bytes;
use crate::pipeline::Overlay;

/// Bytes of the header of a file, and of a chunk.
const FILE_HEADER: u64 = 12;
const CHUNK_HEADER: u64 = 8;
/// Kinds of ADPCM: Microsoft's, and IMA's.
const MICROSOFT: u16 = 2;
const IMA: u16 = 0x11;

/// Block that is cut.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CutBlock {
    /// What the demuxer is to see of it behind the end of the file.
    pub(super) rest: Overlay,
    /// Samples of each channel that the file has, to its end, and how many there are a second.
    pub(super) samples: u64,
    pub(super) rate: u32,
}

/// Layout of ADPCM.
struct Layout {
    kind: u16,
    channels: u64,
    rate: u32,
    block: u64,
}

impl Layout {
    fn read(bytes: &mut Bytes<'_>, at: u64) -> io::Result<Layout> {
        let [k0, k1, c0, c1, r0, r1, r2, r3, _, _, _, _, b0, b1] = bytes.array(at)?;
        let number = |low, high| u16::from_le_bytes([low, high]);
        let (channels, block) = (number(c0, c1).into(), number(b0, b1).into());
        Ok(Layout { kind: number(k0, k1), channels, rate: u32::from_le_bytes([r0, r1, r2, r3]), block })
    }

    /// Samples of each channel in so many bytes of a block; none of another kind.
    fn samples(&self, there: u64) -> Option<u64> {
        let channels = Some(self.channels).filter(|channels| (1..=2).contains(channels))?;
        match self.kind {
            // The header of a channel holds two samples in 7 bytes; behind it each has half a byte.
            MICROSOFT => Some(there.checked_sub(6 * channels)? * 2 / channels),
            // One in 4 bytes, and behind it eight in 4 bytes of each channel in turn.
            IMA => Some(there.checked_sub(4 * channels)? / (4 * channels) * 8 + 1),
            _ => None,
        }
    }
}

/// The last block of a file, if it is cut; none for another format.
///
/// # Errors
/// That of a read, and too many chunks.
pub(super) fn cut_block(bytes: &mut Bytes<'_>) -> io::Result<Option<CutBlock>> {
    if bytes.size() < FILE_HEADER || &bytes.array::<4>(0)? != b"RIFF" || &bytes.array::<4>(8)? != b"WAVE" {
        return Ok(None);
    }
    let (mut at, mut layout) = (FILE_HEADER, None);
    while at + CHUNK_HEADER <= bytes.size() {
        bytes.spend(1)?;
        let size = u64::from(u32::from_le_bytes(bytes.array(at + 4)?));
        let start = at + CHUNK_HEADER;
        match &bytes.array::<4>(at)? {
            b"fmt " if start + 14 <= bytes.size() => layout = Some(Layout::read(bytes, start)?),
            b"data" => {
                let there = bytes.size() - start;
                let Some(layout) = layout.filter(|layout| layout.block > 0 && size > there) else { return Ok(None) };
                let (blocks, part) = (there / layout.block, there % layout.block);
                let of_block = layout.samples(layout.block);
                let samples = of_block.zip(layout.samples(part)).map(|(block, part)| blocks * block + part);
                let rest = Overlay { at: bytes.size(), bytes: vec![0; (layout.block - part) as usize] };
                return Ok(samples.map(|samples| CutBlock { rest, samples, rate: layout.rate }));
            }
            _ => {}
        }
        at = start.saturating_add(size).saturating_add(size % 2);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::media_file::MediaFile;

    fn cut(kind: u16, channels: u8, told: u32, there: usize) -> Option<(u64, u64, usize)> {
        let form = [&kind.to_le_bytes()[..], &[channels, 0], &8_000u32.to_le_bytes(), &[0; 4], &[64, 0, 4, 0]].concat();
        let start = [&b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0"[..], &form, b"data", &told.to_le_bytes()].concat();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[start, vec![7; there]].concat()).unwrap();
        let media = MediaFile::new("cut.wav".into(), file).unwrap();
        let block = cut_block(&mut Bytes::new(&media, &|| false).unwrap()).unwrap()?;
        assert_eq!(block.rate, 8_000);
        Some((block.samples, block.rest.at - 44, block.rest.bytes.len()))
    }

    #[test]
    fn a_block_that_is_cut_has_the_samples_that_are_there_and_is_filled_up() {
        // 64 bytes are (64 - 12) samples in two channels.
        assert_eq!(cut(MICROSOFT, 2, 640, 64 + 20), Some((52 + 8, 84, 44)));
        assert_eq!(cut(MICROSOFT, 1, 640, 64 + 20), Some((116 + 28, 84, 44)));
        assert_eq!(cut(IMA, 2, 640, 128 + 23), Some((2 * 57 + 9, 151, 41)));
        assert_eq!(cut(MICROSOFT, 2, 640, 64 + 11), None, "its header is cut");
        assert_eq!([cut(MICROSOFT, 2, 84, 84), cut(1, 2, 640, 84), cut(MICROSOFT, 0, 640, 84)], [None; 3]);
    }
}
