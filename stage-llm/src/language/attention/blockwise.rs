//! Attention with one softmax over keys in blocks, on the CPU.
//!
//! Scores are never held for all keys at once: keys come in blocks, and a running maximum and sum carry the softmax
//! from block to block. An hour of video is 126,000 keys; its scores for one prompt would be hundreds of megabytes.

use std::ops::Range;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use compute::elementary::{exp_negative, largest, tanh, vectorized};
use compute::kernels::few_queries;
use rayon::prelude::*;

use super::{Scoring, Visible};

/// Scores of one block, all heads together: 16 MiB in f32.
pub const BLOCK_SCORES: usize = 1 << 22;
/// Most keys of one block: few enough that sums over them stay precise, and cheap to widen to f32.
pub const BLOCK_KEYS: usize = 2_048;
/// Most queries of one block.
const BLOCK_QUERIES: usize = 256;
/// Number of scores below which one thread is faster than two.
const SCORES_PER_THREAD: usize = 1 << 16;
/// Number of running sums of a row, side by side so that the loops vectorise.
const LANES: usize = 16;

/// `softmax(cap(q kᵀ · scale)) v` for q `[heads, queries, width]` and k, v `[kv heads, keys, width]`, which may be
/// views of a cache; query head h reads kv head `h / (heads / kv heads)`. Every query must see a key.
///
/// Returns `[heads, queries, width]` in f32.
///
/// # Errors
/// Errors of candle.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, scoring: Scoring, visible: Visible) -> Result<Tensor> {
    attend_to(q, &Dense(k, v), scoring, visible)
}

/// Source of keys and values, a block at a time.
pub(super) trait KeySource {
    /// Number of key and value heads, and of keys.
    fn dims(&self) -> Result<(usize, usize)>;
    /// Keys and values of a range, both `[kv heads, keys, width]` in f32.
    fn block(&self, keys: Range<usize>) -> Result<(Tensor, Tensor)>;
}

/// Keys and values `[kv heads, keys, width]` as plain tensors.
struct Dense<'a>(&'a Tensor, &'a Tensor);

impl KeySource for Dense<'_> {
    fn dims(&self) -> Result<(usize, usize)> {
        self.0.dims3().map(|(heads, keys, _)| (heads, keys))
    }

    fn block(&self, keys: Range<usize>) -> Result<(Tensor, Tensor)> {
        let wide = |t: &Tensor| t.narrow(1, keys.start, keys.len())?.to_dtype(DType::F32);
        Ok((wide(self.0)?, wide(self.1)?))
    }
}

/// [`attend`] with keys and values of any source.
pub(super) fn attend_to(q: &Tensor, source: &dyn KeySource, scoring: Scoring, visible: Visible) -> Result<Tensor> {
    let (heads, queries, _) = q.dims3()?;
    let block = BLOCK_QUERIES.min(queries);
    let keys = (BLOCK_SCORES / (heads * block)).clamp(1, BLOCK_KEYS);
    attend_in_blocks(q, source, scoring, visible, block, keys)
}

fn attend_in_blocks(
    q: &Tensor,
    source: &dyn KeySource,
    scoring: Scoring,
    visible: Visible,
    block_queries: usize,
    block_keys: usize,
) -> Result<Tensor> {
    let queries = q.dim(1)?;
    let mut blocks = Vec::with_capacity(queries.div_ceil(block_queries));
    for start in (0..queries).step_by(block_queries) {
        let end = queries.min(start + block_queries);
        blocks.push(attend_block(q, source, scoring, visible, start..end, block_keys)?);
    }
    if blocks.len() == 1 { Ok(blocks.remove(0)) } else { Tensor::cat(&blocks, 1) }
}

/// One block of queries against all keys that they see.
fn attend_block(
    q: &Tensor,
    source: &dyn KeySource,
    scoring: Scoring,
    visible: Visible,
    queries: Range<usize>,
    block_keys: usize,
) -> Result<Tensor> {
    let (heads, _, width) = q.dims3()?;
    let (kv_heads, keys) = source.dims()?;
    let (rep, n) = (heads / kv_heads, queries.len());
    // The query heads that share a kv head are rows of one matmul.
    let q = q.narrow(1, queries.start, n)?.contiguous()?.reshape((kv_heads, rep * n, width))?;
    let q = (q.to_dtype(DType::F32)? * scoring.scale)?; // [kv, rep*n, width]
    let seen = visible.to(queries.start, keys).start..visible.to(queries.end - 1, keys).end;
    let mut running: Option<Partial> = None;
    for start in seen.clone().step_by(block_keys) {
        let end = seen.end.min(start + block_keys);
        let (k, v) = source.block(start..end)?;
        let scores = few_queries::scores(&q, &k)?; // [kv, rep*n, keys of the block]
        let op = CapSoftmax {
            cap: scoring.cap.map(|c| c as f32),
            visible,
            queries: queries.clone(),
            first_key: start,
            keys,
        };
        let weighed = scores.apply_op1_no_bwd(&op)?; // [kv, rep*n, keys of the block + 2]
        let part = Partial {
            max: weighed.narrow(2, end - start, 1)?,
            sum: weighed.narrow(2, end - start + 1, 1)?,
            mixed: few_queries::mixed(&weighed.narrow(2, 0, end - start)?, &v)?,
        };
        running = Some(match running {
            None => part,
            Some(before) => before.merge(part)?,
        });
    }
    let Some(whole) = running else { candle_core::bail!("attention without keys") };
    whole.mixed.broadcast_div(&whole.sum)?.reshape((heads, n, width))
}

