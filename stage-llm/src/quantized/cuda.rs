//! Launching the kernels for weights.

use std::ops::Range;

use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, DType, Device, Layout, Result, Shape, Storage, Tensor};
use common::kernels::E4m3Rows;
use common::kernels::cuda::{Arg, Kernels, grid, pointer, room, suffix};
use common::kernels::e4m3::on_card;

use super::{BlockFormat, Blocks, Linear};
use crate::kernels::{address, rows};

static GEMV: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/gemv.fatbin")));
static BLOCKS: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/blocks.fatbin")));

/// Bytes that go to the card at a time on their way into planes.
const UPLOAD_BYTES: usize = 64 << 20;
/// Warps that a matrix is to occupy at least, where its columns are long enough to share: a card's worth.
const WARPS: usize = 4_096;

fn card(device: &Device) -> Result<&CudaDevice> {
    match device {
        Device::Cuda(device) => Ok(device),
        _ => candle_core::bail!("an operand is not on a card"),
    }
}

/// Name and number of a format in the kernels.
fn called(format: BlockFormat) -> (&'static str, i32) {
    match format {
        BlockFormat::Q8_0 => ("q8_0", 1),
        BlockFormat::Q4K => ("q4_k", 2),
        BlockFormat::Q6K => ("q6_k", 3),
    }
}

/// GGUF blocks as the kernels take them: Q4_K unchanged, others in planes. Besides the matrix itself, 64 MiB are held.
pub fn upload(format: BlockFormat, bytes: &[u8], device: &Device) -> Result<Tensor> {
    if format == BlockFormat::Q4K {
        return Tensor::from_slice(bytes, bytes.len(), device);
    }
    let block_bytes = format.ggml().type_size();
    let data = Tensor::zeros(bytes.len(), DType::U8, device)?;
    let step = UPLOAD_BYTES / block_bytes;
    for (i, piece) in bytes.chunks(step * block_bytes).enumerate() {
        let raw = Tensor::from_slice(piece, piece.len(), device)?;
        let arguments = [
            Arg::Pointer(address(&raw)?),
            Arg::Pointer(address(&data)?),
            Arg::I32(called(format).1),
            Arg::U64((i * step) as u64),
            Arg::U64((piece.len() / block_bytes) as u64),
            Arg::U64((bytes.len() / block_bytes) as u64),
        ];
        let config = grid(((piece.len() / 2).div_ceil(256), 1, 1), 256, 0);
        // SAFETY: the arguments are the kernel's as blocks.cu declares them; the planes together are as long as the blocks.
        unsafe { BLOCKS.launch(card(device)?, "blocks_split", config, &arguments) }?;
    }
    Ok(data)
}

/// Whether [`gemv`] multiplies these.
pub fn takes(linear: &Linear, x: &Tensor) -> bool {
    let aligned = |cols: usize| cols.is_multiple_of(8) && rows(x).is_ok();
    matches!(x.dtype(), DType::BF16 | DType::F16)
        && match linear {
            Linear::Dense(w) => {
                w.dtype() == x.dtype() && w.is_contiguous() && w.dims().len() == 2 && aligned(w.dims()[1])
            }
            Linear::Blocks(blocks) => aligned(blocks.cols),
        }
}

/// Up to 8 rows times a matrix.
pub fn gemv(linear: &Linear, x: &Tensor) -> Result<Tensor> {
    let device = card(x.device())?;
    let ((m, k), (n, _)) = (x.dims2()?, linear.dims()?);
    let (name, weights) = match linear {
        Linear::Dense(w) => ("dense", address(w)?),
        Linear::Blocks(blocks) => (called(blocks.format).0, address(&blocks.data)?),
    };
    let (from, stride) = rows(x)?;
    let shape = Shape::from((m, n));
    let out = room(device, &shape, x.dtype())?;
    let tiles = n.div_ceil(16);
    let parts = [1, 2, 4].into_iter().find(|parts| tiles * parts >= WARPS).unwrap_or(8);
    let arguments = [
        Arg::Pointer(from),
        stride.into(),
        Arg::Pointer(weights),
        pointer(&out, &Layout::contiguous(shape.clone()))?,
        m.into(),
        n.into(),
        k.into(),
        parts.into(),
    ];
    let config = grid((tiles.div_ceil(8 / parts), 1, 1), 256, 4096);
    let name = format!("gemv_{name}_{}", suffix(x.dtype())?);
    // SAFETY: the arguments are the kernel's as gemv.cu declares them, for matrices of these sizes.
    unsafe { GEMV.launch(device, &name, config, &arguments) }?;
    Ok(Tensor::from_storage(Storage::Cuda(out), shape, BackpropOp::none(), false))
}

/// Where [`take`] takes rows from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    Dense(&'a Tensor),
    Blocks(&'a Blocks),
}

/// Rows of a range, or, with `ids`, the rows that these name, times `scale`: `[rows, cols]` in `dtype`.
pub fn take(source: Source<'_>, ids: Option<&Tensor>, range: Range<usize>, scale: f32, dtype: DType) -> Result<Tensor> {
    let (name, data, total, cols) = match source {
        Source::Dense(w) => ("dense", w, w.dims2()?.0, w.dims2()?.1),
        Source::Blocks(b) => (called(b.format).0, &b.data, b.rows, b.cols),
    };
    let device = card(data.device())?;
    if !cols.is_multiple_of(8) || ids.is_some_and(|i| i.dtype() != DType::U32) {
        candle_core::bail!("rows of {cols} by {ids:?}");
    }
    let n = range.len();
    let shape = Shape::from((n, cols));
    let out = room(device, &shape, dtype)?;
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
pub fn e4m3(blocks: &Blocks, range: Range<usize>) -> Result<E4m3Rows> {
    let (device, n, cols) = (card(blocks.data.device())?, range.len(), blocks.cols);
    if range.end > blocks.rows {
        candle_core::bail!("rows {range:?} of {}", blocks.rows);
    }
    let shape = Shape::from(E4m3Rows::bytes(n, cols));
    let out = room(device, &shape, DType::U8)?;
    let to = pointer(&out, &Layout::contiguous(shape.clone()))?.address();
    let arguments = [
        Arg::Pointer(address(&blocks.data)?),
        Arg::U64(blocks.rows as u64),
        cols.into(),
        Arg::U64(range.start as u64),
        Arg::Pointer(to),
        Arg::Pointer(to + (n * cols) as u64),
    ];
    let name = format!("e4m3_{}", called(blocks.format).0);
    // SAFETY: the arguments are the kernel's as blocks.cu declares them; rows are whole blocks, within the matrix.
    unsafe { BLOCKS.launch(device, &name, grid((n, 1, 1), on_card::threads(cols)?, 0), &arguments) }?;
    E4m3Rows::from_bytes(Tensor::from_storage(Storage::Cuda(out), shape, BackpropOp::none(), false), n, cols)
}
