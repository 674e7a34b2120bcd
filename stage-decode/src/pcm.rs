//! Uncompressed sound of mp4 and mov files, read where their index says that it lies.
//!
//! GStreamer 1.22 takes the samples of some codes for big-endian ones whatever the file says, knows no `ipcm` and `fpcm`
//! (ISO/IEC 23003-5), and refuses more than some million samples of `lpcm`.

use std::io;

use crate::media_file::MediaFile;

/// Samples of each channel that are read at a time.
pub(crate) const BLOCK: u64 = 1 << 14;

/// Form of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Unsigned integer; zero is in the middle of its range.
    Unsigned,
    /// Signed integer.
    Signed,
    /// IEEE 754.
    Float,
}

/// Encoding of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Encoding {
    form: Form,
    bytes: usize,
    little_endian: bool,
}

impl Encoding {
    /// An encoding; none for one that is not read.
    pub(crate) fn new(form: Form, bits: u32, little_endian: bool) -> Option<Self> {
        let known = match form {
            Form::Unsigned => bits == 8,
            Form::Signed => [8, 16, 24, 32].contains(&bits),
            Form::Float => [32, 64].contains(&bits),
        };
        known.then_some(Encoding { form, bytes: bits as usize / 8, little_endian })
    }

    /// Bytes of a sample of every channel.
    pub(crate) fn frame_bytes(self, channels: u32) -> u64 {
        self.bytes as u64 * u64::from(channels)
    }

    /// The value of a sample, -1 to 1.
    fn value(self, raw: &[u8]) -> f32 {
        // Most significant byte first.
        let mut bytes = [0; 8];
        if self.little_endian {
            raw.iter().rev().zip(&mut bytes).for_each(|(from, to)| *to = *from);
        } else {
            bytes[..raw.len()].copy_from_slice(raw);
        }
        let upper = [bytes[0], bytes[1], bytes[2], bytes[3]];
        match (self.form, self.bytes) {
            (Form::Unsigned, _) => (f32::from(bytes[0]) - 128.0) / 128.0,
            (Form::Signed, _) => i32::from_be_bytes(upper) as f32 / 2_147_483_648.0,
            (Form::Float, 4) => f32::from_be_bytes(upper),
            (Form::Float, _) => f64::from_be_bytes(bytes) as f32,
        }
    }
}

/// Uncompressed sound, and where it lies.
#[derive(Clone, Debug)]
pub(crate) struct Pcm {
    pub(crate) encoding: Encoding,
    pub(crate) channels: u32,
    /// Samples a second of each channel.
    pub(crate) rate: u32,
    /// Position and samples of each channel of the parts, in order.
    pub(crate) chunks: Vec<(u64, u64)>,
}

impl Pcm {
    /// Reads `count` samples of each channel from the `from`-th of a part at `at` on, interleaved; fewer where the file ends.
    pub(crate) fn read(&self, media: &MediaFile, at: u64, from: u64, count: u64, out: &mut Vec<f32>) -> io::Result<()> {
        out.clear();
        let frame = self.encoding.frame_bytes(self.channels) as usize;
        let mut raw = vec![0; frame * count as usize];
        let there = media.read_as_far(&mut raw, at.saturating_add(from.saturating_mul(frame as u64)))?;
        let whole = there - there % frame;
        out.extend(raw[..whole].chunks_exact(self.encoding.bytes).map(|sample| self.encoding.value(sample)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_encoding_has_its_value() {
        let value =
            |form, bits, little_endian, raw: &[u8]| Encoding::new(form, bits, little_endian).unwrap().value(raw);
        assert_eq!(value(Form::Unsigned, 8, false, &[192]), 0.5);
        assert_eq!(value(Form::Signed, 8, true, &[0x40]), 0.5);
        assert_eq!(value(Form::Signed, 16, true, &[0, 0xc0]), -0.5);
        assert_eq!(value(Form::Signed, 24, false, &[0x20, 0, 0]), 0.25);
        assert_eq!(value(Form::Signed, 24, true, &[0, 0, 0x20]), 0.25);
        assert_eq!(value(Form::Signed, 32, true, &[0, 0, 0, 0x80]), -1.0);
        assert_eq!(value(Form::Float, 32, true, &0.3f32.to_le_bytes()), 0.3);
        assert_eq!(value(Form::Float, 64, false, &0.3f64.to_be_bytes()), 0.3);
        assert_eq!([Encoding::new(Form::Signed, 12, true), Encoding::new(Form::Float, 16, true)], [None; 2]);
    }
}
