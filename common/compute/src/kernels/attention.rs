//! Attention of the vision and the audio encoder: every row sees every row.

use candle_core::{CpuStorage, CustomOp1, DType, Device, InplaceOp1, Layout, Result, Shape, Storage, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::{self, Arg};
use super::real::{Real, elements, elements_mut, with_real};

#[cfg(feature = "cuda")]
static ATTENTION: cuda::Kernels = cuda::Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/attention.fatbin")));

/// Scores that exist at a time on the CPU: 64 MiB of them.
const SCORES: usize = 1 << 24;

/// `softmax(q k^T scale) v` over the `rows` of each of a batch's sequences, head by head. `qkv` `[batch, rows, 3 H W]` is
/// what one matmul makes of the rows: queries, then keys, then values, each of H heads of width W. The outcome is
/// `[batch, rows, H W]`. Scores and softmax are f32; the values' weights are rounded to T before they meet the values.
///
/// On a GPU, 16-bit types with W = 64 and 72 run on tensor cores. Any other W up to 256 and f32 run, but slowly: only
/// tests have them.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn attention(qkv: &Tensor, heads: usize, scale: f32) -> Result<Tensor> {
    let width = qkv.dims3()?.2;
    if heads == 0 || !width.is_multiple_of(3 * heads) {
        candle_core::bail!("queries, keys and values of {heads} heads in rows of {width}");
    }
    if scale <= 0.0 {
        candle_core::bail!("scores scaled by {scale}");
    }
    qkv.apply_op1_no_bwd(&Attention { heads, scale })
}

struct Attention {
    heads: usize,
    scale: f32,
}

impl Attention {
    fn shape(layout: &Layout) -> Result<Shape> {
        let (batch, rows, width) = layout.shape().dims3()?;
        Ok((batch, rows, width / 3).into())
    }

    /// One sequence after the other, `block` queries at a time: the scores of a whole batch would be its largest tensor
    /// by far.
    fn blockwise(&self, qkv: &Tensor, block: usize) -> Result<Tensor> {
        let (batch, rows, width) = qkv.dims3()?;
        let head = width / 3 / self.heads;
        let block = block.clamp(1, rows.max(1));
        let sequence = |i: usize| {
            let part = |n: usize| {
                let part = qkv.get(i)?.reshape((rows, 3, self.heads, head))?.narrow(1, n, 1)?.squeeze(1)?;
                part.transpose(0, 1)?.contiguous() // [heads, rows, head]
            };
            let q = (part(0)?.to_dtype(DType::F32)? * f64::from(self.scale))?;
            let k = part(1)?.to_dtype(DType::F32)?.t()?;
            let v = part(2)?;
            let mut mixed = Vec::new();
            for start in (0..rows).step_by(block) {
                let scores = q.narrow(1, start, block.min(rows - start))?.contiguous()?.matmul(&k)?; // [heads, block, rows]
                scores.inplace_op1(&Softmax)?;
                mixed.push(scores.to_dtype(v.dtype())?.matmul(&v)?);
            }
            Tensor::cat(&mixed, 1)?.transpose(0, 1)?.reshape((rows, width / 3))
        };
        Tensor::stack(&(0..batch).map(sequence).collect::<Result<Vec<_>>>()?, 0)
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "tower_attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let shape = Attention::shape(layout)?;
        if shape.elem_count() == 0 {
            return Ok((with_real!(qkv.dtype(), T => T::storage(Vec::new())), shape));
        }
        // The matmuls are candle's, which take tensors.
        let qkv = with_real!(qkv.dtype(), T => {
            Tensor::from_slice(elements::<T>(qkv, layout)?, layout.shape(), &Device::Cpu)?
        });
        let mixed = self.blockwise(&qkv, SCORES / (self.heads * shape.dims()[1]))?;
        let (storage, _) = mixed.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.clone(), shape)),
            _ => candle_core::bail!("the CPU's outcome is elsewhere"),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, qkv: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        /// Queries of a block and its threads, as in `attention.cu`.
        const QUERIES: usize = 128;
        const THREADS: usize = 128;
        let shape = Attention::shape(layout)?;
        let (batch, rows, all) = shape.dims3()?;
        let head = all / self.heads;
        let out = cuda::allocate(&qkv.device, &shape, qkv.dtype())?;
        let pointers = [cuda::pointer(qkv, layout)?, cuda::start(&out)?];
        let suffix = cuda::suffix(qkv.dtype())?;
        let halves = qkv.dtype() != DType::F32 && matches!(cuda::aligned(head * 2, &pointers), Arg::I32(1));
        let (name, queries) = match head {
            64 | 72 if halves => (format!("attention_{head}_{suffix}"), QUERIES),
            1..=256 => (format!("attention_any_{suffix}"), THREADS / 32),
            _ => candle_core::bail!("attention: heads of {head} on a GPU, which takes up to 256"),
        };
        let scale = self.scale * std::f32::consts::LOG2_E;
        let arguments = [pointers[0], pointers[1], rows.into(), self.heads.into(), head.into(), scale.into()];
        let grid = cuda::grid((rows.div_ceil(queries), self.heads, batch), THREADS, 0);
        // SAFETY: the arguments are the kernel's, their shapes the ones that `attention` expects.
        unsafe { ATTENTION.launch(&qkv.device, &name, grid, &arguments)? };
        Ok((out, shape))
    }
}

