//! Matmuls with more to them: a bias and an activation, or a matrix that never exists as a whole. On a GPU one pass over
//! the outcome makes matmul, bias and activation, so that only what they come to is rounded; the CPU rounds after each, as
//! the reference does. Both are within what MODEL.md 9 allows, f32 is the same.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::pointwise::{bias_add, bias_gelu_tanh};

/// `x Wᵀ + bias`, of rows x `[n, k]`, W `[m, k]` and bias `[m]`: `[n, m]`.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(y) = on_gpu(x, weight, bias, super::cublaslt::Kind::Bias(x.dtype()))? {
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
    if let Some(y) = on_gpu(x, weight, bias, super::cublaslt::Kind::BiasGeluTanh(x.dtype()))? {
        return Ok(y);
    }
    let y = x.matmul(&weight.t()?)?;
    bias_gelu_tanh(&y, bias)?;
    Ok(y)
}

/// Rows of a stretch come in multiples of so many: outcomes of 16 bits begin on 256 bytes.
const STRETCH_ROWS: usize = 128;

/// `x Wᵀ`, of rows x `[n, k]` and a matrix W `[m, k]` that exists only in part: `stretch(a..b)` makes its rows a to b, of
/// which there are at most about `most` at a time. `[n, m]`.
///
/// # Errors
/// Shapes and types that do not fit; `stretch`'s; the device's.
pub fn linear_in_stretches(
    x: &Tensor,
    outputs: usize,
    most: usize,
    mut stretch: impl FnMut(Range<usize>) -> Result<Tensor>,
) -> Result<Tensor> {
    let step = outputs.div_ceil(outputs.div_ceil(most.max(1))).next_multiple_of(STRETCH_ROWS);
    if step >= outputs {
        return x.matmul(&stretch(0..outputs)?.t()?);
    }
    let stretches = (0..outputs).step_by(step).map(|start| start..outputs.min(start + step));
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return into_columns(x, outputs, stretches, stretch);
    }
    let parts = stretches.map(|range| x.matmul(&stretch(range)?.t()?)).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&parts, 1)
}

/// Each stretch's outcome goes where it belongs: nothing is put together afterwards.
#[cfg(feature = "cuda")]
fn into_columns(
    x: &Tensor,
    outputs: usize,
    stretches: impl Iterator<Item = Range<usize>>,
    mut stretch: impl FnMut(Range<usize>) -> Result<Tensor>,
) -> Result<Tensor> {
    use candle_core::op::BackpropOp;
    use candle_core::{Device, Shape, Storage};

    use super::cublaslt::{Kind, Operands, Sizes, matmul};
    use super::cuda;

    let Device::Cuda(device) = x.device() else { candle_core::bail!("rows {x:?} on a GPU") };
    let (rows, inputs) = x.dims2()?;
    let shape = Shape::from((rows, outputs));
    let y = cuda::allocate(device, &shape, x.dtype())?;
    let start = cuda::start(&y)?.address();
    for range in stretches {
        let weight = stretch(range.clone())?;
        if weight.dims() != [range.len(), inputs] || weight.dtype() != x.dtype() {
            candle_core::bail!("rows {x:?} by {weight:?}");
        }
        let operands = Operands {
            x: cuda::address(x)?,
            weight: cuda::address(&weight)?,
            y: start + (range.start * x.dtype().size_in_bytes()) as u64,
            ..Operands::default()
        };
        let sizes = Sizes { rows, outputs: range.len(), inputs, stride: outputs };
        // SAFETY: contiguous operands of one type and of these sizes, on this device, and the columns lie within y.
        if !unsafe { matmul(device, Kind::Plain(x.dtype()), sizes, operands) }? {
            candle_core::bail!("matmul: no algorithm on this GPU for {:?} {sizes:?}", x.dtype());
        }
    }
    Ok(Tensor::from_storage(Storage::Cuda(y), shape, BackpropOp::none(), false))
}

/// The outcome on a GPU; none where there is no GPU, or the library has no algorithm on it.
#[cfg(feature = "cuda")]
fn on_gpu(x: &Tensor, weight: &Tensor, bias: &Tensor, kind: super::cublaslt::Kind) -> Result<Option<Tensor>> {
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
    let y = cuda::allocate(device, &shape, x.dtype())?;
    let operands = Operands {
        x: cuda::address(x)?,
        weight: cuda::address(weight)?,
        y: cuda::start(&y)?.address(),
        bias: cuda::address(bias)?,
        ..Operands::default()
    };
    // SAFETY: contiguous operands of one type and of these sizes, on this device; so is the bias.
    let done = unsafe { matmul(device, kind, Sizes::new(rows, outputs, inputs), operands) }?;
    Ok(done.then(|| Tensor::from_storage(Storage::Cuda(y), shape, BackpropOp::none(), false)))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Result, Tensor};

    use super::*;

    #[test]
    fn stretches_come_to_the_whole_matmul() -> Result<()> {
        let draws = crate::random::Draws::default();
        let (x, weight) = (draws.normal(&[3, 32])?, draws.normal(&[500, 32])?);
        let want = x.matmul(&weight.t()?)?;
        for (most, stretches) in [(1, 4), (128, 4), (250, 2), (499, 2), (500, 1), (9_999, 1)] {
            let mut ranges = Vec::new();
            let got = linear_in_stretches(&x, 500, most, |range| {
                ranges.push(range.clone());
                weight.narrow(0, range.start, range.len())
            })?;
            assert_eq!((ranges.len(), ranges.last().map(|r| r.end)), (stretches, Some(500)), "{most}: {ranges:?}");
            // A machine may sum in another order at a matrix's edge.
            assert!((got - &want)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5, "{most}");
        }
        Ok(())
    }

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
