//! Launches of the kernels for weights; [`gemm`]: of a few rows by blocks.

use std::ops::Range;

use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, DType, Device, Layout, Result, Shape, Storage, Tensor};
use compute::kernels::E4m3Rows;
use compute::kernels::cuda::{Arg, Kernels, allocate, grid, pointer, resident_blocks, suffix};
use compute::kernels::e4m3::gpu;

use super::format::{BlockFormat, UNIT_ROWS};
use crate::language::kernels::{address, rows};

pub mod gemm;

static GEMV: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/gemv.fatbin")));
static BLOCKS: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/blocks.fatbin")));

/// Most rows of activations that [`gemv`] multiplies.
pub const GEMV_ROWS: usize = 8;
/// Number of warps in a block of [`gemv`].
const WARPS: usize = 8;

/// Matrix `[rows, cols]` in blocks, in GPU memory.
#[derive(Clone, Copy)]
pub struct RawBlocks<'a> {
    pub format: BlockFormat,
    pub rows: usize,
    pub cols: usize,
    /// Bytes of the blocks, in units.
    pub data: &'a Tensor,
}

/// Weights `[outputs, inputs]` that a kernel reads.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    Dense(&'a Tensor),
    Blocks(RawBlocks<'a>),
}

fn gpu(device: &Device) -> Result<&CudaDevice> {
    match device {
        Device::Cuda(device) => Ok(device),
        _ => candle_core::bail!("kernel launch refused: an operand is not in GPU memory"),
    }
}

/// Name of a format in the kernels.
fn called(format: BlockFormat) -> &'static str {
    match format {
        BlockFormat::Q8_0 => "q8_0",
        BlockFormat::Q4K => "q4_k",
        BlockFormat::Q6K => "q6_k",
    }
}

/// Whether [`gemv`] multiplies these operands.
pub fn takes(weights: Source<'_>, x: &Tensor) -> bool {
    let aligned = |cols: usize| cols.is_multiple_of(8) && rows(x).is_ok();
    matches!(x.dtype(), DType::BF16 | DType::F16)
        && match weights {
            Source::Dense(w) => {
                w.dtype() == x.dtype() && w.is_contiguous() && w.dims().len() == 2 && aligned(w.dims()[1])
            }
            Source::Blocks(blocks) => aligned(blocks.cols),
        }
}

/// Shared memory of a block of [`gemv`] for one row or for several: its queues, so many stretches of so many bytes a
/// warp, and two turns of sums. A block has 101,376 bytes at most on sm_89.
fn gemv_shared(weights: Source<'_>, rows: usize) -> usize {
    let (stretches, bytes) = match weights {
        Source::Dense(_) => (5, 2_048),
        Source::Blocks(RawBlocks { format: BlockFormat::Q8_0, .. }) => (2, 4_352),
        Source::Blocks(RawBlocks { format: BlockFormat::Q4K, .. }) => (3, 2_304),
        Source::Blocks(RawBlocks { format: BlockFormat::Q6K, .. }) => (2, 3_360),
    };
    WARPS * (stretches * bytes + 2 * rows * UNIT_ROWS * size_of::<f32>())
}

