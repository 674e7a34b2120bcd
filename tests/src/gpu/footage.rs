//! Frames and audio of a video that needs no decoder: noise, or what a stage-decode delivered elsewhere (`decode.dump`).

use std::path::Path;

use anyhow::ensure;
use compute::random::SplitMix64;
use protocol::plan::{FRAME_BYTES, FRAME_SIDE, WINDOW_SAMPLES};

use crate::parity::inputs::{self, Passes};

/// Number of different frames of noise; they repeat.
const DIFFERENT: usize = 16;

/// Frames, one a second, and audio. What is asked for behind their end begins anew.
pub struct Footage {
    frames: Vec<u8>,
    audio: Vec<i16>,
}

impl Footage {
    /// Noise, always the same.
    pub fn noise() -> Self {
        let mut noise = SplitMix64::new(0);
        // Blocks of one colour, since pictures have areas; noise in every pixel would be uniform grey to the tower.
        let mut frames = vec![0u8; DIFFERENT * FRAME_BYTES];
        for frame in frames.chunks_exact_mut(FRAME_BYTES) {
            let colours: Vec<u8> = (0..24 * 24 * 3).map(|_| noise.next() as u8).collect();
            for (i, pixel) in frame.chunks_exact_mut(3).enumerate() {
                let block = (i / FRAME_SIDE / 16) * 24 + i % FRAME_SIDE / 16;
                pixel.copy_from_slice(&colours[block * 3..block * 3 + 3]);
            }
        }
        let audio = (0..WINDOW_SAMPLES).map(|_| (noise.next() as i16) / 8).collect();
        Footage { frames, audio }
    }

    /// The `frames.npy` and `pcm.npy` of a directory; without the latter there is no audio.
    ///
    /// # Errors
    /// The defect of a file, with its path.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let frames = inputs::frames(&dir.join("frames.npy"), Passes::WidthFirst)?;
        ensure!(!frames.is_empty(), "{}: no frames", dir.display());
        let path = dir.join("pcm.npy");
        let audio = if path.exists() { inputs::pcm(&path)? } else { Vec::new() };
        Ok(Footage { frames, audio })
    }

    /// Number of frames, and of samples, before they repeat.
    pub fn lengths(&self) -> (u64, u64) {
        ((self.frames.len() / FRAME_BYTES) as u64, self.audio.len() as u64)
    }

    /// RGB rows of a frame.
    pub fn frame(&self, index: u64) -> &[u8] {
        let at = index as usize % (self.frames.len() / FRAME_BYTES) * FRAME_BYTES;
        &self.frames[at..at + FRAME_BYTES]
    }

    /// The first `samples` samples of a window of 30 s.
    pub fn window(&self, index: u64, samples: u64) -> &[i16] {
        let at = (index * WINDOW_SAMPLES) as usize % self.audio.len();
        &self.audio[at..at + samples.min(WINDOW_SAMPLES) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(path: &Path, descr: &str, shape: &str, data: &[u8]) {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.bytes());
        bytes.extend(data);
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn arrays_of_a_directory_are_its_frames_and_audio() {
        let dir = tempfile::tempdir().unwrap();
        let shape = format!("(2, {FRAME_SIDE}, {FRAME_SIDE}, 3)");
        let frames: Vec<u8> = (0..2 * FRAME_BYTES).map(|i| (i / FRAME_BYTES) as u8 + 7).collect();
        npy(&dir.path().join("frames.npy"), "|u1", &shape, &frames);
        let silent = Footage::read(dir.path()).unwrap();
        assert_eq!(silent.lengths(), (2, 0));
        assert!(silent.frame(1).iter().all(|&v| v == 8));
        npy(&dir.path().join("pcm.npy"), "<i2", "(3,)", &[1, 0, 2, 0, 3, 0]);
        let loud = Footage::read(dir.path()).unwrap();
        assert_eq!((loud.lengths(), loud.window(0, 3)), ((2, 3), &[1i16, 2, 3][..]));
        assert!(Footage::read(&dir.path().join("none")).is_err());
    }
}
