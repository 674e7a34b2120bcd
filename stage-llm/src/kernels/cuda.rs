//! What several launches need.

use candle_core::{CudaStorage, Layout, Result, Storage, Tensor};
use common::kernels::cuda::{Arg, Kernels, grid, pointer, suffix, tensor_pointer};

use crate::kv::{KvFormat, KvTensor};

pub(crate) static KV_WRITE: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/kv_write.fatbin")));

/// Where a contiguous tensor begins on the card.
pub(crate) fn address(tensor: &Tensor) -> Result<u64> {
    plain(tensor_pointer(tensor)?)
}

/// Where a matrix begins whose rows may be columns of a wider one, and how many elements lie between its rows. Kernels
/// load 16 bytes at a time, so that both are to be aligned to that.
pub(crate) fn rows(tensor: &Tensor) -> Result<(u64, usize)> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => rows_of(storage, layout),
        _ => candle_core::bail!("a kernel's operand is on the CPU"),
    }
}

fn rows_of(storage: &CudaStorage, layout: &Layout) -> Result<(u64, usize)> {
    let (n, width) = layout.shape().dims2()?;
    let stride = if n > 1 { layout.stride()[0] } else { width };
    let start = plain(pointer(storage, &layout.narrow(0, 0, 1)?)?)?;
    let size = candle_core::backend::BackendStorage::dtype(storage).size_in_bytes();
    if !start.is_multiple_of(16) || n > 1 && !(stride * size).is_multiple_of(16) {
        candle_core::bail!("rows of {layout:?} are not aligned to 16 bytes");
    }
    Ok((start, stride))
}

fn plain(pointer: Arg) -> Result<u64> {
    match pointer {
        Arg::Pointer(address) => Ok(address),
        _ => candle_core::bail!("a pointer is a pointer"),
    }
}

/// [`KvTensor::write`] on a card.
pub(crate) fn kv_write(
    to: &KvTensor,
    data: &CudaStorage,
    layout: &Layout,
    from: &CudaStorage,
    from_layout: &Layout,
    at: usize,
) -> Result<()> {
    let (n, _) = from_layout.shape().dims2()?;
    if n == 0 {
        return Ok(());
    }
    let (rows, stride) = rows_of(from, from_layout)?;
    let values = plain(pointer(data, layout)?)?;
    let mut arguments = vec![
        Arg::Pointer(rows),
        stride.into(),
        n.into(),
        to.kv_heads().into(),
        to.head_dim().into(),
        to.capacity().into(),
        at.into(),
        Arg::Pointer(values),
    ];
    let (name, threads) = match to.format() {
        KvFormat::Dense(dtype) => {
            arguments.push(dtype.size_in_bytes().into());
            // Heads are multiples of 8 values, so that every row of one is a multiple of 16 bytes.
            let units = n * to.kv_heads() * to.head_dim() * dtype.size_in_bytes() / 16;
            ("kv_copy".to_owned(), units)
        }
        format => {
            arguments.push(Arg::Pointer(values + to.scales_at() as u64));
            arguments.push(Arg::I32(format.code()));
            let dtype = candle_core::backend::BackendStorage::dtype(from);
            (format!("kv_write_{}", suffix(dtype)?), n * to.kv_heads() * 32)
        }
    };
    let config = grid((threads.div_ceil(256), 1, 1), 256, 0);
    // SAFETY: the arguments are the kernels' as kv_write.cu declares them; the caller has checked that the rows fit.
    unsafe { KV_WRITE.launch(&from.device, &name, config, &arguments) }
}
