//! Rows on their way into a matmul: in the model's type, or in 8 bits.

use candle_core::{Result, Tensor};

use super::e4m3::E4m3Rows;
use config::MediaProducts;

/// Rows `[n, k]`, ready to be multiplied.
#[derive(Clone, Debug)]
pub enum Rows {
    /// In the model's type.
    Dense(Tensor),
    /// In 8 bits, with a scale each.
    E4m3(E4m3Rows),
}

impl Rows {
    /// `x` `[n, k]` as `products` takes it.
    ///
    /// # Errors
    /// The device's; in 8 bits, columns that are no multiple of 16.
    pub fn new(x: &Tensor, products: MediaProducts) -> Result<Self> {
        Ok(match products {
            MediaProducts::Dense => Rows::Dense(x.contiguous()?),
            MediaProducts::Fp8 => Rows::E4m3(E4m3Rows::quantize(x)?),
        })
    }

    /// Rows in the model's type.
    ///
    /// # Panics
    /// Rows in 8 bits.
    pub fn dense(self) -> Tensor {
        match self {
            Rows::Dense(x) => x,
            Rows::E4m3(_) => panic!("rows in 8 bits where the model's type was asked for. This is a bug."),
        }
    }
}
