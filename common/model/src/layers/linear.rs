//! Linear layers of the encoders, as a checkpoint holds them, and the feed-forward part that two of them make.

use candle_core::{Device, Result, Tensor};

use crate::checkpoint::{CheckpointError, Weights};
use compute::kernels::{self, E4m3Rows, Rows};
use config::MediaProducts;

/// A linear layer, `x W^T + bias`, its weights kept as they are multiplied.
#[derive(Debug)]
pub struct Linear {
    weight: Weight,
    bias: Tensor, // [out]
}

#[derive(Debug)]
enum Weight {
    Dense(Tensor), // [out, in]
    E4m3(E4m3Rows),
}

impl Linear {
    /// `weight` and `bias` of `w`, to be multiplied as `products` says.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn new(
        input: usize,
        output: usize,
        w: &Weights,
        products: MediaProducts,
    ) -> std::result::Result<Self, CheckpointError> {
        Linear::load(&[("weight", output)], w.get("bias", &[output])?, input, w, products)
    }

    /// Projections of the same input on top of each other: matrices and their rows.
    pub(super) fn load(
        parts: &[(&str, usize)],
        bias: Tensor,
        input: usize,
        w: &Weights,
        products: MediaProducts,
    ) -> std::result::Result<Self, CheckpointError> {
        let weight = match products {
            MediaProducts::Dense => Weight::Dense(w.stack(parts, input)?),
            MediaProducts::Fp8 if w.is_survey() => {
                Weight::Dense(w.survey_blocks(parts, input, E4m3Rows::bytes(1, input))?)
            }
            MediaProducts::Fp8 => {
                let rows = E4m3Rows::load(&w.on(Device::Cpu).stack(parts, input)?, w.device());
                Weight::E4m3(rows.map_err(CheckpointError::from_device)?)
            }
        };
        Ok(Linear { weight, bias })
    }

    /// From weights `[out, in]` and a bias `[out]` at hand.
    pub fn dense(weight: Tensor, bias: Tensor) -> Self {
        Linear { weight: Weight::Dense(weight), bias }
    }

    /// What is added to [`matmul`](Self::matmul), `[out]`, by whatever reads it next.
    pub fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// Rows `[n, in]`, made ready as this layer is, to `[n, out]`, without the bias.
    ///
    /// # Errors
    /// The device's; rows made ready for another kind of matmul.
    pub fn matmul(&self, x: &Rows) -> Result<Tensor> {
        match (x, &self.weight) {
            (Rows::Dense(x), Weight::Dense(weight)) => x.matmul(&weight.t()?),
            (Rows::E4m3(x), Weight::E4m3(weight)) => x.matmul(weight, None, self.bias.dtype()),
            _ => Err(other_kind()),
        }
    }

    /// The same with the bias.
    ///
    /// # Errors
    /// As [`matmul`](Self::matmul).
    pub fn forward(&self, x: &Rows) -> Result<Tensor> {
        match (x, &self.weight) {
            (Rows::Dense(x), Weight::Dense(weight)) => kernels::linear(x, weight, &self.bias),
            (Rows::E4m3(x), Weight::E4m3(weight)) => x.matmul(weight, Some(&self.bias), self.bias.dtype()),
            _ => Err(other_kind()),
        }
    }

    /// How its rows are made ready.
    pub(super) fn products(&self) -> MediaProducts {
        match &self.weight {
            Weight::Dense(_) => MediaProducts::Dense,
            Weight::E4m3(_) => MediaProducts::Fp8,
        }
    }
}

/// The two variants of GELU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// By the error function.
    Exact,
    /// By the hyperbolic tangent.
    Tanh,
}

/// Feed-forward part of an encoder's layer: two linear layers with a GELU between them.
#[derive(Debug)]
pub struct FeedForward {
    /// The layer to the wide side.
    pub fc1: Linear,
    /// The layer back.
    pub fc2: Linear,
    /// The activation between them.
    pub gelu: Gelu,
}

impl FeedForward {
    /// `fc1` and `fc2` of `w`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn new(
        width: usize,
        inner: usize,
        gelu: Gelu,
        w: &Weights,
        products: MediaProducts,
    ) -> std::result::Result<Self, CheckpointError> {
        Ok(FeedForward {
            fc1: Linear::new(width, inner, &w.pp("fc1"), products)?,
            fc2: Linear::new(inner, width, &w.pp("fc2"), products)?,
            gelu,
        })
    }

    /// Rows `[n, C]` to the outcome of `fc2`, without its bias.
    ///
    /// # Errors
    /// The device's.
    pub fn forward(&self, x: &Rows) -> Result<Tensor> {
        let FeedForward { fc1: Linear { weight, bias }, fc2, gelu } = self;
        fc2.matmul(&match (x, weight, gelu) {
            (Rows::Dense(x), Weight::Dense(weight), Gelu::Tanh) => {
                Rows::Dense(kernels::linear_gelu_tanh(x, weight, bias)?)
            }
            (Rows::Dense(x), Weight::Dense(weight), Gelu::Exact) => {
                let h = x.matmul(&weight.t()?)?; // [n, inner]
                Rows::Dense(kernels::bias_gelu_erf(&h, bias).map(|()| h)?)
            }
            (Rows::E4m3(x), Weight::E4m3(weight), gelu) => {
                let h = x.product(weight, Some(bias), bias.dtype())?; // [n, inner]
                Rows::E4m3(match gelu {
                    Gelu::Tanh => E4m3Rows::gelu_tanh(h)?,
                    Gelu::Exact => E4m3Rows::gelu_erf(h)?,
                })
            }
            _ => return Err(other_kind()),
        })
    }
}

/// Error where rows are made ready for another kind of weights.
fn other_kind() -> candle_core::Error {
    candle_core::Error::msg("matmul: rows and weights of different kinds. This is a bug.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_feed_forward_part_uses_its_gelu_between_its_products() -> Result<()> {
        let linear = |weight: f32, bias: f32| -> Result<Linear> {
            Ok(Linear::dense(Tensor::new(&[[weight]], &Device::Cpu)?, Tensor::new(&[bias], &Device::Cpu)?))
        };
        // gelu(-1 - 1), times three. The second bias comes later.
        for (gelu, want) in [(Gelu::Tanh, -0.045_402_3), (Gelu::Exact, -0.045_500_3)] {
            let mlp = FeedForward { fc1: linear(1.0, -1.0)?, fc2: linear(3.0, 100.0)?, gelu };
            let y = mlp.forward(&Rows::Dense(Tensor::new(&[[-1f32]], &Device::Cpu)?))?.to_vec2::<f32>()?[0][0];
            assert!((y - 3.0 * want).abs() < 1e-6, "{gelu:?}: {y}");
        }
        Ok(())
    }
}
