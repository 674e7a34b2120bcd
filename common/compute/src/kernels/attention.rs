//! Attention of the vision and the audio encoder: every row sees every row.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::{self, Arg};
use super::matmul::{View, matmul};
use super::real::{Real, elements, rounded, with_real};
use crate::elementary::{softmax, vectorized};

#[cfg(feature = "cuda")]
static ATTENTION: cuda::Kernels = cuda::Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/attention.fatbin")));

/// Queries of a block on the CPU: their scores, 64 rows of 729 or 1,500, are multiplied, weighed and multiplied again without leaving
/// a core's own cache.
const BLOCK: usize = 64;

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

    /// The outcome of `qkv` `[batch, rows, 3 H W]` in f32, `block` queries of a sequence at a time; `round` makes of a weight what
    /// it is when it meets the values. No score outlives its block: those of a batch would be its largest tensor by far. Keys and values
    /// are laid out once for all blocks: as they come, each block's matmul would turn the keys over anew, and rows of values that are a
    /// multiple of a KB apart would push each other out of the cache.
    fn blockwise(&self, qkv: &[f32], [rows, all]: [usize; 2], block: usize, round: Option<fn(f32) -> f32>) -> Vec<f32> {
        let (width, head) = (all / 3, all / 3 / self.heads);
        let mut out = vec![0f32; qkv.len() / 3];
        let sequences = out.par_chunks_mut(rows * width).zip(qkv.par_chunks(rows * all));
        sequences.for_each(|(out, qkv)| {
            let laid = self.lay_out(qkv, rows, head);
            let blocks = out.par_chunks_mut(block * width).enumerate();
            blocks.for_each_init(
                || vec![0f32; block * rows],
                |scores, (i, out)| {
                    let queries = out.len() / width;
                    let scores = &mut scores[..queries * rows];
                    for h in 0..self.heads {
                        let q = View::new(&qkv[i * block * all + h * head..], [queries, head], [all, 1]);
                        let (keys, values) = laid[2 * h * head * rows..][..2 * head * rows].split_at(head * rows);
                        let (k, v) =
                            (View::new(keys, [head, rows], [rows, 1]), View::new(values, [rows, head], [head, 1]));
                        matmul(scores, rows, q, k, self.scale);
                        weigh(scores, rows, round);
                        matmul(&mut out[h * head..], width, View::new(scores, [queries, rows], [rows, 1]), v, 1.0);
                    }
                },
            );
        });
        out
    }

    /// Keys `[W, rows]` and then values `[rows, W]` of a sequence, head after head.
    fn lay_out(&self, qkv: &[f32], rows: usize, head: usize) -> Vec<f32> {
        let (width, all) = (self.heads * head, 3 * self.heads * head);
        let mut laid = vec![0f32; 2 * rows * width];
        laid.par_chunks_mut(2 * rows * head).enumerate().for_each(|(h, laid)| {
            let (keys, values) = laid.split_at_mut(rows * head);
            // In strips as wide as a cache line, so that each is written while it is there.
            for first in (0..rows).step_by(LINE) {
                for c in 0..head {
                    let strip = &mut keys[c * rows + first..][..LINE.min(rows - first)];
                    for (i, key) in strip.iter_mut().enumerate() {
                        *key = qkv[(first + i) * all + width + h * head + c];
                    }
                }
            }
            for (values, row) in values.chunks_exact_mut(head).zip(qkv.chunks_exact(all)) {
                values.copy_from_slice(&row[2 * width + h * head..][..head]);
            }
        });
        laid
    }
}

/// Numbers of f32 in a cache line.
const LINE: usize = 16;

/// Rows of scores to weights, in place, each then through `round`.
fn weigh(scores: &mut [f32], columns: usize, round: Option<fn(f32) -> f32>) {
    vectorized(
        #[inline(always)]
        || {
            for row in scores.chunks_exact_mut(columns) {
                softmax(row);
            }
        },
    );
    if let Some(round) = round {
        scores.iter_mut().for_each(|weight| *weight = round(*weight));
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "tower_attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let (shape, dims) = (Attention::shape(layout)?, [layout.dims()[1], layout.dims()[2]]);
        let out = match qkv.dtype() {
            _ if shape.elem_count() == 0 => with_real!(qkv.dtype(), T => T::storage(Vec::new())),
            DType::F32 => f32::storage(self.blockwise(elements(qkv, layout)?, dims, BLOCK, None)),
            dtype => with_real!(dtype, T => {
                let wide: Vec<f32> = elements::<T>(qkv, layout)?.iter().map(|x| x.wide()).collect();
                let out = self.blockwise(&wide, dims, BLOCK, Some(rounded::<T>));
                T::storage(out.into_iter().map(T::narrow).collect())
            }),
        };
        Ok((out, shape))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Draws;
    use candle_core::Device;

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

    /// The slow twin: scores of whole sequences, by candle's operations on the heads as they lie.
    #[test]
    fn attention_is_the_chain_of_operations_that_it_stands_for() -> Result<()> {
        for (rows, heads, head) in [(1, 1, 2), (17, 2, 8), (150, 3, 24), (64, 1, 72)] {
            let qkv = Draws::default().normal((2, rows, 3 * heads * head))?;
            let part = |n: usize| {
                qkv.narrow(2, n * heads * head, heads * head)?
                    .reshape((2, rows, heads, head))?
                    .transpose(1, 2)?
                    .contiguous()
            };
            let scores = (part(0)?.matmul(&part(1)?.t()?)? * 0.25)?;
            let weights = scores.broadcast_sub(&scores.max_keepdim(3)?)?.exp()?;
            let weights = weights.broadcast_div(&weights.sum_keepdim(3)?)?;
            let want = weights.matmul(&part(2)?)?.transpose(1, 2)?.reshape((2, rows, heads * head))?;
            let off = (attention(&qkv, heads, 0.25)? - want)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
            assert!(off < REORDERED, "{rows} rows, {heads} heads of {head}: {off}");
        }
        Ok(())
    }

    #[test]
    fn attention_in_blocks_of_queries_is_attention() -> Result<()> {
        let (rows, all) = (150, 3 * 2 * 16);
        let qkv = Draws::default().normal((2, rows, all))?.flatten_all()?.to_vec1()?;
        let op = Attention { heads: 2, scale: 0.25 };
        let whole = op.blockwise(&qkv, [rows, all], rows, None);
        for block in [1, 64, 149] {
            let blocks = op.blockwise(&qkv, [rows, all], block, None);
            let off = blocks.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < REORDERED, "blocks of {block}: {off}");
        }
        Ok(())
    }

    #[test]
    fn attention_to_a_number_that_is_none_is_none() -> Result<()> {
        let qkv = Tensor::new(&[[[1f32, 1., 1.], [f32::NAN, 1., 1.]]], &Device::Cpu)?;
        let y = attention(&qkv, 1, 1.0)?.flatten_all()?.to_vec1::<f32>()?;
        assert!(y[0] == 1.0 && y[1].is_nan(), "{y:?}");
        Ok(())
    }
}
