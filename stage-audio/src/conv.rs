//! The convolutions before the encoder's layers (MODEL.md 5).

use candle_core::{D, Result, Tensor};
use compute::kernels;
use model::checkpoint::{CheckpointError, Weights};

/// Taps of both convolutions.
const KERNEL: usize = 3;

/// A convolution of three taps, padded by one on each side, and its GELU: a matmul over three neighbouring rows.
pub struct Conv1d {
    weight: Tensor, // [C, 3 * in], tap by tap
    bias: Tensor,   // [C]
}

impl Conv1d {
    /// Convolution with weights `[C, in, 3]` and biases `[C]`.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn new(weight: &Tensor, bias: Tensor) -> Result<Self> {
        Ok(Conv1d { weight: weight.transpose(1, 2)?.contiguous()?.flatten_from(1)?, bias })
    }

    /// The one of a checkpoint.
    ///
    /// # Errors
    /// What the checkpoint lacks.
    pub fn load(input: usize, output: usize, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        let (weight, bias) = (w.get("weight", &[output, input, KERNEL])?, w.get("bias", &[output])?);
        Conv1d::new(&weight, bias).map_err(CheckpointError::from_device)
    }

    /// Rows `[W, n, in]` to `[W, n, C]`.
    ///
    /// # Errors
    /// Errors of candle, when there is no memory.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let n = x.dim(1)?;
        let before = x.narrow(1, 0, n - 1)?.pad_with_zeros(1, 1, 0)?;
        let after = x.narrow(1, 1, n - 1)?.pad_with_zeros(1, 0, 1)?;
        self.apply(&Tensor::cat(&[&before, x, &after], D::Minus1)?)
    }

    /// Rows `[W, n, in]` to `[W, n / 2, C]`: every second one, and its neighbours.
    ///
    /// # Errors
    /// Errors of candle, when there is no memory.
    pub fn halve(&self, x: &Tensor) -> Result<Tensor> {
        let (windows, n, width) = x.dims3()?;
        let pairs = x.reshape((windows, n / 2, 2 * width))?; // rows 2t and 2t + 1
        let before = pairs.narrow(2, width, width)?.narrow(1, 0, n / 2 - 1)?.pad_with_zeros(1, 1, 0)?; // 2t - 1
        self.apply(&Tensor::cat(&[&before, &pairs], D::Minus1)?)
    }

    fn apply(&self, taps: &Tensor) -> Result<Tensor> {
        let (windows, n, width) = taps.dims3()?;
        let y = taps.reshape((windows * n, width))?.matmul(&self.weight.t()?)?; // [W*n, C]
        kernels::bias_gelu_erf(&y, &self.bias)?;
        y.reshape((windows, n, ()))
    }
}
