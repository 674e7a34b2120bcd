//! Rows into keys or values, and back.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, Device, InplaceOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{KvFormat, KvTensor, row};
#[cfg(feature = "cuda")]
use crate::language::kernels::kv_write;

impl KvTensor {
    /// Writes rows `[n, kv_heads * head_dim]` from token `at` on; they may be columns of a wider matrix.
    ///
    /// # Errors
    /// Errors of candle; rows that do not fit or, kept dense, are of another type.
    pub fn write(&self, rows: &Tensor, at: usize) -> Result<()> {
        let (n, width) = rows.dims2()?;
        if width != self.kv_heads * self.head_dim || at + n > self.capacity {
            let KvTensor { kv_heads, capacity, head_dim, .. } = self;
            candle_core::bail!(
                "KV write refused: {n} rows of {width} at {at} do not fit {kv_heads} heads x {capacity} x {head_dim}"
            );
        }
        match self.format {
            KvFormat::Dense(dtype) if dtype != rows.dtype() => {
                candle_core::bail!("KV write refused: {:?} rows for keys and values kept as {dtype:?}", rows.dtype())
            }
            KvFormat::Dense(_) if rows.device().is_cpu() => {
                let by_head = rows.reshape((n, self.kv_heads, self.head_dim))?.transpose(0, 1)?.contiguous()?;
                self.data.slice_set(&by_head, 1, at)
            }
            _ => self.data.inplace_op2(rows, &Write { to: self, at }),
        }
    }

    /// Keys or values of a range of tokens, `[kv_heads, tokens, head_dim]`: dense ones as they are (a view), others in
    /// f32.
    ///
    /// # Errors
    /// Errors of candle; a range beyond the capacity.
    pub fn dequantize(&self, tokens: Range<usize>) -> Result<Tensor> {
        if tokens.end > self.capacity {
            candle_core::bail!("KV read refused: tokens {tokens:?} of a capacity of {}", self.capacity);
        }
        match self.format {
            KvFormat::Dense(_) => self.data.narrow(1, tokens.start, tokens.len()),
            // On a GPU only tests ask for it: attention reads the buffer itself.
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
        let CpuStorage::U8(data) = data else {
            candle_core::bail!("quantized keys and values are not bytes. This is a bug.")
        };
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
        kv_write(self.to, data, layout, rows, rows_layout, self.at)
    }
}

/// Rows of any float type and stride as contiguous f32.
fn widened(storage: &CpuStorage, layout: &Layout) -> Result<Vec<f32>> {
    let (n, width) = layout.shape().dims2()?;
    let (stride, start) = (layout.stride(), layout.start_offset());
    if stride[1] != 1 {
        candle_core::bail!("KV write refused: the columns of {layout:?} are not contiguous");
    }
    let at = |i: usize| start + i * stride[0]..start + i * stride[0] + width;
    Ok(match storage {
        CpuStorage::F32(s) => (0..n).flat_map(|i| s[at(i)].iter().copied()).collect(),
        CpuStorage::F16(s) => (0..n).flat_map(|i| s[at(i)].iter().map(|v| v.to_f32())).collect(),
        CpuStorage::BF16(s) => (0..n).flat_map(|i| s[at(i)].iter().map(|v| v.to_f32())).collect(),
        other => {
            candle_core::bail!("KV write refused: rows of {:?}", candle_core::backend::BackendStorage::dtype(other))
        }
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
        let CpuStorage::U8(data) = data else {
            candle_core::bail!("quantized keys and values are not bytes. This is a bug.")
        };
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
