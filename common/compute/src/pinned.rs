//! Copies through page-locked host memory, which a CUDA device reads and writes by itself.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendDevice;
use candle_core::cuda::WrapErr;
use candle_core::cuda::cudarc::driver::{CudaContext, CudaEvent, CudaStream, result, sys};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, DType, Result, Shape, Storage};

use crate::kernels::cuda::{Arg, start, tensor_pointer};
use protocol::tensor::{Dtype, Tensor as WireTensor};

/// Buffers are of whole such units, so that one serves messages of nearly the same size.
const UNIT_BYTES: usize = 1 << 20;

/// A place in a stream.
pub(super) struct Event(CudaEvent);

impl Event {
    pub fn behind(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        // Who waits sleeps: a stage's other threads have a use for the processor.
        Ok(Event(stream.record_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC)).w()?))
    }

    pub fn wait(&self) -> Result<()> {
        self.0.synchronize().w()
    }
}

/// Page-locked memory. Making it takes milliseconds, so that what is done with goes to [`SPARE`].
struct Buffer {
    address: *mut u8,
    bytes: usize,
    /// Behind the last copy from or to it.
    copied: CudaEvent,
}

// SAFETY: the memory is this value's alone; the driver's functions may be called from any thread.
unsafe impl Send for Buffer {}
// SAFETY: through a shared reference it is only read, and only once the copy into it has been waited for.
unsafe impl Sync for Buffer {}

/// Buffers that nobody holds. As many as were in use at a time stay for the process's life: two messages' worth or so.
static SPARE: Mutex<Vec<Buffer>> = Mutex::new(Vec::new());

impl Buffer {
    /// A buffer of `bytes` or more, whose last copy is over.
    fn take(context: &Arc<CudaContext>, bytes: usize) -> Result<Self> {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |b: &Buffer| b.bytes >= bytes && b.copied.context() == context && b.copied.is_complete();
        let best = spare.iter().enumerate().filter(|(_, b)| fits(b)).min_by_key(|(_, b)| b.bytes).map(|(i, _)| i);
        if let Some(i) = best {
            return Ok(spare.swap_remove(i));
        }
        // One that is too small gives way, so that growing messages do not pile up buffers.
        let small = spare.iter().position(|b| b.bytes < bytes && b.copied.is_complete());
        let outgrown = small.map(|i| spare.swap_remove(i));
        drop(spare);
        if let Some(buffer) = outgrown {
            buffer.free();
        }
        let bytes = bytes.max(1).next_multiple_of(UNIT_BYTES);
        let copied = context.new_event(Some(sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC)).w()?;
        // SAFETY: the event was just made in this thread's current context; the memory is freed in `free` alone.
        let address = unsafe { result::malloc_host(bytes, 0) }.w()?.cast();
        Ok(Buffer { address, bytes, copied })
    }

    fn give_back(self) {
        SPARE.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }

    fn free(self) {
        // SAFETY: nobody copies from or to it any more, and it goes with this value.
        let outcome = unsafe { result::free_host(self.address.cast()) };
        if let Err(error) = outcome {
            tracing::warn!(%error, "page-locked memory was not given back");
        }
    }

    fn bytes(&self, n: usize) -> &[u8] {
        assert!(n <= self.bytes, "a buffer holds what was asked for. This is a bug.");
        // SAFETY: the memory is that long and has been written by the copy that the caller has waited for.
        unsafe { std::slice::from_raw_parts(self.address, n) }
    }
}

fn address(arg: Arg) -> Result<u64> {
    match arg {
        Arg::Pointer(address) => Ok(address),
        _ => candle_core::bail!("a pointer is a pointer"),
    }
}

fn stream_of(device: &CudaDevice) -> Result<(Arc<CudaStream>, Arc<CudaContext>)> {
    let stream = device.cuda_stream();
    let context = stream.context().clone();
    context.bind_to_thread().w()?;
    Ok((stream, context))
}

pub(super) fn upload(data: &[u8], dtype: DType, shape: &[usize], device: &CudaDevice) -> Result<candle_core::Tensor> {
    let shape = Shape::from(shape);
    if shape.elem_count() * dtype.size_in_bytes() != data.len() {
        candle_core::bail!("{} bytes for {dtype:?} {shape:?}", data.len());
    }
    let (stream, context) = stream_of(device)?;
    // SAFETY: all of it is written by the copy below, which every later use is behind.
    let storage = unsafe { device.alloc_uninit(&shape, dtype) }?;
    if !data.is_empty() {
        let buffer = Buffer::take(&context, data.len())?;
        let to = address(start(&storage)?)?;
        // SAFETY: the buffer is longer than the data, nobody else's, and no copy from it is under way; it is handed on
        // only behind this copy, as its event says.
        unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), buffer.address, data.len());
            result::memcpy_htod_async(to, buffer.bytes(data.len()), stream.cu_stream()).w()?;
        }
        buffer.copied.record(&stream).w()?;
        buffer.give_back();
    }
    Ok(candle_core::Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}

/// Writes bytes to a contiguous tensor's memory from byte `at` on, in the stream's order. The bytes may go as soon as this
/// returns: they are ordinary memory, which the driver has copied by then.
pub(super) fn write(target: &candle_core::Tensor, at: usize, data: &[u8], device: &CudaDevice) -> Result<()> {
    if at + data.len() > target.elem_count() * target.dtype().size_in_bytes() {
        candle_core::bail!("{} bytes at {at} of {:?}", data.len(), target.shape());
    }
    if data.is_empty() {
        return Ok(());
    }
    let (stream, _) = stream_of(device)?;
    let to = address(tensor_pointer(target)?)? + at as u64;
    // SAFETY: the bytes lie within the tensor, as checked above, and its storage lives at least as long as the caller's
    // reference; every use of the tensor is behind this copy in its one stream.
    unsafe { result::memcpy_htod_async(to, data, stream.cu_stream()).w() }
}

