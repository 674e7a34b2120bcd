//! Fractional position embeddings: a sinusoid stretched over the whole, through a small MLP (MODEL.md 6).

use candle_core::{DType, Device, Result, Tensor, bail};
use common::checkpoint::{CheckpointError, Weights};

use crate::layers::{Linear, gelu, rms};

/// Rows `first..first + count` of the sinusoid for `length` places stretched to `0..=n-1`: `[count, width]` f32.
///
/// Every step is rounded to f32 in the order of MODEL.md 6: places reach 9999, where a bit more or less in a product
/// is 1e-3 rad.
///
/// # Errors
/// When `length` is under 2, where a fraction of the whole has no meaning, or the device has no room.
pub fn sinusoid(first: u64, count: usize, length: u64, n: u32, width: usize, device: &Device) -> Result<Tensor> {
    if length < 2 {
        bail!("a fractional position needs at least 2 places, there is {length}");
    }
    let step = -(10_000f64.ln() / width as f64) as f32;
    let frequencies: Vec<f32> = (0..width / 2).map(|j| f64::from((2 * j) as f32 * step).exp() as f32).collect();
    let (last, stretch) = ((length - 1) as f32, (n as f32) - 1.0);
    let mut rows = Vec::with_capacity(count * width);
    for i in first..first + count as u64 {
        let place = i as f32 / last * stretch;
        for frequency in &frequencies {
            let (sin, cos) = (place * frequency).sin_cos();
            rows.extend([sin, cos]);
        }
    }
    Tensor::from_vec(rows, (count, width), device)
}

/// One of `mm_rand_pos_h`, `mm_rand_pos_w`, `mm_rand_pos_t`: kept in f32 whatever the model's type.
pub struct PositionEmbedding {
    mlp: [Linear; 2],
    n: u32,
    width: usize,
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
            mlp: [Linear::new(width, width, &w.pp(0))?, Linear::new(width, width, &w.pp(2))?],
            n,
            width,
            dtype: weights.dtype(),
            device: weights.device().clone(),
        })
    }

    /// Embeddings of places `first..first + count` of `length`: `[count, width]`, the model's type.
    ///
    /// # Errors
    /// As [`sinusoid`].
    pub fn rows(&self, first: u64, count: usize, length: u64) -> Result<Tensor> {
        let x = sinusoid(first, count, length, self.n, self.width, &self.device)?; // [count, D]
        let x = self.mlp[1].forward(&gelu(&self.mlp[0].forward(&x)?)?)?;
        rms(&x.to_dtype(self.dtype)?)
    }
}
