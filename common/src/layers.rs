//! The two layers that both encoders are made of, as a checkpoint holds them.

use candle_core::{Result, Tensor};

use crate::checkpoint::{CheckpointError, Weights};
use crate::kernels;

/// `x W^T`; the bias is added by what reads the product next, in the same pass.
#[derive(Debug)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Tensor,
    /// `[out]`
    pub bias: Tensor,
}

impl Linear {
    /// `weight` and `bias` of `w`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn new(input: usize, output: usize, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        Ok(Linear { weight: w.get("weight", &[output, input])?, bias: w.get("bias", &[output])? })
    }

    /// Rows `[n, in]` to `[n, out]`, without the bias.
    ///
    /// # Errors
    /// The device's.
    pub fn product(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight.t()?)
    }
}

/// The parameters of a layer norm; [`kernel`](Self::kernel) applies them.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor, // [C]
    bias: Tensor,   // [C]
    eps: f32,
}

impl LayerNorm {
    /// `weight` and `bias` of `w`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn new(width: usize, eps: f64, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        Ok(LayerNorm { weight: w.get("weight", &[width])?, bias: w.get("bias", &[width])?, eps: eps as f32 })
    }

    /// The kernel with these parameters.
    pub fn kernel(&self) -> kernels::LayerNorm<'_> {
        kernels::LayerNorm { weight: &self.weight, bias: &self.bias, eps: self.eps }
    }
}
