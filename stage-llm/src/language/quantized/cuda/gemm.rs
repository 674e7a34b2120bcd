//! Product of a few rows and a matrix in blocks, which is read once.

use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, DType, Layout, Result, Shape, Storage, Tensor};
use compute::kernels::cuda::{Arg, Kernels, NULL, allocate, grid, pointer, resident_blocks, suffix};

use super::{RawBlocks, called, gpu};
use crate::language::kernels::{address, rows};
use crate::language::quantized::format::{BlockFormat, UNIT_ROWS};

static GEMM: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/gemm.fatbin")));

/// Most rows of activations that are worth multiplying with [`gemm`]: weights that are expanded are read once for all rows, but
/// cost eight times as much to read.
pub const GEMM_ROWS: usize = 64;
/// Most rows of a launch.
const LAUNCH_ROWS: usize = 32;
/// Number of warps in a block.
const WARPS: usize = 8;
/// Number of columns of a unit.
const UNIT_COLUMNS: usize = 256;
/// Least number of units that a slice of the columns has: with fewer, the sums of its outcome cost as much as its weights.
const LEAST_UNITS: usize = 4;
/// Number of outputs from which on a warp has two tiles of them, where a kernel can: x then is read half as often, and there
/// are blocks enough for every multiprocessor of a large GPU.
const WIDE: usize = 24_576;

/// Grid of a launch.
struct Plan {
    /// Rows of x that the kernel is made for.
    rows: usize,
    /// Tiles of 16 outputs that a warp has.
    tiles: usize,
    /// Blocks side by side.
    groups: usize,
    /// Units of columns in a slice, and the number of slices.
    units: usize,
    slices: usize,
    shared: usize,
}

impl Plan {
    fn new(device: &CudaDevice, blocks: RawBlocks<'_>, m: usize) -> Result<Self> {
        let rows = [8, 16].into_iter().find(|&rows| m <= rows).unwrap_or(LAUNCH_ROWS);
        let tiles = if blocks.format == BlockFormat::Q4K && blocks.rows >= WIDE { 2 } else { 1 };
        // Units of each tile in a warp's queue.
        let depth = match blocks.format {
            BlockFormat::Q8_0 => 2,
            BlockFormat::Q4K => 4 / tiles,
            BlockFormat::Q6K => 3,
        };
        // x of half a unit's columns, in 16 bits, twice.
        let shared = WARPS * depth * tiles * blocks.format.unit_bytes() + 2 * rows * (UNIT_COLUMNS / 2) * 2;
        let groups = blocks.rows.div_ceil(UNIT_ROWS * tiles * WARPS);
        let across = blocks.cols.div_ceil(UNIT_COLUMNS);
        let most = (resident_blocks(device, shared)? / groups).max(1);
        let units = across.div_ceil(most).max(LEAST_UNITS);
        Ok(Plan { rows, tiles, groups, units, slices: across.div_ceil(units), shared })
    }
}

/// Product of some rows and a matrix in blocks, [`LAUNCH_ROWS`] of them at a time.
pub fn gemm(blocks: RawBlocks<'_>, x: &Tensor) -> Result<Tensor> {
    let device = gpu(x.device())?;
    let ((m, _), n, size) = (x.dims2()?, blocks.rows, x.dtype().size_in_bytes());
    let (from, stride) = rows(x)?;
    let shape = Shape::from((m, n));
    let out = allocate(device, &shape, x.dtype())?;
    let to = pointer(&out, &Layout::contiguous(shape.clone()))?.address();
    for skip in (0..m).step_by(LAUNCH_ROWS) {
        let part = Part {
            x: from + (skip * stride * size) as u64,
            stride,
            y: to + (skip * n * size) as u64,
            m: LAUNCH_ROWS.min(m - skip),
        };
        part.launch(device, blocks, x.dtype())?;
    }
    Ok(Tensor::from_storage(Storage::Cuda(out), shape, BackpropOp::none(), false))
}

/// Rows of a launch: `m` of x at an address, rows `stride` elements apart, and where their products go.
struct Part {
    x: u64,
    stride: usize,
    y: u64,
    m: usize,
}

impl Part {
    fn launch(&self, device: &CudaDevice, blocks: RawBlocks<'_>, dtype: DType) -> Result<()> {
        let (m, n) = (self.m, blocks.rows);
        let plan = Plan::new(device, blocks, m)?;
        let parts = Shape::from((plan.slices, m, n));
        let sums = if plan.slices > 1 { Some(allocate(device, &parts, DType::F32)?) } else { None };
        let to = sums.as_ref().map_or(Ok(NULL), |sums| pointer(sums, &Layout::contiguous(parts)))?;
        let y = Arg::Pointer(self.y);
        let arguments = [
            Arg::Pointer(self.x),
            self.stride.into(),
            Arg::Pointer(address(blocks.data)?),
            y,
            to,
            m.into(),
            n.into(),
            blocks.cols.into(),
            plan.units.into(),
        ];
        let config = grid((plan.groups, plan.slices, 1), 32 * WARPS, plan.shared);
        let name = format!("gemm_{}_{}_{}_{}", called(blocks.format), plan.tiles, plan.rows, suffix(dtype)?);
        // SAFETY: the arguments are the kernel's as gemm.cu declares them, for matrices of these sizes. It reads weights
        // before it waits, which nothing writes.
        unsafe { GEMM.launch_ahead(device, &name, config, &arguments) }?;
        if plan.slices > 1 {
            let arguments = [to, y, (m * n).into(), plan.slices.into()];
            let config = grid(((m * n).div_ceil(256), 1, 1), 256, 0);
            let name = format!("gemm_sum_{}", suffix(dtype)?);
            // SAFETY: the arguments are the kernel's as gemm.cu declares them. The kernel waits before anything else.
            unsafe { GEMM.launch_ahead(device, &name, config, &arguments) }?;
        }
        Ok(())
    }
}
