//! Launching kernels of our own on candle's device: a fatbin per source file, loaded once per context.
//!
//! Kernels get plain pointers. Every tensor of a device lives on its one stream, in whose order kernels run and memory
//! is freed, so that no launch has to wait for anything or to keep anything alive.

mod arguments;

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::sys::{
    CUdevice_attribute, CUfunction_attribute, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchConfig, cuLaunchKernelEx,
};
use candle_core::cuda::cudarc::driver::{CudaContext, CudaFunction, CudaModule, LaunchConfig, PushKernelArg};
use candle_core::cuda::cudarc::nvrtc::Ptx;
use candle_core::{CudaDevice, Result};

pub use arguments::{
    Arg, NULL, address, aligned, allocate, grid, optional_pointer, pointer, rows, start, suffix, tensor_pointer,
};

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
    /// The driver's: a GPU that is too old, a function that is not there.
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

/// How many blocks with so much shared memory a GPU holds at once, at least one a processor.
///
/// # Errors
/// The driver's.
pub fn resident_blocks(device: &CudaDevice, shared_bytes: usize) -> Result<usize> {
    let stream = device.cuda_stream();
    let attribute = |which| stream.context().attribute(which).map(|value| value as usize).w();
    let capacity = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?;
    let reserved = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK)?;
    let processors = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    Ok(processors * (capacity / (shared_bytes + reserved)).max(1))
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
    // Newer GPUs run code that was compiled for sm_89, and which does not wait.
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
