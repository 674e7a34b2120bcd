//! A product, its bias and an activation in one operation. On a card one pass over the outcome makes all three, so that
//! only what they come to is rounded; the CPU rounds after each, as the reference does. Both are within what MODEL.md 9
//! allows, f32 is the same.

use candle_core::{Result, Tensor};

use super::pointwise::{bias_add, bias_gelu_tanh};

/// Room that a product on a card may use besides its operands and outcome.
pub const WORKSPACE_BYTES: usize = 8 << 20;

/// `x Wᵀ + bias`, of rows x `[n, k]`, W `[m, k]` and bias `[m]`: `[n, m]`.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(y) = on_card(x, weight, bias, super::cublaslt::Kind::Bias(x.dtype()))? {
        return Ok(y);
    }
    let y = x.matmul(&weight.t()?)?;
    bias_add(&y, bias)?;
    Ok(y)
}

/// `gelu_tanh(x Wᵀ + bias)`, of the same.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn linear_gelu_tanh(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(y) = on_card(x, weight, bias, super::cublaslt::Kind::BiasGeluTanh(x.dtype()))? {
        return Ok(y);
    }
    let y = x.matmul(&weight.t()?)?;
    bias_gelu_tanh(&y, bias)?;
    Ok(y)
}

/// None where there is no card, or the library has no way on it.
#[cfg(feature = "cuda")]
fn on_card(x: &Tensor, weight: &Tensor, bias: &Tensor, kind: super::cublaslt::Kind) -> Result<Option<Tensor>> {
    use candle_core::op::BackpropOp;
    use candle_core::{Device, Shape, Storage};

    use super::cublaslt::{Operands, Sizes, matmul};
    use super::cuda;

    let Device::Cuda(device) = x.device() else { return Ok(None) };
    let ((rows, inputs), (outputs, columns)) = (x.dims2()?, weight.dims2()?);
    super::real::expect(bias, outputs, x.dtype(), "a bias")?;
    if inputs != columns || weight.dtype() != x.dtype() {
        candle_core::bail!("rows {x:?} by {weight:?}");
    }
    let shape = Shape::from((rows, outputs));
    let y = cuda::room(device, &shape, x.dtype())?;
    let operands = Operands {
        x: cuda::address(x)?,
        weight: cuda::address(weight)?,
        y: cuda::start(&y)?.address(),
        bias: cuda::address(bias)?,
        ..Operands::default()
    };
    // SAFETY: contiguous operands of one type and of these sizes, on this device; so is the bias.
    let done = unsafe { matmul(device, kind, Sizes { rows, outputs, inputs }, operands) }?;
    Ok(done.then(|| Tensor::from_storage(Storage::Cuda(y), shape, BackpropOp::none(), false)))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Result, Tensor};

    use super::*;

    #[test]
    fn the_bias_comes_before_the_activation() -> Result<()> {
        let row = |values: [f32; 2]| Tensor::new(&[values], &Device::Cpu);
        let (x, weight, bias) = (row([1.0, 2.0])?, row([0.5, -1.0])?, Tensor::new(&[-0.5f32], &Device::Cpu)?);
        assert_eq!(linear(&x, &weight, &bias)?.to_vec2::<f32>()?, [[-2.0]]);
        // gelu_tanh(-2), where the exact one would be -0.045500.
        assert!((linear_gelu_tanh(&x, &weight, &bias)?.to_vec2::<f32>()?[0][0] + 0.045_402_3).abs() < 1e-6);
        Ok(())
    }
}
