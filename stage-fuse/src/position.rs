//! Fractional position embeddings: a sinusoid stretched over the whole, through a small MLP (MODEL.md 6).

use candle_core::{DType, Device, Result, Tensor, bail};
use model::checkpoint::{CheckpointError, Weights};

use crate::frequency::frequencies;
use crate::layers::{AdapterLinear, rms};

/// Rows `first..first + count` of the sinusoid of these frequencies for `length` places stretched to `0..=n-1`:
/// `[count, 2 * frequencies]` f32.
///
/// Every step is rounded to f32 in the order of MODEL.md 6: places reach 9999, where a bit more or less in a product
/// is 1e-3 rad.
///
/// # Errors
/// When `length` is under 2, where a fraction of the whole has no meaning, or the device has no memory.
pub fn sinusoid(first: u64, count: usize, length: u64, n: u32, frequencies: &[f32], device: &Device) -> Result<Tensor> {
    if length < 2 {
        bail!("a fractional position needs at least 2 places, there is {length}");
    }
    let width = 2 * frequencies.len();
    let (last, stretch) = ((length - 1) as f32, (n as f32) - 1.0);
    let mut rows = Vec::with_capacity(count * width);
    for i in first..first + count as u64 {
        let place = i as f32 / last * stretch;
        for frequency in frequencies {
            let (sin, cos) = (place * frequency).sin_cos();
            rows.extend([sin, cos]);
        }
    }
    Tensor::from_vec(rows, (count, width), device)
}

/// One of `mm_rand_pos_h`, `mm_rand_pos_w`, `mm_rand_pos_t`: kept in f32 whatever the model's type.
pub struct PositionEmbedding {
    mlp: [AdapterLinear; 2],
    n: u32,
    frequencies: Vec<f32>,
    dtype: DType,
    device: Device,
}

impl PositionEmbedding {
    /// Loads `mlp.0` and `mlp.2` of width `width` for places stretched to `0..=n-1`.
    ///
    /// # Errors
    /// The tensor that is missing or misshapen.
    pub fn new(width: usize, n: u32, weights: &Weights) -> std::result::Result<Self, CheckpointError> {
        let w = weights.in_dtype(DType::F32).pp("mlp");
        Ok(PositionEmbedding {
            mlp: [AdapterLinear::new(width, width, &w.pp(0))?, AdapterLinear::new(width, width, &w.pp(2))?],
            n,
            frequencies: frequencies(width),
            dtype: weights.dtype(),
            device: weights.device().clone(),
        })
    }

    /// Takes other frequencies than [`frequencies`], to stand beside a reference whose `exp` has rounded otherwise.
    pub fn set_frequencies(&mut self, frequencies: Vec<f32>) {
        self.frequencies = frequencies;
    }

    /// Embeddings of places `first..first + count` of `length`: `[count, width]`, the model's type.
    ///
    /// # Errors
    /// As [`sinusoid`].
    pub fn rows(&self, first: u64, count: usize, length: u64) -> Result<Tensor> {
        let x = sinusoid(first, count, length, self.n, &self.frequencies, &self.device)?; // [count, D]
        let x = self.mlp[1].forward(&self.mlp[0].forward_gelu(&x)?)?;
        rms(&x.to_dtype(self.dtype)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(first: u64, count: usize, length: u64, n: u32, width: usize) -> Vec<Vec<f32>> {
        sinusoid(first, count, length, n, &frequencies(width), &Device::Cpu).unwrap().to_vec2().unwrap()
    }

    #[test]
    fn places_stretch_over_the_whole_and_sines_alternate_with_cosines() {
        let x = rows(0, 3, 3, 2, 4);
        // Places 0, 1/2 and 1; frequencies 1 and 1/100.
        for (row, place) in x.iter().zip([0.0f64, 0.5, 1.0]) {
            let want = [place.sin(), place.cos(), (place / 100.0).sin(), (place / 100.0).cos()];
            for (got, want) in row.iter().zip(want) {
                assert!((f64::from(*got) - want).abs() < 1e-7, "{row:?} {want}");
            }
        }
        // Time goes to 9999, whatever the length.
        assert!((f64::from(rows(0, 7, 7, 10_000, 4)[6][0]) - 9999f64.sin()).abs() < 1e-6);
    }

    #[test]
    fn places_and_angles_are_rounded_to_single_precision_at_every_step() {
        let x = rows(0, 307, 307, 10_000, 3584);
        for (i, j) in [(100u16, 1u16), (211, 40), (305, 7)] {
            let place = (f32::from(i) / 306.0f32) * 9999.0f32;
            let frequency = frequencies(3584)[usize::from(j)];
            let got = x[usize::from(i)][2 * usize::from(j)];
            assert!((got - (place * frequency).sin()).abs() < 1e-6, "{i} {j}");
            // In double precision all the way the angle is another: the test can tell the two apart.
            let exact = f64::from(i) / 306.0 * 9999.0 * (-10_000f64.ln() / 3584.0 * 2.0 * f64::from(j)).exp();
            assert!((f64::from(got) - exact.sin()).abs() > 1e-6, "{i} {j}");
        }
    }

    #[test]
    fn a_part_of_the_rows_is_that_part_of_the_whole() {
        let whole = rows(0, 50, 50, 10_000, 64);
        assert_eq!(rows(13, 9, 50, 10_000, 64), whole[13..22]);
    }

    #[test]
    fn a_single_place_has_no_fractional_position() {
        assert!(sinusoid(0, 1, 1, 2, &frequencies(4), &Device::Cpu).is_err());
    }
}
