//! Copies between host and device that do not hold up the thread that launches work: while it computes, a device
//! never waits for the host to have taken what came before, nor for what comes next.
//!
//! A copy from or to ordinary memory makes the driver wait for the stream; so on a CUDA device every copy passes
//! page-locked memory (`pinned`), in the stream's own order. On the CPU there is nothing to wait for.

use candle_core::{DType, Device};
use protocol::message::Output;
use protocol::stage::Later;
use protocol::tensor::{Dtype, Tensor as WireTensor};

use crate::failure::Failure;
#[cfg(feature = "cuda")]
use crate::pinned;

/// candle's type of elements that travel as `dtype`.
pub fn candle_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::U8 => DType::U8,
        Dtype::I16 => DType::I16,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
        Dtype::F32 => DType::F32,
    }
}

/// A tensor of a message with candle's values, in their own dtype (f32, f16, bf16 or u8).
///
/// # Errors
/// candle's, when the copy from the device fails or the dtype does not travel.
pub fn to_wire(tensor: &candle_core::Tensor) -> candle_core::Result<WireTensor<'static>> {
    let flat = tensor.flatten_all()?;
    let (dtype, data) = match tensor.dtype() {
        DType::F32 => (Dtype::F32, bytemuck::cast_slice(&flat.to_vec1::<f32>()?).to_vec()),
        DType::F16 => (Dtype::F16, bytemuck::cast_slice(&flat.to_vec1::<half::f16>()?).to_vec()),
        DType::BF16 => (Dtype::Bf16, bytemuck::cast_slice(&flat.to_vec1::<half::bf16>()?).to_vec()),
        DType::U8 => (Dtype::U8, flat.to_vec1::<u8>()?),
        other => candle_core::bail!("{other:?} does not travel on the bus"),
    };
    WireTensor::new(dtype, tensor.dims(), data).map_err(candle_core::Error::wrap)
}

/// Puts bytes on a device as a tensor of a message says. The bytes may go as soon as this returns.
///
/// # Errors
/// candle's, when the device has no memory or cannot hold the type.
pub fn upload(tensor: &WireTensor<'_>, device: &Device) -> candle_core::Result<candle_core::Tensor> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        return pinned::upload(tensor.data(), candle_dtype(tensor.dtype()), &tensor.shape(), cuda);
    }
    candle_core::Tensor::from_raw_buffer(tensor.data(), candle_dtype(tensor.dtype()), &tensor.shape(), device)
}

/// Writes rows, as bytes of `target`'s type, to rows `row..` of the matrix `target`. On a CUDA device nothing is allocated
/// for it: memory that comes and goes leaves holes in a pool of limited size.
///
/// # Errors
/// candle's, when the copy fails.
///
/// # Panics
/// When `target` is no matrix of whole rows as long, or does not have those rows.
pub fn write_rows(target: &candle_core::Tensor, row: usize, rows: &[u8]) -> candle_core::Result<()> {
    let (height, columns) = target.dims2()?;
    let row_bytes = columns * target.dtype().size_in_bytes();
    assert!(rows.len().is_multiple_of(row_bytes.max(1)), "whole rows of {row_bytes} bytes. This is a bug.");
    let n = rows.len() / row_bytes.max(1);
    assert!(row + n <= height && target.is_contiguous(), "rows {row}..{} of {height}. This is a bug.", row + n);
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = target.device() {
        return pinned::write(target, row * row_bytes, rows, cuda);
    }
    let rows = candle_core::Tensor::from_raw_buffer(rows, target.dtype(), &[n, columns], target.device())?;
    target.slice_set(&rows, 0, row)
}

/// A tensor on its way to the host: copied behind all that its device had been given when this was started.
pub struct Download(Way);

enum Way {
    There(WireTensor<'static>),
    Indices(Vec<u32>),
    #[cfg(feature = "cuda")]
    Pinned(pinned::Download),
}

impl Download {
    /// Starts the copy. The tensor may go at once: its memory is free for others only behind the copy.
    ///
    /// # Errors
    /// candle's; a type that neither travels nor is that of indices, u32.
    pub fn start(tensor: &candle_core::Tensor) -> candle_core::Result<Self> {
        #[cfg(feature = "cuda")]
        if tensor.device().is_cuda() {
            return Ok(Download(Way::Pinned(pinned::Download::start(tensor)?)));
        }
        if tensor.dtype() == DType::U32 {
            return Ok(Download(Way::Indices(tensor.flatten_all()?.to_vec1()?)));
        }
        Ok(Download(Way::There(to_wire(tensor)?)))
    }

