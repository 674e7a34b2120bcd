//! Decoded audio on disk, since its exact length is known only at its end, and an hour of it is 115 MB.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Number of samples per write.
const BUFFER_SAMPLES: usize = 1 << 15;

/// Temporary file of 16-bit samples; it has no name and so ends with the process.
pub(crate) struct Spool {
    file: File,
    buffer: Vec<u8>,
    written: u64,
}

impl Spool {
    /// An empty spool in the temporary directory (`TMPDIR`), which grows by 115 MB per hour of audio.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Spool {
            file: tempfile::tempfile_in(config::temp_dir())?,
            buffer: Vec::with_capacity(BUFFER_SAMPLES * 2),
            written: 0,
        })
    }

    /// Appends samples in -1..1 as 16 bit, rounded to the nearest even (`libswresample/audioconvert.c`).
    pub(crate) fn push(&mut self, samples: &[f32]) -> io::Result<()> {
        for piece in samples.chunks(BUFFER_SAMPLES) {
            self.buffer.clear();
            // The cast saturates, as av_clip_int16 does.
            self.buffer.extend(piece.iter().flat_map(|s| ((s * 32768.0).round_ties_even() as i16).to_le_bytes()));
            self.file.write_all_at(&self.buffer, self.written * 2)?;
            self.written += piece.len() as u64;
        }
        Ok(())
    }

    /// Number of samples so far.
    pub(crate) fn len(&self) -> u64 {
        self.written
    }

    /// The samples `start..start + count` as little-endian bytes.
    pub(crate) fn read(&self, start: u64, count: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count as usize * 2];
        self.file.read_exact_at(&mut bytes, start * 2)?;
        Ok(bytes)
    }

    /// Whether the samples `start..end` are all zero.
    pub(crate) fn is_silent(&self, start: u64, end: u64) -> io::Result<bool> {
        let mut at = start;
        while at < end {
            let count = (end - at).min(BUFFER_SAMPLES as u64);
            if self.read(at, count)?.iter().any(|&b| b != 0) {
                return Ok(false);
            }
            at += count;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_rounded_to_even_and_clipped() {
        let mut spool = Spool::new().unwrap();
        spool.push(&[0.5 / 32768.0, 1.5 / 32768.0, 1.0, -1.5]).unwrap();
        let bytes = spool.read(0, 4).unwrap();
        let samples: Vec<_> = bytes.as_chunks::<2>().0.iter().map(|b| i16::from_le_bytes(*b)).collect();
        assert_eq!(samples, [0, 2, i16::MAX, i16::MIN]);
    }

    #[test]
    fn silence_is_told_apart_within_bounds() {
        let mut spool = Spool::new().unwrap();
        spool.push(&vec![0.0; 100_000]).unwrap();
        spool.push(&[0.5]).unwrap();
        assert_eq!(spool.len(), 100_001);
        assert!(spool.is_silent(0, 100_000).unwrap());
        assert!(!spool.is_silent(0, 100_001).unwrap());
        assert!(spool.read(100_000, 2).is_err());
    }
}
