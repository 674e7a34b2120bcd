//! Keys or values of one layer: 16 (or 32) bits as they are, or 8 or 4 bits, quantized as they are written.
//!
//! Head-major and preallocated: `[kv_heads, capacity, head_dim]`, so that a head's tokens lie in a row and attention
//! streams them. Quantized, two planes lie in one buffer: `[kv_heads, capacity, bytes of a row]`, then, 256-aligned,
//! `[kv_heads, capacity, groups]` of 16-bit scales. [`row`] defines both.

pub mod row;

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, DType, Device, InplaceOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use row::{GROUP_4, GROUP_8};

/// Planes begin at multiples of so many bytes.
const PLANE_ALIGN: usize = 256;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFormat {
    /// Unchanged.
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

    /// 16-bit scales of one row.
    pub fn row_scales(self, head_dim: usize) -> usize {
        match self {
            KvFormat::Dense(_) => 0,
            KvFormat::Q8 => head_dim.div_ceil(GROUP_8),
            KvFormat::Q4 => head_dim.div_ceil(GROUP_4),
        }
    }

    /// Bytes of a token's key and value in one layer, for the memory plan; the two planes of each tensor of a layer add 255
    /// at most each.
    pub fn bytes_per_token(self, kv_heads: usize, head_dim: usize) -> u64 {
        (2 * kv_heads * (self.row_bytes(head_dim) + 2 * self.row_scales(head_dim))) as u64
    }

    /// What kernels call it.
    #[cfg(feature = "cuda")]
    pub(crate) fn code(self) -> i32 {
        match self {
            KvFormat::Dense(_) => 0,
            KvFormat::Q8 => 1,
            KvFormat::Q4 => 2,
        }
    }
}

/// Keys, or values, of one layer.
#[derive(Debug, Clone)]
pub struct KvTensor {
    format: KvFormat,
    kv_heads: usize,
    capacity: usize,
    head_dim: usize,
    /// Dense: `[kv_heads, capacity, head_dim]`. Quantized: bytes.
    data: Tensor,
}

impl KvTensor {
    /// Room for `capacity` tokens, all zero.
    ///
    /// # Errors
    /// As [`several`](Self::several).
    pub fn new(format: KvFormat, kv_heads: usize, capacity: usize, head_dim: usize, device: &Device) -> Result<Self> {
        let mut one = Self::several(1, format, kv_heads, capacity, head_dim, device)?;
        Ok(one.pop().expect("one was made. This is a bug."))
    }

    /// `count` times room for `capacity` tokens, all zero, in one piece of memory: what frees it leaves one large hole in
    /// a device's pool and not many small ones, and what is allocated between them does not keep them apart.
    ///
    /// # Errors
    /// candle's, when there is no memory; quantized or on a card, a `head_dim` that is not a multiple of 8.
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
            candle_core::bail!("heads of {head_dim}: quantized or on a card, their width must be a multiple of 8");
        }
        let rows = kv_heads * capacity;
        let all = match format {
            KvFormat::Dense(dtype) => Tensor::zeros((count, kv_heads, capacity, head_dim), dtype, device)?,
            KvFormat::Q8 | KvFormat::Q4 => {
                let values = (rows * format.row_bytes(head_dim)).next_multiple_of(PLANE_ALIGN);
                let scales = (2 * rows * format.row_scales(head_dim)).next_multiple_of(PLANE_ALIGN);
                Tensor::zeros((count, values + scales), DType::U8, device)?
            }
        };
        (0..count).map(|i| Ok(KvTensor { format, kv_heads, capacity, head_dim, data: all.get(i)? })).collect()
    }

    /// How they are kept.
    pub fn format(&self) -> KvFormat {
        self.format
    }

    /// Heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Tokens that there is room for.
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

    /// The buffer: what is in it depends on the format.
    pub fn data(&self) -> &Tensor {
        &self.data
    }

    /// Where the scales begin, in bytes.
    pub(crate) fn scales_at(&self) -> usize {
        (self.kv_heads * self.capacity * self.format.row_bytes(self.head_dim)).next_multiple_of(PLANE_ALIGN)
    }

    /// Writes rows `[n, kv_heads * head_dim]` from token `at` on; they may be columns of a wider matrix.
    ///
    /// # Errors
    /// candle's; rows that do not fit or, kept dense, are of another type.
    pub fn write(&self, rows: &Tensor, at: usize) -> Result<()> {
        let (n, width) = rows.dims2()?;
        if width != self.kv_heads * self.head_dim || at + n > self.capacity {
            let (heads, room) = (self.kv_heads, self.capacity);
            candle_core::bail!("{n} rows of {width} at {at} do not fit {heads} heads x {room} x {}", self.head_dim);
        }
        match self.format {
            KvFormat::Dense(dtype) if dtype != rows.dtype() => {
                candle_core::bail!("{:?} rows for keys and values kept as {dtype:?}", rows.dtype())
            }
            KvFormat::Dense(_) if rows.device().is_cpu() => {
                let by_head = rows.reshape((n, self.kv_heads, self.head_dim))?.transpose(0, 1)?.contiguous()?;
                self.data.slice_set(&by_head, 1, at)
            }
            _ => self.data.inplace_op2(rows, &Write { to: self, at }),
        }
    }

    /// Tokens of a range: `[kv_heads, tokens, head_dim]`, dense ones as they are (a view), others in f32.
    ///
    /// # Errors
    /// candle's; a range beyond the capacity.
    pub fn dequantize(&self, tokens: Range<usize>) -> Result<Tensor> {
        if tokens.end > self.capacity {
            candle_core::bail!("tokens {tokens:?} of {}", self.capacity);
        }
        match self.format {
            KvFormat::Dense(_) => self.data.narrow(1, tokens.start, tokens.len()),
            // On a card only tests ask for it: attention reads the buffer itself.
            _ => {
                let data = self.data.to_device(&Device::Cpu)?;
                data.apply_op1_no_bwd(&Read { from: self, tokens })?.to_device(self.data.device())
            }
        }
    }
}

