//! Frames and audio as the stages take them, from the arrays that the oracle was given.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use protocol::plan::{FRAME_BYTES, FRAME_SIDE};
use stage_decode::picture::Picture;
use stage_decode::resize::Resizer;

use super::npy::{self, Values};

/// Order in which Pillow scales the axes of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passes {
    /// Width, then height, as in MODEL.md 2.2, in the stages, and in Pillow before release 13.
    WidthFirst,
    /// As Pillow 13: height first if it shrinks by over twice as many pixels as the width (`ImagingResampleInner`).
    Pillow13,
}

impl Passes {
    /// Whether a picture of this size is scaled height first.
    fn height_first(self, width: usize, height: usize) -> bool {
        let shrunk = |n: usize| n as i64 - FRAME_SIDE as i64;
        self == Passes::Pillow13 && shrunk(height) > (2 * shrunk(width)).max(0)
    }
}

/// Rows of 384 x 384 RGB from a file of frames `[F, H, W, 3]` u8 of any size.
///
/// # Errors
/// If the file is something else, with its path.
pub fn frames(path: &Path, passes: Passes) -> anyhow::Result<Vec<u8>> {
    let array = npy::read(path)?;
    let Values::U8(values) = array.values else { bail!("{}: frames must be u8", path.display()) };
    let [_, height, width, 3] = array.shape[..] else {
        bail!("{}: frames must be [F, H, W, 3], but are {:?}", path.display(), array.shape)
    };
    ensure!(height > 0 && width > 0, "{}: the frames are empty: {:?}", path.display(), array.shape);
    let mut resizer = Resizer::default();
    let mut rows = vec![0; array.shape[0] * FRAME_BYTES];
    for (source, row) in values.chunks_exact(height * width * 3).zip(rows.chunks_exact_mut(FRAME_BYTES)) {
        if passes.height_first(width, height) {
            // Width first of the picture with its axes swapped.
            resizer.resize(&Picture::from_rgb(height, width, &swapped(source, width)), row);
            let upright = swapped(row, FRAME_SIDE);
            row.copy_from_slice(&upright);
        } else {
            resizer.resize(&Picture::from_rgb(width, height, source), row);
        }
    }
    Ok(rows)
}

/// RGB rows of the picture with its axes swapped.
fn swapped(rgb: &[u8], width: usize) -> Vec<u8> {
    let height = rgb.len() / 3 / width;
    let pixel = |x: usize, y: usize| &rgb[(y * width + x) * 3..][..3];
    (0..width).flat_map(|x| (0..height).flat_map(move |y| pixel(x, y))).copied().collect()
}

/// Samples of 16 bit from a file that holds them as such or as fractions of full scale.
///
/// # Errors
/// If the file is something else, or its fractions are not 16-bit samples, with its path.
pub fn pcm(path: &Path) -> anyhow::Result<Vec<i16>> {
    let array = npy::read(path)?;
    ensure!(array.shape.len() == 1, "{}: audio must be [samples], but is {:?}", path.display(), array.shape);
    let samples: Option<Vec<i16>> = match array.values {
        Values::I16(samples) => return Ok(samples),
        Values::F32(values) => values.iter().map(|&x| sample(f64::from(x))).collect(),
        Values::F64(values) => values.iter().map(|&x| sample(x)).collect(),
        Values::U8(_) => bail!("{}: audio must be i16 or float, but is u8", path.display()),
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
    fn pillow_13_scales_the_height_first_where_it_shrinks_by_over_twice_as_many_pixels() {
        // Found with Pillow 13.0.0, picture by picture.
        let first = [(720, 1280), (1080, 1920), (480, 640), (383, 385), (300, 500)];
        let second = [(500, 501), (1000, 1160), (577, 769), (978, 1495), (320, 180), (1280, 720)];
        assert!(first.iter().all(|&(w, h)| Passes::Pillow13.height_first(w, h)));
        assert!(!second.iter().any(|&(w, h)| Passes::Pillow13.height_first(w, h)));
        assert!(!first.iter().any(|&(w, h)| Passes::WidthFirst.height_first(w, h)));
    }

    #[test]
    fn swapping_the_axes_twice_changes_nothing_and_once_turns_rows_into_columns() {
        let rgb: Vec<u8> = (0..18).collect();
        assert_eq!(swapped(&rgb, 2)[..9], [0, 1, 2, 6, 7, 8, 12, 13, 14]);
        assert_eq!(swapped(&swapped(&rgb, 2), 3), rgb);
    }

    #[test]
    fn only_multiples_of_one_in_32768_below_one_are_samples() {
        assert_eq!([-1.0, 0.0, 0.5, 32767.0 / 32768.0].map(sample), [-32768, 0, 16384, 32767].map(Some));
        assert_eq!([1.0, -1.1, 1e-5, f64::NAN, f64::INFINITY].map(sample), [None; 5]);
    }
}
