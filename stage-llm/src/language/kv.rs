//! Keys or values of one layer: 16 (or 32) bits as they are, or 8 or 4 bits, quantized as they are written.
//!
//! Head-major and preallocated: `[kv_heads, capacity, head_dim]`, so that a head's tokens are contiguous and attention
//! streams them. Quantized, two planes share one buffer: `[kv_heads, capacity, bytes of a row]`, then, 256-aligned,
//! `[kv_heads, capacity, groups]` of 16-bit scales.
//!
//! In reading order: [`row`] (one head's key or value in 8 or 4 bits), formats and memory (this file), [`io`] (rows
//! into keys or values, and back).

use candle_core::{DType, Device, Result, Tensor};

pub mod io;
pub mod row;

use row::{GROUP_4, GROUP_8};

/// Alignment of a plane in bytes.
const PLANE_ALIGN: usize = 256;

/// Format in which keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFormat {
    /// Unchanged values of a type.
    Dense(DType),
    /// 8.25 bits a value: [`row::encode_8`].
    Q8,
    /// 4.5 bits a value: [`row::encode_4`].
    Q4,
}

impl KvFormat {
    /// Bytes of one row of `head_dim` values, without scales.
    pub fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            KvFormat::Dense(dtype) => head_dim * dtype.size_in_bytes(),
            KvFormat::Q8 => head_dim,
            KvFormat::Q4 => head_dim / 2,
        }
    }

    /// Number of 16-bit scales of one row.
    pub fn row_scales(self, head_dim: usize) -> usize {
        match self {
            KvFormat::Dense(_) => 0,
            KvFormat::Q8 => head_dim.div_ceil(GROUP_8),
            KvFormat::Q4 => head_dim.div_ceil(GROUP_4),
        }
    }

    /// Bytes of a token's key and value in one layer, to plan memory with; alignment adds 255 bytes at most to each of
    /// the two planes of a tensor.
    pub fn bytes_per_token(self, kv_heads: usize, head_dim: usize) -> u64 {
        (2 * kv_heads * (self.row_bytes(head_dim) + 2 * self.row_scales(head_dim))) as u64
    }

    /// Type and shape of the buffer of `capacity` tokens' keys or values in one layer.
    pub fn buffer(self, kv_heads: usize, capacity: usize, head_dim: usize) -> (DType, Vec<usize>) {
        match self {
            KvFormat::Dense(dtype) => (dtype, vec![kv_heads, capacity, head_dim]),
            KvFormat::Q8 | KvFormat::Q4 => {
                let rows = kv_heads * capacity;
                let values = (rows * self.row_bytes(head_dim)).next_multiple_of(PLANE_ALIGN);
                let scales = (2 * rows * self.row_scales(head_dim)).next_multiple_of(PLANE_ALIGN);
                (DType::U8, vec![values + scales])
            }
        }
    }

    /// Code of the format in the kernels.
    #[cfg(feature = "cuda")]
    pub(crate) fn code(self) -> i32 {
        match self {
            KvFormat::Dense(_) => 0,
            KvFormat::Q8 => 1,
            KvFormat::Q4 => 2,
        }
    }
}

/// Keys of one layer, or its values.
#[derive(Debug, Clone)]
pub struct KvTensor {
    format: KvFormat,
    kv_heads: usize,
    capacity: usize,
    head_dim: usize,
    /// Values `[kv_heads, capacity, head_dim]`, or bytes where they are quantized.
    data: Tensor,
}

impl KvTensor {
    /// Zeros for `capacity` tokens.
    ///
    /// # Errors
    /// As [`several`](Self::several).
    pub fn new(format: KvFormat, kv_heads: usize, capacity: usize, head_dim: usize, device: &Device) -> Result<Self> {
        let mut one = Self::several(1, format, kv_heads, capacity, head_dim, device)?;
        Ok(one.pop().expect("one was made. This is a bug."))
    }

    /// `count` tensors of zeros for `capacity` tokens each, in one piece of memory: freed, it leaves one large hole in
    /// the device's pool and not many small ones with other allocations between them.
    ///
    /// # Errors
    /// Errors of candle, when there is no memory; quantized or on a GPU, a `head_dim` that is not a multiple of 8.
    pub fn several(
        count: usize,
        format: KvFormat,
        kv_heads: usize,
        capacity: usize,
        head_dim: usize,
        device: &Device,
    ) -> Result<Vec<Self>> {
        let as_it_is = matches!(format, KvFormat::Dense(_)) && device.is_cpu();
        if !as_it_is && !head_dim.is_multiple_of(8) {
            candle_core::bail!(
                "KV cache refused: heads of {head_dim}; quantized or on a GPU, their width must be a multiple of 8"
            );
        }
        let (dtype, shape) = format.buffer(kv_heads, capacity, head_dim);
        let all = Tensor::zeros([&[count], shape.as_slice()].concat(), dtype, device)?;
        (0..count).map(|i| Ok(KvTensor { format, kv_heads, capacity, head_dim, data: all.get(i)? })).collect()
    }

    /// Format in which they are kept.
    pub fn format(&self) -> KvFormat {
        self.format
    }

    /// Number of heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Most tokens that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Bytes of the buffer.
    pub fn bytes(&self) -> u64 {
        (self.data.elem_count() * self.data.dtype().size_in_bytes()) as u64
    }

    /// Buffer, whose layout depends on the format.
    pub fn data(&self) -> &Tensor {
        &self.data
    }

    /// Offset of the scales in bytes.
    pub(crate) fn scales_at(&self) -> usize {
        (self.kv_heads * self.capacity * self.format.row_bytes(self.head_dim)).next_multiple_of(PLANE_ALIGN)
    }
}

#[cfg(test)]
mod tests;
