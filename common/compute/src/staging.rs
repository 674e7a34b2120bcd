//! Pieces of a tensor between its device and a file: through memory that is used again and again, page-locked on a CUDA device.

use candle_core::{CpuStorage, Device, Result, Storage, Tensor};

#[cfg(feature = "cuda")]
use crate::pinned;

/// Memory through which pieces of tensors pass, one at a time.
pub struct Staging(Way);

enum Way {
    Plain(Vec<u8>),
    #[cfg(feature = "cuda")]
    Pinned(pinned::Staging),
}

impl Staging {
    /// Memory for pieces of at most `bytes` bytes from and to a device.
    ///
    /// # Errors
    /// The driver's, when it has no page-locked memory.
    pub fn new(device: &Device, bytes: usize) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(cuda) = device {
            return Ok(Staging(Way::Pinned(pinned::Staging::new(cuda, bytes)?)));
        }
        let _ = device;
        Ok(Staging(Way::Plain(vec![0; bytes])))
    }

    /// First `n` bytes of the memory, to be filled: once the last piece has left it.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    ///
    /// # Panics
    /// When it is not as large.
    pub fn fill(&mut self, n: usize) -> Result<&mut [u8]> {
        match &mut self.0 {
            Way::Plain(bytes) => Ok(&mut bytes[..n]),
            #[cfg(feature = "cuda")]
            Way::Pinned(staging) => staging.fill(n),
        }
    }

    /// Writes the first `n` bytes that were filled in to a contiguous tensor's memory, from byte `at` on, in the order of its
    /// device's work. On a CUDA device this does not wait for the copy; [`fill`](Self::fill) does.
    ///
    /// # Errors
    /// Bytes beyond the tensor's, or in the middle of an element; the device's.
    pub fn write(&mut self, target: &Tensor, at: usize, n: usize) -> Result<()> {
        within(target, at, n)?;
        match &mut self.0 {
            Way::Plain(bytes) => {
                let (dtype, size) = (target.dtype(), target.dtype().size_in_bytes());
                if !at.is_multiple_of(size) || !n.is_multiple_of(size) {
                    candle_core::bail!("{n} bytes at {at} of {:?} are no whole elements of {size}", target.shape());
                }
                let piece = Tensor::from_raw_buffer(&bytes[..n], dtype, &[n / size], &Device::Cpu)?;
                target.flatten_all()?.slice_set(&piece, 0, at / size)
            }
            #[cfg(feature = "cuda")]
            Way::Pinned(staging) => staging.write(target, at, n),
        }
    }

    /// `n` bytes of a contiguous tensor's memory from byte `at` on. On a CUDA device they are copied beside its other work, so
    /// that who computes does not wait for them: what wrote them has to be over, see [`Marker`](crate::transfer::Marker).
    ///
    /// # Errors
    /// Bytes beyond the tensor's; the device's.
    ///
    /// # Panics
    /// When the memory is not as large.
    pub fn read(&mut self, source: &Tensor, at: usize, n: usize) -> Result<&[u8]> {
        within(source, at, n)?;
        match &mut self.0 {
            Way::Plain(bytes) => {
                let (storage, layout) = source.storage_and_layout();
                let Storage::Cpu(values) = &*storage else { candle_core::bail!("a tensor of another device") };
                let start = layout.start_offset() * source.dtype().size_in_bytes() + at;
                bytes[..n].copy_from_slice(&host_bytes(values)?[start..start + n]);
                Ok(&bytes[..n])
            }
            #[cfg(feature = "cuda")]
            Way::Pinned(staging) => staging.read(source, at, n),
        }
    }
}

/// Refuses bytes that a tensor does not have.
fn within(tensor: &Tensor, at: usize, n: usize) -> Result<()> {
    let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
    if !tensor.is_contiguous() || at.checked_add(n).is_none_or(|end| end > bytes) {
        candle_core::bail!("{n} bytes at {at} of {:?}, which has {bytes}", tensor.layout());
    }
    Ok(())
}

/// Memory of a host's values.
fn host_bytes(values: &CpuStorage) -> Result<&[u8]> {
    Ok(match values {
        CpuStorage::U8(values) => values,
        CpuStorage::F16(values) => bytemuck::cast_slice(values),
        CpuStorage::BF16(values) => bytemuck::cast_slice(values),
        CpuStorage::F32(values) => bytemuck::cast_slice(values),
        other => candle_core::bail!("{:?} has no place in a file", candle_core::backend::BackendStorage::dtype(other)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, IndexOp};

    #[test]
    fn pieces_of_a_tensor_pass_unchanged_whatever_its_type_and_where_it_begins() {
        for dtype in [DType::U8, DType::F16, DType::BF16, DType::F32] {
            let size = dtype.size_in_bytes();
            let several = Tensor::arange(0f32, 96.0, &Device::Cpu).unwrap().reshape((3, 4, 8)).unwrap();
            let source = several.to_dtype(dtype).unwrap().i(1).unwrap();
            let target = Tensor::zeros((2, 4, 8), dtype, &Device::Cpu).unwrap().i(1).unwrap();
            let mut staging = Staging::new(&Device::Cpu, 5 * size).unwrap();
            let mut at = 0;
            while at < 32 * size {
                let n = (32 * size - at).min(5 * size);
                let piece = staging.read(&source, at, n).unwrap().to_vec();
                staging.fill(n).unwrap().copy_from_slice(&piece);
                staging.write(&target, at, n).unwrap();
                at += n;
            }
            let values = |t: &Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(&target), (32..64).map(|v| v as f32).collect::<Vec<_>>(), "{dtype:?}");
            for (at, n) in [(32 * size, size), (0, 33 * size), (usize::MAX, 1)] {
                assert!(staging.read(&source, at, n).is_err() && staging.write(&target, at, n).is_err());
            }
        }
    }
}
