//! Few queries by keys and their weights by values on the CPU, as a decode step attends: keys and values are read once, by all threads,
//! as they lie in a cache. A matmul turns them over and copies them into tiles first, which takes it more time than so few rows do.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::few_rows::{MOST_ROWS, PIECE, dot};
use crate::elementary::vectorized;

/// Rows of values that are added at a time.
const TOGETHER: usize = 4;

/// `q kᵀ` of queries `[heads, n, width]` and keys `[heads, m, width]`, `[heads, n, m]`: on a CPU in f32, where n is at most [`MOST_ROWS`],
/// without a copy of the keys, else candle's matmul.
///
/// # Errors
/// Shapes and types that do not fit.
pub fn scores(q: &Tensor, k: &Tensor) -> Result<Tensor> {
    let ((heads, n, width), (same_heads, _, same_width)) = (q.dims3()?, k.dims3()?);
    if !is_for_few(q, k, n) || (heads, width) != (same_heads, same_width) {
        return q.matmul(&k.t()?);
    }
    q.apply_op2_no_bwd(k, &Few::Scores)
}

/// `w v` of weights `[heads, n, m]` and values `[heads, m, width]`, `[heads, n, width]`: as [`scores`].
///
/// # Errors
/// Shapes and types that do not fit.
pub fn mixed(weights: &Tensor, v: &Tensor) -> Result<Tensor> {
    let ((heads, n, m), (same_heads, same_m, _)) = (weights.dims3()?, v.dims3()?);
    if !is_for_few(weights, v, n) || (heads, m) != (same_heads, same_m) {
        return weights.matmul(v);
    }
    weights.apply_op2_no_bwd(v, &Few::Mixed)
}

fn is_for_few(x: &Tensor, y: &Tensor, rows: usize) -> bool {
    let is_readable = |t: &Tensor| t.device().is_cpu() && t.dtype() == DType::F32 && t.stride()[2] == 1;
    rows <= MOST_ROWS && x.elem_count() > 0 && y.elem_count() > 0 && is_readable(x) && is_readable(y)
}

/// A matrix for each head, in one storage: neighbours in a row lie beside each other.
struct Matrices<'a> {
    data: &'a [f32],
    heads: usize,
    rows: usize,
    columns: usize,
    /// Distances of matrices and of rows.
    strides: [usize; 2],
}

impl<'a> Matrices<'a> {
    fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (heads, rows, columns) = layout.shape().dims3()?;
        let data = &storage.as_slice::<f32>()?[layout.start_offset()..];
        Ok(Matrices { data, heads, rows, columns, strides: [layout.stride()[0], layout.stride()[1]] })
    }

    #[inline(always)]
    fn row(&self, head: usize, row: usize) -> &'a [f32] {
        &self.data[head * self.strides[0] + row * self.strides[1]..][..self.columns]
    }
}

/// The two products.
#[derive(Clone, Copy)]
enum Few {
    Scores,
    Mixed,
}

/// `work` of each head and each piece of so many of its rows: by all threads, where there is more than one piece.
fn by_pieces(of: &Matrices<'_>, work: impl Fn(usize, std::ops::Range<usize>) -> Vec<f32> + Sync) -> Vec<Vec<f32>> {
    let step = (PIECE / of.columns).max(1);
    let pieces = of.rows.div_ceil(step);
    let piece = |i: usize| {
        let start = i % pieces * step;
        work(i / pieces, start..of.rows.min(start + step))
    };
    if of.heads * pieces == 1 { vec![piece(0)] } else { (0..of.heads * pieces).into_par_iter().map(piece).collect() }
}

fn scores_of(q: &Matrices<'_>, k: &Matrices<'_>) -> Vec<f32> {
    let pieces = by_pieces(k, |head, keys| {
        let mut out = vec![0f32; q.rows * keys.len()];
        vectorized(
            #[inline(always)]
            || {
                for (i, key) in keys.clone().enumerate() {
                    for query in 0..q.rows {
                        out[query * keys.len() + i] = dot(q.row(head, query), k.row(head, key));
                    }
                }
            },
        );
        out
    });
    let mut out = Vec::with_capacity(k.heads * q.rows * k.rows);
    for pieces in pieces.chunks(pieces.len() / k.heads) {
        for query in 0..q.rows {
            for piece in pieces {
                let keys = piece.len() / q.rows;
                out.extend_from_slice(&piece[query * keys..][..keys]);
            }
        }
    }
    out
}

