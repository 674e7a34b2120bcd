//! Launching kernels of our own on candle's device: a fatbin per source file, loaded once per context.
//!
//! Kernels get plain pointers. Every tensor of a device lives on its one stream, in whose order kernels run and memory
//! is freed, so that no launch has to wait for anything or to keep anything alive.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda::cudarc::driver::sys::{
    CUdevice_attribute, CUfunction_attribute, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchConfig, cuLaunchKernelEx,
};
use candle_core::cuda::cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
};
use candle_core::cuda::cudarc::nvrtc::Ptx;
use candle_core::cuda::{CudaStorageSlice, WrapErr};
use candle_core::{CudaDevice, CudaStorage, DType, Layout, Result, Shape, Storage, Tensor};

/// Shared memory that a block has without asking for more.
const DEFAULT_SHARED_BYTES: u32 = 48 << 10;

/// Rows up to which kernels are short, so that each is worth launching ahead of the last one's end.
pub const FEW_ROWS: usize = 8;

/// The kernels of one source file. Meant to be a `static`.
pub struct Kernels {
    image: &'static [u8],
    /// What is loaded of it, by context. A module keeps its context, so that an address stands for one context only.
    loaded: Mutex<Vec<Loaded>>,
}

struct Loaded {
    context: *const CudaContext,
    module: Arc<CudaModule>,
    functions: HashMap<String, CudaFunction>,
}

// SAFETY: the address is compared and never followed.
unsafe impl Send for Loaded {}

impl Kernels {
    /// Kernels of a fatbin: `Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/norm.fatbin")))`.
    pub const fn new(image: &'static [u8]) -> Self {
        Kernels { image, loaded: Mutex::new(Vec::new()) }
    }

    /// The function called `name` on a device, able to use `shared_bytes` of dynamic shared memory. Ask with the same
    /// number for the same name: it is set when the function is first seen.
    ///
    /// # Errors
    /// The driver's: a card that is too old, a function that is not there.
    pub fn function(&self, device: &CudaDevice, name: &str, shared_bytes: u32) -> Result<CudaFunction> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match loaded.iter().position(|l| l.context == Arc::as_ptr(context)) {
            Some(at) => at,
            None => {
                let module = context.load_module(Ptx::from_binary(self.image.to_vec())).w()?;
                loaded.push(Loaded { context: Arc::as_ptr(context), module, functions: HashMap::new() });
                loaded.len() - 1
            }
        };
        let Loaded { module, functions, .. } = &mut loaded[at];
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let function = module.load_function(name).w()?;
        if shared_bytes > DEFAULT_SHARED_BYTES {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, shared_bytes as i32).w()?;
        }
        functions.insert(name.to_owned(), function.clone());
        Ok(function)
    }

    /// Launches the function called `name`; a grid without blocks is nothing to do.
    ///
    /// # Safety
    /// The arguments are the kernel's in number, order and width, and their pointers hold what the kernel touches.
    ///
    /// # Errors
    /// The driver's.
    pub unsafe fn launch(
        &self,
        device: &CudaDevice,
        name: &str,
        config: LaunchConfig,
        arguments: &[Arg],
    ) -> Result<()> {
        if has_no_blocks(&config) {
            return Ok(());
        }
        let function = self.function(device, name, config.shared_mem_bytes)?;
        let stream = device.cuda_stream();
        let mut launch = stream.launch_builder(&function);
        for argument in arguments {
            match argument {
                Arg::Pointer(value) => launch.arg(value),
                Arg::U64(value) => launch.arg(value),
                Arg::I32(value) => launch.arg(value),
                Arg::F32(value) => launch.arg(value),
            };
        }
        // SAFETY: the caller's promise.
        unsafe { launch.launch(config) }.w()?;
        Ok(())
    }

    /// [`launch`](Self::launch) of a kernel that may begin early: see [`launch_ahead`]. Worth it where kernels are short, as
    /// those of a single row are.
    ///
    /// # Safety
    /// As for both.
    ///
    /// # Errors
    /// The driver's.
    pub unsafe fn launch_ahead(
        &self,
        device: &CudaDevice,
        name: &str,
        config: LaunchConfig,
        arguments: &[Arg],
    ) -> Result<()> {
        let function = self.function(device, name, config.shared_mem_bytes)?;
        let mut parameters: Vec<*mut c_void> = arguments.iter().map(Arg::parameter).collect();
        // SAFETY: the caller's promise.
        unsafe { launch_ahead(device, &function, config, &mut parameters) }
    }
}

/// How many blocks with so much shared memory a card holds at once, at least one a processor.
///
/// # Errors
/// The driver's.
pub fn resident_blocks(device: &CudaDevice, shared_bytes: usize) -> Result<usize> {
    let stream = device.cuda_stream();
    let attribute = |which| stream.context().attribute(which).map(|value| value as usize).w();
    let room = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?;
    let reserved = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK)?;
    let processors = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    Ok(processors * (room / (shared_bytes + reserved)).max(1))
}

fn has_no_blocks(config: &LaunchConfig) -> bool {
    [config.grid_dim.0, config.grid_dim.1, config.grid_dim.2].contains(&0)
}

/// Launches a kernel that may begin while the one before it in the stream still runs, on Hopper and where that one allows it
/// (kernels/order.cuh): until its `wait_for_earlier` it touches nothing that others write.
///
/// # Safety
/// `parameters` point at the kernel's arguments in their order, and the kernel waits before it reads or writes what
/// earlier ones do.
///
/// # Errors
/// The driver's.
pub unsafe fn launch_ahead(
    device: &CudaDevice,
    function: &CudaFunction,
    config: LaunchConfig,
    parameters: &mut [*mut c_void],
) -> Result<()> {
    if has_no_blocks(&config) {
        return Ok(());
    }
    let stream = device.cuda_stream();
    let context = stream.context();
    context.bind_to_thread().w()?;
    // Newer cards run code that was compiled for sm_89, and which does not wait.
    let hopper = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR).w()? == 9;
    let mut ahead = CUlaunchAttribute {
        id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let raw = CUlaunchConfig {
        gridDimX: config.grid_dim.0,
        gridDimY: config.grid_dim.1,
        gridDimZ: config.grid_dim.2,
        blockDimX: config.block_dim.0,
        blockDimY: config.block_dim.1,
        blockDimZ: config.block_dim.2,
        sharedMemBytes: config.shared_mem_bytes,
        hStream: stream.cu_stream(),
        attrs: &raw mut ahead,
        numAttrs: u32::from(hopper),
    };
    // SAFETY: the caller's promise; the driver copies configuration and arguments before it returns.
    unsafe { cuLaunchKernelEx(&raw const raw, function.cu_function(), parameters.as_mut_ptr(), std::ptr::null_mut()) }
        .result()
        .w()
}

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
    fn parameter(&self) -> *mut c_void {
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

/// Where a storage begins on the card.
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

/// Where a contiguous tensor's elements begin on the card.
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
/// [`pointer`]'s; a tensor that is not on a card.
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

/// Room for an outcome. Every element is to be written.
///
/// # Errors
/// The driver's, out of memory above all.
pub fn room(device: &CudaDevice, shape: &Shape, dtype: DType) -> Result<CudaStorage> {
    // SAFETY: whoever asks for it hands it to a kernel that writes all of it.
    unsafe { device.alloc_uninit(shape, dtype) }
}
