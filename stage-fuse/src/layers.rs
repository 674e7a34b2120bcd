//! Layers that all adapters are made of.

use candle_core::{Result, Tensor};
use compute::kernels;
use model::checkpoint::{CheckpointError, Weights};

/// Epsilon of every norm of the adapters (MODEL.md 4 to 6).
const RMS_EPS: f32 = 1e-5;
/// Rows that a matmul has at least. The CPU's kernels sum fewer rows in another order; with these, the bits of a
/// row's token do not depend on how the rows were cut into batches.
const LEAST_ROWS: usize = 16;

/// `x W^T + b`.
pub(crate) struct AdapterLinear {
    weight: Tensor, // [out, in], or a convolution's [out, in, kernel]
    bias: Option<Tensor>,
}

impl AdapterLinear {
    pub(crate) fn new(input: usize, output: usize, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        Ok(AdapterLinear { weight: w.get("weight", &[output, input])?, bias: Some(w.get("bias", &[output])?) })
    }

    /// The weight of a convolution whose stride is its kernel: it takes `input * kernel` values a row, channel by
    /// channel.
    pub(crate) fn convolution(
        input: usize,
        output: usize,
        kernel: usize,
        w: &Weights,
    ) -> std::result::Result<Self, CheckpointError> {
        Ok(AdapterLinear { weight: w.get("weight", &[output, input, kernel])?, bias: None })
    }

    /// `[n, in]` to `[n, out]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let x = x.pad_with_zeros(0, 0, LEAST_ROWS.saturating_sub(rows))?;
        let y = x.matmul(&self.weight.flatten_from(1)?.t()?)?.narrow(0, 0, rows)?;
        if let Some(bias) = &self.bias {
            kernels::bias_add(&y, bias)?;
        }
        Ok(y)
    }

    /// [`forward`](Self::forward), and the exact GELU of it.
    pub(crate) fn forward_gelu(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.forward(x)?;
        kernels::gelu_erf(&y)?;
        Ok(y)
    }
}

/// `x / sqrt(mean(x^2) + eps)` over the last axis, f32 inside, rounded to `x`'s type.
pub(crate) fn rms(x: &Tensor) -> Result<Tensor> {
    kernels::rms(x, None, RMS_EPS)
}

/// `weight * rms(x)`: the plain weight, multiplied in the model's type after rounding.
pub(crate) struct RmsNorm {
    weight: Tensor,
}

impl RmsNorm {
    pub(crate) fn new(width: usize, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        Ok(RmsNorm { weight: w.get("weight", &[width])? })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::rms(x, Some(&self.weight), RMS_EPS)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn rms_divides_by_the_root_mean_square_with_its_epsilon_inside() -> Result<()> {
        let x = Tensor::new(&[[3f32, -4.0], [0.003, 0.004]], &Device::Cpu)?;
        let y = rms(&x)?.to_vec2::<f32>()?;
        let by = |mean: f64| (mean + 1e-5).sqrt();
        let expected = [[3.0 / by(12.5), -4.0 / by(12.5)], [0.003 / by(1.25e-5), 0.004 / by(1.25e-5)]];
        for (got, want) in y.iter().flatten().zip(expected.iter().flatten()) {
            assert!((f64::from(*got) / want - 1.0).abs() < 1e-6, "{got} {want}");
        }
        Ok(())
    }

    #[test]
    fn the_norms_weight_is_plain_and_not_one_plus_it() -> Result<()> {
        let norm = RmsNorm { weight: Tensor::new(&[0f32, 2.0], &Device::Cpu)? };
        let y = norm.forward(&Tensor::new(&[[1f32, 1.0]], &Device::Cpu)?)?.to_vec2::<f32>()?;
        assert!(y[0][0] == 0.0 && (y[0][1] - 2.0).abs() < 1e-4);
        Ok(())
    }

    #[test]
    fn gelu_is_the_exact_one() -> Result<()> {
        let one = AdapterLinear { weight: Tensor::new(&[[1f32]], &Device::Cpu)?, bias: None };
        let y = one.forward_gelu(&Tensor::new(&[[1f32], [-2.0]], &Device::Cpu)?)?.flatten_all()?.to_vec1::<f32>()?;
        // x * Phi(x); the tanh approximation gives 0.841192 and -0.045402.
        assert!((y[0] - 0.841_344_7).abs() < 1e-6 && (y[1] + 0.045_500_264).abs() < 1e-6, "{y:?}");
        Ok(())
    }

    #[test]
    fn a_row_multiplies_the_same_alone_and_among_many() -> Result<()> {
        let draws = compute::random::Draws::default();
        let linear = AdapterLinear { weight: draws.normal((64, 96))?, bias: Some(draws.normal(64)?) };
        let x = draws.normal((50, 96))?;
        let whole = linear.forward(&x)?.to_vec2::<f32>()?;
        for (start, len) in [(0, 1), (7, 2), (13, 5), (20, 30)] {
            let part = linear.forward(&x.narrow(0, start, len)?)?.to_vec2::<f32>()?;
            assert_eq!(part, whole[start..start + len], "rows {start} and {len} more");
        }
        Ok(())
    }
}
