//! Arguments of kernels: grids, sizes, and addresses of tensors in a GPU's memory.

use std::ffi::c_void;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda::CudaStorageSlice;
use candle_core::cuda::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, LaunchConfig};
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Shape, Storage, Tensor};

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// Any pointer; 0 is null.
    Pointer(u64),
    /// `uint64_t`, `long long`.
    U64(u64),
    /// `int`, for values that fit.
    I32(i32),
    /// `float`.
    F32(f32),
}

impl Arg {
    /// Where its value lies.
    pub(super) fn parameter(&self) -> *mut c_void {
        let value: *const c_void = match self {
            Arg::Pointer(value) | Arg::U64(value) => std::ptr::from_ref(value).cast(),
            Arg::I32(value) => std::ptr::from_ref(value).cast(),
            Arg::F32(value) => std::ptr::from_ref(value).cast(),
        };
        value.cast_mut()
    }

    /// The address that a pointer holds.
    ///
    /// # Panics
    /// Any other argument.
    pub fn address(self) -> u64 {
        match self {
            Arg::Pointer(address) => address,
            other => panic!("{other:?} is no pointer. This is a bug."),
        }
    }
}

impl From<usize> for Arg {
    /// Sizes are `int` in kernels.
    fn from(value: usize) -> Self {
        Arg::I32(i32::try_from(value).expect("sizes of a kernel's axes are far below 2^31"))
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Arg::F32(value)
    }
}

/// A grid of blocks.
pub fn grid(blocks: (usize, usize, usize), threads: usize, shared_bytes: usize) -> LaunchConfig {
    let narrow = |n: usize| u32::try_from(n).expect("a grid's side is below 2^32");
    LaunchConfig {
        grid_dim: (narrow(blocks.0), narrow(blocks.1), narrow(blocks.2)),
        block_dim: (narrow(threads), 1, 1),
        shared_mem_bytes: narrow(shared_bytes),
    }
}

/// What a kernel's name ends in for a type: `bf16`, `f16` or `f32`.
///
/// # Errors
/// Any other type.
pub fn suffix(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::BF16 => Ok("bf16"),
        DType::F16 => Ok("f16"),
        DType::F32 => Ok("f32"),
        other => candle_core::bail!("there are no kernels for {other:?}"),
    }
}

/// No tensor.
pub const NULL: Arg = Arg::Pointer(0);

/// Where a storage begins in the GPU's memory.
///
/// # Errors
/// A type that no kernel takes.
pub fn start(storage: &CudaStorage) -> Result<Arg> {
    fn address<T>(slice: &CudaSlice<T>, stream: &CudaStream) -> u64 {
        slice.device_ptr(stream).0
    }
    let stream = storage.device.cuda_stream();
    Ok(Arg::Pointer(match &storage.slice {
        CudaStorageSlice::U8(s) => address(s, &stream),
        CudaStorageSlice::U32(s) => address(s, &stream),
        CudaStorageSlice::I64(s) => address(s, &stream),
        CudaStorageSlice::BF16(s) => address(s, &stream),
        CudaStorageSlice::F16(s) => address(s, &stream),
        CudaStorageSlice::F32(s) => address(s, &stream),
        _ => candle_core::bail!("a kernel does not take {:?}", storage.dtype()),
    }))
}

/// Where a contiguous tensor's elements begin in the GPU's memory.
///
/// # Errors
/// [`start`]'s; a layout with gaps.
pub fn pointer(storage: &CudaStorage, layout: &Layout) -> Result<Arg> {
    let (Some((first, _)), Arg::Pointer(start)) = (layout.contiguous_offsets(), start(storage)?) else {
        candle_core::bail!("a kernel takes contiguous tensors, not {layout:?}")
    };
    Ok(Arg::Pointer(start + (first * storage.dtype().size_in_bytes()) as u64))
}

/// [`pointer`] of a tensor that an operation holds beside its operands: a weight, say.
///
/// # Errors
/// [`pointer`]'s; a tensor that is not on a GPU.
pub fn tensor_pointer(tensor: &Tensor) -> Result<Arg> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => pointer(storage, layout),
        _ => candle_core::bail!("a kernel's operand is on the CPU"),
    }
}

/// [`tensor_pointer`]'s address.
///
/// # Errors
/// [`tensor_pointer`]'s.
pub fn address(tensor: &Tensor) -> Result<u64> {
    tensor_pointer(tensor).map(Arg::address)
}

/// Where a matrix begins whose rows may be columns of a wider one, and how many elements lie between its rows. Kernels
/// load 16 bytes at a time, so that both are to be aligned to that.
///
/// # Errors
/// Rows that are not contiguous or not aligned.
pub fn rows(storage: &CudaStorage, layout: &Layout) -> Result<(u64, usize)> {
    let (n, width) = layout.shape().dims2()?;
    let stride = if n > 1 { layout.stride()[0] } else { width };
    let start = pointer(storage, &layout.narrow(0, 0, n.min(1))?)?.address();
    if !start.is_multiple_of(16) || n > 1 && !(stride * storage.dtype().size_in_bytes()).is_multiple_of(16) {
        candle_core::bail!("rows of {layout:?} are not aligned to 16 bytes");
    }
    Ok((start, stride))
}

/// [`tensor_pointer`], or [`NULL`].
///
/// # Errors
/// [`tensor_pointer`]'s.
pub fn optional_pointer(tensor: Option<&Tensor>) -> Result<Arg> {
    tensor.map_or(Ok(NULL), tensor_pointer)
}

/// Whether rows of so many bytes at these pointers all begin on 16 bytes: 1 or 0, for kernels that then move 16 bytes
/// at a time.
pub fn aligned(row_bytes: usize, arguments: &[Arg]) -> Arg {
    let pointers = arguments.iter().all(|argument| match argument {
        Arg::Pointer(address) => address.is_multiple_of(16),
        _ => true,
    });
    Arg::I32((pointers && row_bytes.is_multiple_of(16)).into())
}

/// Memory for an outcome, not initialized: every element is to be written.
///
/// # Errors
/// The driver's, out of memory above all.
pub fn allocate(device: &CudaDevice, shape: &Shape, dtype: DType) -> Result<CudaStorage> {
    // SAFETY: whoever asks for it hands it to a kernel that writes all of it.
    unsafe { device.alloc_uninit(shape, dtype) }
}