/// Attention over some of the keys; its weights are relative to the largest score among them.
struct Partial {
    max: Tensor,   // [kv, rows, 1]
    sum: Tensor,   // [kv, rows, 1]
    mixed: Tensor, // [kv, rows, width], not yet divided by the sum
}

impl Partial {
    /// Attention over the keys of both.
    fn merge(self, other: Partial) -> Result<Partial> {
        let max = self.max.maximum(&other.max)?;
        let (a, b) = ((self.max - &max)?.exp()?, (other.max - &max)?.exp()?);
        Ok(Partial {
            max,
            sum: ((self.sum * &a)? + (other.sum * &b)?)?,
            mixed: (self.mixed.broadcast_mul(&a)? + other.mixed.broadcast_mul(&b)?)?,
        })
    }
}

/// Scores `[kv, rep * queries, keys]` to soft-capped, exponentiated weights, with each row's largest score and sum of
/// weights in two more columns: one pass over memory where single operations would take eight.
struct CapSoftmax {
    cap: Option<f32>,
    visible: Visible,
    queries: Range<usize>,
    /// Number of the block's first key among all `keys`.
    first_key: usize,
    keys: usize,
}

impl CapSoftmax {
    /// Weights of one row, and its largest score and sum; `scores` and `weights` are as long as the block.
    #[inline(always)]
    fn row(&self, query: usize, scores: &[f32], weights: &mut [f32]) -> (f32, f32) {
        let seen = self.visible.to(query, self.keys);
        let inside = |key: usize| key.saturating_sub(self.first_key).min(scores.len());
        let seen = inside(seen.start)..inside(seen.end);
        let (scores, weights) = (&scores[seen.clone()], &mut weights[seen]);
        match self.cap {
            None => weights.copy_from_slice(scores),
            Some(cap) => weights.iter_mut().zip(scores).for_each(|(w, &s)| *w = cap * tanh(s / cap)),
        }
        // Finite: a row that sees nothing of a block then merges without infinities.
        let max = largest(weights);
        weights.iter_mut().for_each(|w| *w = exp_negative(*w - max));
        let mut sum = [0f64; LANES];
        for lane in weights.chunks(LANES) {
            sum.iter_mut().zip(lane).for_each(|(s, &w)| *s += f64::from(w));
        }
        let sum: f64 = sum.into_iter().sum();
        (max, sum as f32)
    }
}