/// Product of up to 8 rows and a matrix.
pub fn gemv(weights: Source<'_>, x: &Tensor) -> Result<Tensor> {
    let device = gpu(x.device())?;
    let (m, k) = x.dims2()?;
    let (name, data, n) = match weights {
        Source::Dense(w) => ("dense", address(w)?, w.dims2()?.0),
        Source::Blocks(blocks) => (called(blocks.format), address(blocks.data)?, blocks.rows),
    };
    let (from, stride) = rows(x)?;
    let shape = Shape::from((m, n));
    let out = allocate(device, &shape, x.dtype())?;
    let arguments = [
        Arg::Pointer(from),
        stride.into(),
        Arg::Pointer(data),
        pointer(&out, &Layout::contiguous(shape.clone()))?,
        m.into(),
        n.into(),
        k.into(),
    ];
    let rows = if m == 1 { 1 } else { GEMV_ROWS };
    let shared = gemv_shared(weights, rows);
    // The fewest blocks that take no longer, so that none has a tile less than the others.
    let tiles = n.div_ceil(UNIT_ROWS);
    let blocks = tiles.div_ceil(tiles.div_ceil(resident_blocks(device, shared)?));
    let config = grid((blocks, 1, 1), 32 * WARPS, shared);
    let name = format!("gemv_{name}_{rows}_{}", suffix(x.dtype())?);
    // SAFETY: the arguments are the kernel's as gemv.cu declares them, for matrices of these sizes. It reads weights
    // before it waits, which nothing writes.
    unsafe { GEMV.launch_ahead(device, &name, config, &arguments) }?;
    Ok(Tensor::from_storage(Storage::Cuda(out), shape, BackpropOp::none(), false))
}

/// Rows of a range or, with `ids`, of these numbers, times `scale`: `[rows, cols]` in `dtype`.
pub fn take(source: Source<'_>, ids: Option<&Tensor>, range: Range<usize>, scale: f32, dtype: DType) -> Result<Tensor> {
    let (name, data, total, cols) = match source {
        Source::Dense(w) => ("dense", w, w.dims2()?.0, w.dims2()?.1),
        Source::Blocks(b) => (called(b.format), b.data, b.rows, b.cols),
    };
    let device = gpu(data.device())?;
    if !cols.is_multiple_of(8) || ids.is_some_and(|i| i.dtype() != DType::U32) {
        candle_core::bail!("kernel launch refused: rows of {cols} by {ids:?}");
    }
    let n = range.len();
    let shape = Shape::from((n, cols));
    let out = allocate(device, &shape, dtype)?;
    if n > 0 {
        let arguments = [
            Arg::Pointer(address(data)?),
            Arg::U64(total as u64),
            cols.into(),
            Arg::Pointer(ids.map_or(Ok(0), address)?),
            Arg::U64(range.start as u64),
            Arg::U64(n as u64),
            Arg::F32(scale),
            pointer(&out, &Layout::contiguous(shape.clone()))?,
        ];
        let name = format!("take_{name}_{}", suffix(dtype)?);
        let config = grid(((n * cols / 8).div_ceil(256), 1, 1), 256, 0);
        // SAFETY: the arguments are the kernel's as blocks.cu declares them; it keeps numbers within the rows.
        unsafe { BLOCKS.launch(device, &name, config, &arguments) }?;
    }
    Ok(Tensor::from_storage(Storage::Cuda(out), shape, BackpropOp::none(), false))
}

/// Rows of a range, each expanded and quantized to E4M3, without 16 bits in between.
pub fn e4m3(blocks: RawBlocks<'_>, range: Range<usize>) -> Result<E4m3Rows> {
    let (device, n, cols) = (gpu(blocks.data.device())?, range.len(), blocks.cols);
    if range.end > blocks.rows {
        candle_core::bail!("kernel launch refused: rows {range:?} of a matrix of {}", blocks.rows);
    }
    let shape = Shape::from(E4m3Rows::bytes(n, cols));
    let out = allocate(device, &shape, DType::U8)?;
    let to = pointer(&out, &Layout::contiguous(shape.clone()))?.address();
    let arguments = [
        Arg::Pointer(address(blocks.data)?),
        cols.into(),
        Arg::U64(range.start as u64),
        Arg::Pointer(to),
        Arg::Pointer(to + (n * cols) as u64),
    ];
    let name = format!("e4m3_{}", called(blocks.format));
    // SAFETY: the arguments are the kernel's as blocks.cu declares them; rows are whole blocks, within the matrix.
    unsafe { BLOCKS.launch(device, &name, grid((n, 1, 1), gpu::threads(cols)?, 0), &arguments) }?;
    E4m3Rows::from_bytes(Tensor::from_storage(Storage::Cuda(out), shape, BackpropOp::none(), false), n, cols)
}
