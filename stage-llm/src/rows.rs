//! Rows of image and audio tokens on their way through a product: in the model's type, or in 8 bits (E4M3), for which
//! each row, and each row of the weights, gets a scale of its own.

use std::ops::Range;

use candle_core::{Result, Tensor};
use common::config::MediaProducts;
use common::kernels::{self, E4m3Rows};

use crate::quantized::Linear;

/// Rows `[n, inputs]`, ready to be multiplied.
pub enum Rows {
    /// In the model's type.
    Dense(Tensor),
    /// In 8 bits.
    E4m3(E4m3Rows),
}

impl Rows {
    /// `x` `[n, inputs]` as `products` takes it.
    ///
    /// # Errors
    /// The device's; in 8 bits, inputs that are no multiple of 16.
    pub fn new(x: &Tensor, products: MediaProducts) -> Result<Self> {
        Ok(match products {
            MediaProducts::Dense => Rows::Dense(x.contiguous()?),
            MediaProducts::Fp8 => Rows::E4m3(E4m3Rows::quantize(x)?),
        })
    }

    /// [`kernels::geglu`] of `gate_up` `[n, 2 inputs]`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn geglu(gate_up: &Tensor, products: MediaProducts) -> Result<Self> {
        Ok(match products {
            MediaProducts::Dense => Rows::Dense(kernels::geglu(gate_up)?),
            MediaProducts::Fp8 => Rows::E4m3(E4m3Rows::geglu(gate_up)?),
        })
    }

    /// Products with some of a layer's outputs, `[n, outputs]` in the type of `like`.
    ///
    /// # Errors
    /// The device's; shapes that do not match.
    pub fn times(&self, layer: &Linear, outputs: Range<usize>, like: &Tensor) -> Result<Tensor> {
        match self {
            Rows::Dense(x) if outputs.len() == layer.dims()?.0 => layer.forward(x),
            Rows::Dense(x) => layer.forward_rows(x, outputs),
            // The weights are quantized for this product only: what that costs is a fraction of a pass of many rows, and
            // it needs no memory that stays.
            Rows::E4m3(x) => x.product(&layer.e4m3(outputs)?, like.dtype()),
        }
    }
}