impl CustomOp1 for CapSoftmax {
    fn name(&self) -> &'static str {
        "cap-softmax"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (kv_heads, rows, keys) = layout.shape().dims3()?;
        let Some((start, end)) = layout.contiguous_offsets() else { candle_core::bail!("scores are not contiguous") };
        let scores = &storage.as_slice::<f32>()?[start..end];
        let mut out = vec![0f32; kv_heads * rows * (keys + 2)];
        let row = |(i, (out, scores)): (usize, (&mut [f32], &[f32]))| {
            let (weights, stats) = out.split_at_mut(keys);
            let query = self.queries.start + i % self.queries.len();
            let (max, sum) = vectorized(
                #[inline(always)]
                || self.row(query, scores, weights),
            );
            stats.copy_from_slice(&[max, sum]);
        };
        if scores.len() < SCORES_PER_THREAD {
            out.chunks_exact_mut(keys + 2).zip(scores.chunks_exact(keys)).enumerate().for_each(row);
        } else {
            out.par_chunks_exact_mut(keys + 2).zip(scores.par_chunks_exact(keys)).enumerate().for_each(row);
        }
        Ok((CpuStorage::F32(out), Shape::from((kv_heads, rows, keys + 2))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{D, Device};
    use compute::random::Draws;

    /// Queries, keys or values of a few units, so that weights are far from even.
    fn spread(draws: &Draws, shape: (usize, usize, usize)) -> Tensor {
        (draws.normal(shape).unwrap() * 2.0).unwrap()
    }

    /// Attention by the plain formula in f64, with the mask spelt out key by key.
    fn plain(q: &Tensor, k: &Tensor, v: &Tensor, scoring: Scoring, sees: impl Fn(usize, usize) -> bool) -> Tensor {
        let (heads, n, _) = q.dims3().unwrap();
        let (kv, keys, _) = k.dims3().unwrap();
        let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        let mask: Vec<f64> =
            (0..n * keys).map(|i| if sees(i / keys, i % keys) { 0.0 } else { f64::NEG_INFINITY }).collect();
        let mask = Tensor::from_vec(mask, (n, keys), &Device::Cpu).unwrap();
        let per_head: Vec<Tensor> = (0..heads)
            .map(|h| {
                let (k, v) = (wide(&k.get(h / (heads / kv)).unwrap()), wide(&v.get(h / (heads / kv)).unwrap()));
                let mut s = (wide(&q.get(h).unwrap()).matmul(&k.t().unwrap()).unwrap() * scoring.scale).unwrap();
                if let Some(cap) = scoring.cap {
                    s = ((s / cap).unwrap().tanh().unwrap() * cap).unwrap();
                }
                let s = (s + &mask).unwrap();
                let e = s.broadcast_sub(&s.max_keepdim(D::Minus1).unwrap()).unwrap().exp().unwrap();
                let p = e.broadcast_div(&e.sum_keepdim(D::Minus1).unwrap()).unwrap();
                p.matmul(&v).unwrap()
            })
            .collect();
        Tensor::stack(&per_head, 0).unwrap()
    }

    fn worst(a: &Tensor, b: &Tensor) -> f64 {
        let d = (a.to_dtype(DType::F64).unwrap() - b.to_dtype(DType::F64).unwrap()).unwrap();
        d.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    const SCORING: Scoring = Scoring { scale: 0.25, cap: Some(10.0) };

    #[test]
    fn blocks_of_keys_and_queries_give_what_the_plain_formula_gives() {
        let draws = Draws::default();
        let (q, k, v) = (spread(&draws, (4, 37, 24)), spread(&draws, (2, 530, 24)), spread(&draws, (2, 530, 24)));
        let expected = plain(&q, &k, &v, SCORING, |_, _| true);
        for (queries, keys) in [(37, 530), (37, 64), (8, 100), (1, 1), (5, 529)] {
            let got = attend_in_blocks(&q, &Dense(&k, &v), SCORING, Visible::All, queries, keys).unwrap();
            assert!(worst(&got, &expected) < 3e-6, "{queries} queries, {keys} keys: {}", worst(&got, &expected));
        }
    }

    #[test]
    fn the_sliding_window_is_the_naive_mask_of_w_keys() {
        let draws = Draws::default();
        let (q, k, v) = (spread(&draws, (4, 40, 8)), spread(&draws, (2, 50, 8)), spread(&draws, (2, 50, 8)));
        for window in [1, 3, 16, 49, 50, 1000] {
            let visible = Visible::Causal { first: 10, window: Some(window) };
            let expected = plain(&q, &k, &v, SCORING, |i, j| j <= i + 10 && i + 10 < j + window);
            for (queries, keys) in [(40, 50), (7, 5), (1, 1), (40, 3)] {
                let got = attend_in_blocks(&q, &Dense(&k, &v), SCORING, visible, queries, keys).unwrap();
                assert!(worst(&got, &expected) < 3e-6, "window {window}, blocks {queries} x {keys}");
            }
        }
    }

    #[test]
    fn without_a_window_a_query_sees_itself_and_all_before() {
        let draws = Draws::default();
        let (q, k, v) = (spread(&draws, (2, 9, 8)), spread(&draws, (1, 9, 8)), spread(&draws, (1, 9, 8)));
        let expected = plain(&q, &k, &v, SCORING, |i, j| j <= i);
        let got = attend(&q, &k, &v, SCORING, Visible::Causal { first: 0, window: None }).unwrap();
        assert!(worst(&got, &expected) < 3e-6);
    }

    #[test]
    fn scores_far_apart_neither_overflow_nor_vanish() {
        let draws = Draws::default();
        let q = (spread(&draws, (1, 3, 8)) * 100.0).unwrap();
        let (k, v) = ((spread(&draws, (1, 300, 8)) * 100.0).unwrap(), spread(&draws, (1, 300, 8)));
        let scoring = Scoring { scale: 1.0, cap: None };
        let expected = plain(&q, &k, &v, scoring, |_, _| true);
        let got = attend_in_blocks(&q, &Dense(&k, &v), scoring, Visible::All, 3, 7).unwrap();
        assert!(worst(&got, &expected) < 1e-4, "{}", worst(&got, &expected));
    }

    #[test]
    fn keys_are_read_from_a_view_of_a_larger_cache() {
        let draws = Draws::default();
        let (q, k, v) = (spread(&draws, (2, 1, 8)), spread(&draws, (2, 64, 8)), spread(&draws, (2, 64, 8)));
        let (k, v) = (k.narrow(1, 0, 20).unwrap(), v.narrow(1, 0, 20).unwrap());
        let expected = plain(&q, &k, &v, SCORING, |_, _| true);
        let got = attend_in_blocks(&q, &Dense(&k, &v), SCORING, Visible::All, 1, 6).unwrap();
        assert!(worst(&got, &expected) < 3e-6);
    }
}
