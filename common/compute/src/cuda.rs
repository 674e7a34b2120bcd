//! One CUDA device, its allocations in a pool of ours whose size is capped.

use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex};

use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{CudaContext, sys};
use candle_core::{Device, Result};

use crate::failure::sentence;
use protocol::memory::{self, Gauge, Limits, Usage};

/// Start of the names of the errors that MPS's clients meet.
const MPS_ERROR: &str = "CUDA_ERROR_MPS_";

/// A memory pool; it lives as long as the process, as does everything that was allocated from it.
#[derive(Clone, Copy)]
struct Pool {
    handle: sys::CUmemoryPool,
    ordinal: usize,
    context_bytes: u64,
}

// SAFETY: a pool handle is an opaque name that the driver accepts from any thread.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

/// The process's pool; stages that share a process share it.
static POOL: Mutex<Option<Pool>> = Mutex::new(None);

/// Opens a device whose allocations never exceed `pool_bytes`.
///
/// Candle allocates with `cuMemAllocAsync`, which serves from the device's current pool: ours, from before candle's
/// first allocation on. Contexts, modules and cuBLAS' own workspace lie outside of it: `context_bytes` accounts for them.
pub(super) fn open(ordinal: usize, pool_bytes: Option<u64>, context_bytes: u64) -> Result<Device> {
    let mut pool = POOL.lock().expect("no holder panics. This is a bug.");
    if pool.is_none() {
        let context = CudaContext::new(ordinal).w().inspect_err(|error| {
            if error.to_string().contains(MPS_ERROR) {
                memory::watch(Unreachable { ordinal, why: sentence(error) });
            }
        })?;
        let handle = capped(ordinal, pool_bytes)?;
        let installed = Pool { handle, ordinal, context_bytes };
        // SAFETY: both handles are live: the context was made above, the pool is never destroyed.
        unsafe { sys::cuDeviceSetMemPool(context.cu_device(), handle) }.result().w()?;
        *pool = Some(installed);
        let budget_bytes = pool_bytes.map(|bytes| bytes + context_bytes);
        memory::watch(Watched { pool: installed, context, budget_bytes });
    }
    // A stream of its own, not the calling thread's: a stage is opened on one thread and computes on another, and work
    // that moves between per-thread streams would race.
    let device = Device::new_cuda_with_stream(ordinal)?;
    // SAFETY: one stream serves each device object, so no event is needed to order its buffers' uses; buffers do not
    // pass from one device object to another.
    unsafe { device.as_cuda_device()?.disable_event_tracking() };
    Ok(device)
}

/// A pool that refuses to grow beyond `bytes` and keeps what it has: memory that goes back to the driver at every
/// synchronisation would have to be mapped again.
fn capped(ordinal: usize, bytes: Option<u64>) -> Result<sys::CUmemoryPool> {
    // SAFETY: the properties are plain data, for which zero means unset.
    let mut props: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
    props.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    props.handleTypes = sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE;
    props.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    props.location.id = ordinal as i32;
    props.maxSize = bytes.unwrap_or(0) as usize; // 0: no cap
    let mut pool = MaybeUninit::uninit();
    // SAFETY: both pointers are valid for the call; on success the driver has written the handle.
    let pool = unsafe {
        sys::cuMemPoolCreate(pool.as_mut_ptr(), &props).result().w()?;
        pool.assume_init()
    };
    let mut keep = u64::MAX;
    let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the attribute is a u64, and the pool is live.
    unsafe { sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut keep).cast()) }.result().w()?;
    Ok(pool)
}

impl Pool {
    fn get(&self, attribute: sys::CUmemPool_attribute) -> u64 {
        let mut value = 0u64;
        // SAFETY: all attributes asked for are u64, and the pool is live.
        let outcome = unsafe { sys::cuMemPoolGetAttribute(self.handle, attribute, (&raw mut value).cast()) };
        if outcome.result().is_err() {
            tracing::warn!(ordinal = self.ordinal, "the memory pool does not tell its size");
        }
        value
    }

    fn usage(&self) -> Usage {
        use sys::CUmemPool_attribute as A;
        Usage {
            used_bytes: self.context_bytes + self.get(A::CU_MEMPOOL_ATTR_USED_MEM_CURRENT),
            peak_bytes: self.context_bytes + self.get(A::CU_MEMPOOL_ATTR_USED_MEM_HIGH),
            reserved_bytes: self.context_bytes + self.get(A::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT),
        }
    }
}

/// A device that MPS's server, which is gone or full, gives this process no way to: the next process may have one.
struct Unreachable {
    ordinal: usize,
    why: String,
}

impl Gauge for Unreachable {
    fn usage(&self) -> Usage {
        Usage::default()
    }

    fn limits(&self) -> Option<Limits> {
        None
    }

    fn lost(&self) -> Option<String> {
        Some(format!("cuda:{} cannot be reached by this process: {}", self.ordinal, self.why))
    }
}

/// The pool as the rest of the process sees it.
struct Watched {
    pool: Pool,
    context: Arc<CudaContext>,
    budget_bytes: Option<u64>,
}

impl Gauge for Watched {
    fn usage(&self) -> Usage {
        self.pool.usage()
    }

    fn limits(&self) -> Option<Limits> {
        let (free, total) = self.context.mem_get_info().ok()?;
        Some(Limits { budget_bytes: self.budget_bytes, free_bytes: free as u64, total_bytes: total as u64 })
    }

    /// After a fault on the device (an address that is not there, a server of MPS that died, an ECC error) each call in its context
    /// fails, the wait for it with the same error. An allocation or a launch that was refused leaves no trace there.
    fn lost(&self) -> Option<String> {
        // SAFETY: the context is the process's and lives as long; any thread may have it as its current one.
        let waited = unsafe {
            sys::cuCtxSetCurrent(self.context.cu_ctx()).result().and_then(|()| sys::cuCtxSynchronize().result())
        };
        let error = waited.err()?;
        Some(format!("cuda:{} is lost to this process: {error}", self.pool.ordinal))
    }
}

/// Gives what is reserved and unused back to the driver.
pub(super) fn trim() {
    let Some(pool) = *POOL.lock().expect("no holder panics. This is a bug.") else { return };
    // What was freed in a stream's order is free once the stream has come there.
    // SAFETY: the context is the process's, made current by candle; the pool is live.
    let outcome =
        unsafe { sys::cuCtxSynchronize().result().and_then(|()| sys::cuMemPoolTrimTo(pool.handle, 0).result()) };
    if let Err(error) = outcome {
        tracing::warn!(ordinal = pool.ordinal, ?error, "unused device memory was not given back");
    }
}