/// A tensor on its way into page-locked memory.
pub(super) struct Download {
    /// None for indices.
    dtype: Option<Dtype>,
    shape: Vec<usize>,
    bytes: usize,
    /// None once it is given back.
    buffer: Option<Buffer>,
}

impl Download {
    pub fn start(tensor: &candle_core::Tensor) -> Result<Self> {
        let tensor = tensor.contiguous()?;
        let dtype = match tensor.dtype() {
            DType::F32 => Some(Dtype::F32),
            DType::F16 => Some(Dtype::F16),
            DType::BF16 => Some(Dtype::Bf16),
            DType::U8 => Some(Dtype::U8),
            DType::U32 => None,
            other => candle_core::bail!("{other:?} does not travel on the bus"),
        };
        let (stream, context) = stream_of(tensor.device().as_cuda_device()?)?;
        let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
        let buffer = Buffer::take(&context, bytes)?;
        if bytes > 0 {
            let from = address(tensor_pointer(&tensor)?)?;
            // SAFETY: the buffer is long enough and nobody reads it before its event.
            unsafe {
                let to = std::slice::from_raw_parts_mut(buffer.address, bytes);
                result::memcpy_dtoh_async(to, from, stream.cu_stream()).w()?;
            }
        }
        buffer.copied.record(&stream).w()?;
        Ok(Download { dtype, shape: tensor.dims().to_vec(), bytes, buffer: Some(buffer) })
    }

    pub fn wait(&self) -> Result<WireTensor<'_>> {
        let Some(dtype) = self.dtype else { candle_core::bail!("indices do not travel on the bus") };
        WireTensor::new(dtype, &self.shape, self.bytes()?).map_err(candle_core::Error::wrap)
    }

    pub fn wait_indices(&self) -> Result<Vec<u32>> {
        if self.dtype.is_some() {
            candle_core::bail!("not indices");
        }
        let index = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Ok(self.bytes()?.chunks_exact(4).map(index).collect())
    }

    fn bytes(&self) -> Result<&[u8]> {
        let buffer = self.buffer.as_ref().expect("it is given back at the end only. This is a bug.");
        buffer.copied.synchronize().w()?;
        Ok(buffer.bytes(self.bytes))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            // A copy that nobody waited for may still be under way: whoever takes the buffer looks at its event.
            buffer.give_back();
        }
    }
}

/// Page-locked memory for pieces of tensors, with a stream of its own for those that leave the device.
pub(super) struct Staging {
    device: CudaDevice,
    bytes: usize,
    /// None once it is given back.
    buffer: Option<Buffer>,
    aside: Arc<CudaStream>,
}

impl Staging {
    pub fn new(device: &CudaDevice, bytes: usize) -> Result<Self> {
        let (_, context) = stream_of(device)?;
        let aside = context.new_stream().w()?;
        Ok(Staging { device: device.clone(), bytes, buffer: Some(Buffer::take(&context, bytes)?), aside })
    }

    fn buffer(&mut self) -> &mut Buffer {
        self.buffer.as_mut().expect("it is given back at the end only. This is a bug.")
    }

    pub fn fill(&mut self, n: usize) -> Result<&mut [u8]> {
        assert!(n <= self.bytes, "{n} bytes of {}. This is a bug.", self.bytes);
        let buffer = self.buffer();
        buffer.copied.synchronize().w()?;
        // SAFETY: the memory is at least that long, this value's alone, and the last copy from or to it is over.
        Ok(unsafe { std::slice::from_raw_parts_mut(buffer.address, n) })
    }

    pub fn write(&mut self, target: &candle_core::Tensor, at: usize, n: usize) -> Result<()> {
        let (stream, _) = stream_of(&self.device)?;
        let to = address(tensor_pointer(target)?)? + at as u64;
        let buffer = self.buffer();
        // SAFETY: the caller has checked that the bytes lie within the tensor, every use of which is behind this copy in its one
        // stream; nobody writes to the buffer before its event, which is recorded below.
        unsafe { result::memcpy_htod_async(to, buffer.bytes(n), stream.cu_stream()).w()? };
        buffer.copied.record(&stream).w()
    }

    pub fn read(&mut self, source: &candle_core::Tensor, at: usize, n: usize) -> Result<&[u8]> {
        assert!(n <= self.bytes, "{n} bytes of {}. This is a bug.", self.bytes);
        stream_of(&self.device)?;
        let from = address(tensor_pointer(source)?)? + at as u64;
        let aside = self.aside.clone();
        let buffer = self.buffer();
        // SAFETY: the caller has checked that the bytes lie within the tensor, holds it until this returns, and has waited for what
        // wrote them; the buffer is long enough, and nobody reads it before the copy is over.
        unsafe {
            let to = std::slice::from_raw_parts_mut(buffer.address, n);
            result::memcpy_dtoh_async(to, from, aside.cu_stream()).w()?;
        }
        buffer.copied.record(&aside).w()?;
        buffer.copied.synchronize().w()?;
        Ok(buffer.bytes(n))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            buffer.give_back();
        }
    }
}