fn mixed_of(weights: &Matrices<'_>, v: &Matrices<'_>) -> Vec<f32> {
    let pieces = by_pieces(v, |head, keys| {
        let mut out = vec![0f32; weights.rows * v.columns];
        vectorized(
            #[inline(always)]
            || {
                for first in keys.clone().step_by(TOGETHER) {
                    let left = TOGETHER.min(keys.end - first);
                    for (query, out) in out.chunks_exact_mut(v.columns).enumerate() {
                        let weights = &weights.row(head, query)[first..][..left];
                        match weights {
                            &[a, b, c, d] => {
                                let [va, vb, vc, vd] = [0, 1, 2, 3].map(|i| v.row(head, first + i));
                                for ((((o, va), vb), vc), vd) in out.iter_mut().zip(va).zip(vb).zip(vc).zip(vd) {
                                    *o += (a * va + b * vb) + (c * vc + d * vd);
                                }
                            }
                            few => {
                                for (i, w) in few.iter().enumerate() {
                                    out.iter_mut().zip(v.row(head, first + i)).for_each(|(o, v)| *o += w * v);
                                }
                            }
                        }
                    }
                }
            },
        );
        out
    });
    // In the pieces' order, whichever thread was through first.
    let mut out = Vec::with_capacity(v.heads * weights.rows * v.columns);
    for pieces in pieces.chunks(pieces.len() / v.heads) {
        let start = out.len();
        out.extend_from_slice(&pieces[0]);
        for piece in &pieces[1..] {
            out[start..].iter_mut().zip(piece).for_each(|(sum, x)| *sum += x);
        }
    }
    out
}

impl CustomOp2 for Few {
    fn name(&self) -> &'static str {
        "few_queries"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, y) = (Matrices::new(x, x_layout)?, Matrices::new(y, y_layout)?);
        let (out, columns) = match self {
            Few::Scores => (scores_of(&x, &y), y.rows),
            Few::Mixed => (mixed_of(&x, &y), y.columns),
        };
        Ok((CpuStorage::F32(out), (x.heads, x.rows, columns).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Draws;

    /// Views of a cache, of more keys than a piece has. Sums of 300 products of normal numbers may differ by 1e-4 in another order
    /// (`few_rows`); those of 601 by twice that.
    #[test]
    fn few_queries_are_the_matmul_but_for_the_order_of_sums() -> Result<()> {
        let draws = Draws::default();
        let cache = draws.normal(&[2, 700, 300])?;
        let off = |a: &Tensor, b: Tensor| (a - b)?.abs()?.max_all()?.to_scalar::<f32>();
        for (n, keys) in [(1, 601), (2, 601), (3, 218), (MOST_ROWS, 601), (MOST_ROWS, 3), (MOST_ROWS + 1, 601)] {
            let k = cache.narrow(1, 5, keys)?;
            let q = draws.normal(&[2, n, 300])?;
            let got = scores(&q, &k)?;
            assert_eq!(got.dims(), [2, n, keys]);
            assert!(off(&got, q.matmul(&k.t()?)?)? < 1e-4, "{n} queries by {keys} keys");

            let weights = draws.normal(&[2, n, keys + 2])?.narrow(2, 0, keys)?;
            let got = mixed(&weights, &k)?;
            assert_eq!(got.dims(), [2, n, 300]);
            assert!(off(&got, weights.matmul(&k)?)? < 2e-4, "weights of {n} queries by {keys} values");
        }
        Ok(())
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused_and_a_number_that_is_none_stays_so() -> Result<()> {
        let draws = Draws::default();
        let (q, k) = (draws.normal(&[2, 1, 8])?, draws.normal(&[2, 5, 9])?);
        assert!(scores(&q, &k).is_err() && mixed(&q, &k).is_err());
        let nan = Tensor::full(f32::NAN, (1, 1, 4), q.device())?;
        let ones = nan.ones_like()?;
        assert!(scores(&nan, &ones)?.flatten_all()?.to_vec1::<f32>()?[0].is_nan());
        assert!(mixed(&ones.narrow(2, 0, 1)?, &nan)?.flatten_all()?.to_vec1::<f32>()?[0].is_nan());
        Ok(())
    }
}
