//! Frames and sound as the stages take them, from the arrays that the oracle was given.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use common::plan::FRAME_BYTES;
use stage_decode::picture::Picture;
use stage_decode::resize::Resizer;

use super::npy::{self, Values};

/// Frames `[F, H, W, 3]` u8 of any size as rows of 384 x 384 RGB.
///
/// # Errors
/// A file that is not that, with its path.
pub fn frames(path: &Path) -> anyhow::Result<Vec<u8>> {
    let array = npy::read(path)?;
    let Values::U8(values) = array.values else { bail!("{}: frames are u8", path.display()) };
    let [_, height, width, 3] = array.shape[..] else {
        bail!("{}: frames are [F, H, W, 3], these are {:?}", path.display(), array.shape)
    };
    ensure!(height > 0 && width > 0, "{}: the frames are empty: {:?}", path.display(), array.shape);
    let mut resizer = Resizer::default();
    let mut rows = vec![0; array.shape[0] * FRAME_BYTES];
    for (source, row) in values.chunks_exact(height * width * 3).zip(rows.chunks_exact_mut(FRAME_BYTES)) {
        resizer.resize(&Picture::from_rgb(width, height, source), row);
    }
    Ok(rows)
}

/// Sound as 16-bit samples: they may be stored as such, or as fractions of full scale.
///
/// # Errors
/// A file that is not that, or whose fractions are not 16-bit samples, with its path.
pub fn pcm(path: &Path) -> anyhow::Result<Vec<i16>> {
    let array = npy::read(path)?;
    ensure!(array.shape.len() == 1, "{}: sound is [samples], this is {:?}", path.display(), array.shape);
    let samples: Option<Vec<i16>> = match array.values {
        Values::I16(samples) => return Ok(samples),
        Values::F32(values) => values.iter().map(|&x| sample(f64::from(x))).collect(),
        Values::F64(values) => values.iter().map(|&x| sample(x)).collect(),
        Values::U8(_) => bail!("{}: sound is i16 or float, this is u8", path.display()),
    };
    samples.with_context(|| format!("{}: not every sample is a multiple of 1/32768 in [-1, 1)", path.display()))
}

fn sample(fraction: f64) -> Option<i16> {
    let scaled = fraction * 32768.0;
    (scaled.fract() == 0.0 && (-32768.0..32768.0).contains(&scaled)).then_some(scaled as i16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_multiples_of_one_in_32768_below_one_are_samples() {
        assert_eq!([-1.0, 0.0, 0.5, 32767.0 / 32768.0].map(sample), [-32768, 0, 16384, 32767].map(Some));
        assert_eq!([1.0, -1.1, 1e-5, f64::NAN, f64::INFINITY].map(sample), [None; 5]);
    }
}