/// Softmax over the last axis of f32, in place. Only the CPU needs it.
struct Softmax;

impl InplaceOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, scores: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let columns = layout.dims()[layout.dims().len() - 1];
        elements_mut::<f32>(scores, layout)?.par_chunks_mut(columns).for_each(|row| {
            let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for score in &mut *row {
                *score = (*score - most).exp();
                sum += *score;
            }
            for share in row {
                *share /= sum;
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Draws;

    /// What summing in another order may change: a score of 8 or 16 products, the sizes of which sum to 10 and are then
    /// scaled, by 16 x 6e-8 x 10 x 0.3 = 3e-6 at most, so the weights by as much of themselves, and a mean of values up
    /// to 3.5 by twice that. Another head's or query's share would change it by tenths.
    const REORDERED: f32 = 2e-5;

    #[test]
    fn attention_mixes_values_by_the_softmax_of_scaled_scores() -> Result<()> {
        // Queries (1, 0) and (0, 2), keys (1, 1) and (3, -1), values (10, 0) and (0, 1).
        let qkv = Tensor::new(&[[[1f32, 0., 1., 1., 10., 0.], [0., 2., 3., -1., 0., 1.]]], &Device::Cpu)?;
        let y = attention(&qkv, 1, 0.5)?.get(0)?.to_vec2::<f32>()?;
        // Scores (0.5, 1.5) and (1, -1).
        let first = 1.0 / (1.0 + 1f64.exp());
        let second = 1.0 / (1.0 + (-2f64).exp());
        for (row, share) in y.iter().zip([first, second]) {
            assert!((f64::from(row[0]) - 10.0 * share).abs() < 1e-5, "{y:?}");
            assert!((f64::from(row[1]) - (1.0 - share)).abs() < 1e-6, "{y:?}");
        }
        Ok(())
    }

    #[test]
    fn heads_and_sequences_do_not_mix() -> Result<()> {
        let (batch, rows, heads, head) = (2, 5, 3, 8);
        let qkv = Draws::default().normal((batch, rows, 3 * heads * head))?;
        let whole = attention(&qkv, heads, 0.3)?;
        for b in 0..batch {
            for h in 0..heads {
                let part = |n: usize| qkv.narrow(0, b, 1)?.narrow(2, (n * heads + h) * head, head);
                let alone = Tensor::cat(&[part(0)?, part(1)?, part(2)?], 2)?.contiguous()?;
                let want = attention(&alone, 1, 0.3)?;
                let got = whole.narrow(0, b, 1)?.narrow(2, h * head, head)?;
                let off = (got - want)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
                assert!(off < REORDERED, "sequence {b}, head {h}: {off}");
            }
        }
        Ok(())
    }

    #[test]
    fn attention_in_blocks_of_queries_is_attention() -> Result<()> {
        let qkv = Draws::default().normal((1, 150, 3 * 2 * 16))?;
        let op = Attention { heads: 2, scale: 0.25 };
        let whole = op.blockwise(&qkv, 150)?;
        for block in [0, 1, 64, 149] {
            let off = (op.blockwise(&qkv, block)? - &whole)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
            assert!(off < REORDERED, "blocks of {block}: {off}");
        }
        Ok(())
    }
}
