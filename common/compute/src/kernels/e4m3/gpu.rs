//! E4M3 rows in a GPU's memory: the shape of kernels over them, and their matmul.

use candle_core::op::BackpropOp;
use candle_core::{DType, Device, Result, Shape, Storage, Tensor};

use super::code::ALIGNMENT;
use crate::kernels::cublaslt::{Kind, Operands, Sizes, matmul};
use crate::kernels::cuda;

/// The kernels of `e4m3.cu`.
pub static E4M3: cuda::Kernels = cuda::Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/e4m3.fatbin")));

/// Packs of eight values that a thread holds, as in e4m3.cu.
const HELD: usize = 4;
/// Threads of a block at most, as there.
const MOST: usize = 512;

/// Threads that make a row.
///
/// # Errors
/// A row that is too long.
pub fn threads(columns: usize) -> Result<usize> {
    let packs = columns / 8;
    if packs > MOST * HELD {
        candle_core::bail!("E4M3 rows have at most {} columns, not {columns}", 8 * MOST * HELD);
    }
    // As many packs a thread as it holds: a block waits for memory once, and few threads wait for each other.
    Ok(packs.div_ceil(HELD).next_multiple_of(32).min(MOST))
}

/// E4M3 rows in a GPU's memory: numbers and then scales, as [`row_bytes`](super::code::row_bytes) counts them.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// All of it.
    pub numbers: &'a Tensor,
    /// How many rows.
    pub rows: usize,
    /// Numbers of a row.
    pub columns: usize,
}

impl Stored<'_> {
    /// Where its scales begin.
    ///
    /// # Errors
    /// Rows that are not on a GPU.
    pub fn scales(self) -> Result<u64> {
        Ok(cuda::address(self.numbers)? + (self.rows * self.columns) as u64)
    }
}

/// `x Wᵀ + bias` in bf16, and whether scales and bias are in it: all of it, or none. `by_library`: they are given to the library
/// where it takes them.
///
/// # Errors
/// Another type; a GPU that does not multiply E4M3; the device's.
pub fn matmul_rows(
    x: Stored,
    weight: Stored,
    bias: Option<&Tensor>,
    dtype: DType,
    by_library: bool,
) -> Result<(Tensor, bool)> {
    let Device::Cuda(device) = x.numbers.device() else {
        candle_core::bail!("E4M3 rows on a GPU, not {:?}", x.numbers)
    };
    if dtype != DType::BF16 || !weight.rows.is_multiple_of(ALIGNMENT) {
        candle_core::bail!("E4M3 matmuls are bf16, with multiples of {ALIGNMENT} columns: {dtype:?} {}", weight.rows);
    }
    let sizes = Sizes::new(x.rows, weight.rows, x.columns);
    let shape = Shape::from((x.rows, weight.rows));
    let y = cuda::allocate(device, &shape, dtype)?;
    let operands = Operands {
        x: cuda::address(x.numbers)?,
        weight: cuda::address(weight.numbers)?,
        y: cuda::start(&y)?.address(),
        x_scales: x.scales()?,
        weight_scales: weight.scales()?,
        bias: bias.map_or(Ok(0), cuda::address)?,
    };
    let whole = Tensor::from_storage(Storage::Cuda(y), shape, BackpropOp::none(), false);
    if x.rows == 0 {
        return Ok((whole, true));
    }
    // SAFETY: both operands are E4M3 rows with their scales behind them, the outcome is as large as it is to be, and so is
    // the bias of its type.
    let multiply = |kind| unsafe { matmul(device, kind, sizes, operands) };
    let scaled = if bias.is_some() { Kind::E4m3ScaledBias } else { Kind::E4m3Scaled };
    if by_library && multiply(scaled)? {
        return Ok((whole, true));
    }
    if !multiply(Kind::E4m3)? {
        candle_core::bail!("this GPU does not multiply E4M3 {sizes:?}: it takes one of sm_89 or newer");
    }
    Ok((whole, false))
}

/// Multiplies an outcome `[n, m]` by the scales of its rows and of its columns, in place.
///
/// # Errors
/// The device's.
pub fn scale(y: &Tensor, x: Stored, weight: Stored) -> Result<()> {
    let Device::Cuda(device) = y.device() else { candle_core::bail!("a matmul's outcome on a GPU, not {y:?}") };
    let arguments = [
        cuda::tensor_pointer(y)?,
        cuda::Arg::Pointer(x.scales()?),
        cuda::Arg::Pointer(weight.scales()?),
        x.rows.into(),
        weight.rows.into(),
    ];
    let config = cuda::grid(((x.rows * weight.rows / 8).div_ceil(256), 1, 1), 256, 0);
    // SAFETY: the arguments are the kernel's as e4m3.cu declares them; rows are whole packs.
    unsafe { E4M3.launch(device, "e4m3_scale", config, &arguments) }
}