struct Write<'a> {
    to: &'a KvTensor,
    at: usize,
}

impl InplaceOp2 for Write<'_> {
    fn name(&self) -> &'static str {
        "kv-write"
    }

    fn cpu_fwd(&self, data: &mut CpuStorage, at: &Layout, rows: &CpuStorage, layout: &Layout) -> Result<()> {
        let KvTensor { format, kv_heads, capacity, head_dim, .. } = *self.to;
        let CpuStorage::U8(data) = data else { candle_core::bail!("quantized keys and values are bytes") };
        let data = &mut data[at.start_offset()..][..at.shape().elem_count()];
        let (n, _) = layout.shape().dims2()?;
        let rows = widened(rows, layout)?;
        let (row_bytes, row_scales) = (format.row_bytes(head_dim), format.row_scales(head_dim));
        let (values, scales) = data.split_at_mut(self.to.scales_at());
        let mut packed = vec![0u16; row_scales];
        for head in 0..kv_heads {
            for i in 0..n {
                let row = head * capacity + self.at + i;
                let source = &rows[(i * kv_heads + head) * head_dim..][..head_dim];
                let bytes = &mut values[row * row_bytes..][..row_bytes];
                match format {
                    KvFormat::Q4 => row::encode_4(source, bytes, &mut packed),
                    _ => row::encode_8(source, bytes, &mut packed),
                }
                let to = &mut scales[2 * row * row_scales..][..2 * row_scales];
                to.chunks_exact_mut(2).zip(&packed).for_each(|(to, s)| to.copy_from_slice(&s.to_le_bytes()));
            }
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        data: &mut candle_core::CudaStorage,
        layout: &Layout,
        rows: &candle_core::CudaStorage,
        rows_layout: &Layout,
    ) -> Result<()> {
        crate::gemma::kernels::kv_write(self.to, data, layout, rows, rows_layout, self.at)
    }
}

/// Rows of any float type and stride as contiguous f32.
fn widened(storage: &CpuStorage, layout: &Layout) -> Result<Vec<f32>> {
    let (n, width) = layout.shape().dims2()?;
    let (stride, start) = (layout.stride(), layout.start_offset());
    if stride[1] != 1 {
        candle_core::bail!("the columns of {layout:?} are not neighbours");
    }
    let at = |i: usize| start + i * stride[0]..start + i * stride[0] + width;
    Ok(match storage {
        CpuStorage::F32(s) => (0..n).flat_map(|i| s[at(i)].iter().copied()).collect(),
        CpuStorage::F16(s) => (0..n).flat_map(|i| s[at(i)].iter().map(|v| v.to_f32())).collect(),
        CpuStorage::BF16(s) => (0..n).flat_map(|i| s[at(i)].iter().map(|v| v.to_f32())).collect(),
        other => candle_core::bail!("keys and values of {:?}", candle_core::backend::BackendStorage::dtype(other)),
    })
}

struct Read<'a> {
    from: &'a KvTensor,
    tokens: Range<usize>,
}

impl CustomOp1 for Read<'_> {
    fn name(&self) -> &'static str {
        "kv-read"
    }

    fn cpu_fwd(&self, data: &CpuStorage, at: &Layout) -> Result<(CpuStorage, Shape)> {
        let KvTensor { format, kv_heads, capacity, head_dim, .. } = *self.from;
        let CpuStorage::U8(data) = data else { candle_core::bail!("quantized keys and values are bytes") };
        let data = &data[at.start_offset()..][..at.shape().elem_count()];
        let (row_bytes, row_scales) = (format.row_bytes(head_dim), format.row_scales(head_dim));
        let (values, scales) = data.split_at(self.from.scales_at());
        let n = self.tokens.len();
        let mut out = vec![0f32; kv_heads * n * head_dim];
        out.par_chunks_exact_mut(head_dim).enumerate().for_each_init(
            || vec![0u16; row_scales],
            |packed, (i, out)| {
                let row = i / n * capacity + self.tokens.start + i % n;
                let from = &scales[2 * row * row_scales..][..2 * row_scales];
                from.chunks_exact(2).zip(packed.iter_mut()).for_each(|(f, s)| *s = u16::from_le_bytes([f[0], f[1]]));
                let bytes = &values[row * row_bytes..][..row_bytes];
                match format {
                    KvFormat::Q4 => row::decode_4(bytes, packed, out),
                    _ => row::decode_8(bytes, packed, out),
                }
            },
        );
        Ok((CpuStorage::F32(out), Shape::from((kv_heads, n, head_dim))))
    }
}

#[cfg(test)]
#[path = "kv/tests.rs"]
mod tests;
