//! Launch of the kernel that writes keys and values, and operands that several launches share.

use candle_core::{CudaStorage, Layout, Result, Storage, Tensor};
pub(crate) use compute::kernels::cuda::address;
use compute::kernels::cuda::{Arg, Kernels, grid, pointer, rows as rows_of, suffix};

use crate::language::kv::{KvFormat, KvTensor};

pub(crate) static KV_WRITE: Kernels = Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/kv_write.fatbin")));

/// Address of a matrix whose rows may be columns of a wider one, and the number of elements from row to row.
pub(crate) fn rows(tensor: &Tensor) -> Result<(u64, usize)> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => rows_of(storage, layout),
        _ => candle_core::bail!("kernel launch refused: an operand is on the CPU"),
    }
}

/// [`KvTensor::write`] on a GPU.
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
    let values = pointer(data, layout)?.address();
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
            let row_threads = if to.head_dim() <= 128 { 16 } else { 32 };
            (format!("kv_write_{}", suffix(dtype)?), n * to.kv_heads() * row_threads)
        }
    };
    let config = grid((threads.div_ceil(256), 1, 1), 256, 0);
    // SAFETY: the arguments are the kernels' as kv_write.cu declares them; the caller has checked that the rows fit.
    unsafe { KV_WRITE.launch(&from.device, &name, config, &arguments) }
}