    /// Waits until the copy is there, on any thread.
    ///
    /// # Errors
    /// What went wrong on the device before the copy's turn came.
    pub fn wait(&self) -> candle_core::Result<WireTensor<'_>> {
        match &self.0 {
            Way::There(tensor) => Ok(tensor.clone()),
            Way::Indices(_) => candle_core::bail!("indices do not travel on the bus"),
            #[cfg(feature = "cuda")]
            Way::Pinned(download) => download.wait(),
        }
    }

    /// [`wait`](Self::wait) for indices, of any shape.
    ///
    /// # Errors
    /// As `wait`; a tensor in another type than u32.
    pub fn wait_indices(&self) -> candle_core::Result<Vec<u32>> {
        match &self.0 {
            Way::Indices(indices) => Ok(indices.clone()),
            Way::There(_) => candle_core::bail!("not indices"),
            #[cfg(feature = "cuda")]
            Way::Pinned(download) => download.wait_indices(),
        }
    }
}

/// An output for [`Port::emit_later`](protocol::stage::Port::emit_later): what `output` makes of the rows once they have
/// come from their device. The copy is started here.
///
/// # Errors
/// As [`Download::start`].
pub fn later(
    rows: &candle_core::Tensor,
    output: impl for<'a> FnOnce(WireTensor<'a>) -> Output<'a> + Send + 'static,
) -> Result<Later, Failure> {
    let rows = Download::start(rows).map_err(Failure)?;
    Ok(Later::new(move |emit| emit(output(rows.wait().map_err(Failure)?))))
}

/// A place in the order of a device's work, which whoever runs ahead of the device can wait for.
pub struct Marker(#[cfg(feature = "cuda")] Option<pinned::Event>);

impl Marker {
    /// Behind all that the device has been given so far.
    ///
    /// # Errors
    /// The device's.
    pub fn behind(device: &Device) -> candle_core::Result<Self> {
        #[cfg(feature = "cuda")]
        return Ok(Marker(match device {
            Device::Cuda(cuda) => Some(pinned::Event::behind(cuda)?),
            _ => None,
        }));
        #[cfg(not(feature = "cuda"))]
        {
            let _ = device;
            Ok(Marker())
        }
    }

    /// Waits until the device has come here.
    ///
    /// # Errors
    /// What went wrong on the device before.
    pub fn wait(&self) -> candle_core::Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(event) = &self.0 {
            event.wait()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_to_a_device_and_comes_back_is_the_same_in_every_type() -> candle_core::Result<()> {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let values: Vec<f32> = (0..30).map(|i| i as f32 * 0.5 - 7.0).collect();
            let tensor = candle_core::Tensor::from_vec(values, (5, 6), &Device::Cpu)?.to_dtype(dtype)?;
            let down = Download::start(&tensor)?;
            Marker::behind(tensor.device())?.wait()?;
            let wire = down.wait()?;
            let back = upload(&wire, &Device::Cpu)?;
            assert_eq!((back.dims(), back.dtype()), (tensor.dims(), dtype));
            let wide = |t: &candle_core::Tensor| t.to_dtype(DType::F32)?.to_vec2::<f32>();
            assert_eq!(wide(&back)?, wide(&tensor)?);
        }
        let target = candle_core::Tensor::zeros((3, 2), DType::BF16, &Device::Cpu)?;
        let row = candle_core::Tensor::new(&[[1f32, -2.0]], &Device::Cpu)?.to_dtype(DType::BF16)?;
        write_rows(&target, 1, to_wire(&row)?.data())?;
        let values = target.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        assert_eq!(values, [[0.0, 0.0], [1.0, -2.0], [0.0, 0.0]]);
        assert!(Download::start(&candle_core::Tensor::zeros(2, DType::F64, &Device::Cpu)?).is_err());
        let indices = Download::start(&candle_core::Tensor::new(&[7u32, 9], &Device::Cpu)?)?;
        assert!(indices.wait_indices()? == [7, 9] && indices.wait().is_err());
        assert!(Download::start(&target)?.wait_indices().is_err());
        Ok(())
    }
}
