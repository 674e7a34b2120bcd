//! Few rows by a matrix on the CPU, as a decode step multiplies: the matrix is read once, by all threads, as it is stored. candle's
//! matmul reads it on one thread for a single row, and writes a copy in f32 first where it is bf16.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::real::{Real, elements};
use crate::elementary::vectorized;

/// Most rows that are multiplied so. Each reads a row of the matrix from a core's own cache; of more rows a matmul in tiles makes more.
pub const MOST_ROWS: usize = 4;
/// Values of the matrix that a thread takes at a time.
pub(super) const PIECE: usize = 1 << 16;
/// Partial sums of a dot product, side by side: four registers of AVX-512.
const LANES: usize = 64;

/// `x Wᵀ` of rows x `[n, k]` and W `[m, k]`, `[n, m]`, accumulated in f32 and rounded once. None where a matmul is better: on a GPU, of
/// more than [`MOST_ROWS`] rows, of other types than f32 and bf16, or of views.
///
/// # Errors
/// Shapes that do not fit.
pub fn few_rows(x: &Tensor, weight: &Tensor) -> Result<Option<Tensor>> {
    let ((rows, columns), (_, inputs)) = (x.dims2()?, weight.dims2()?);
    let known = matches!(x.dtype(), DType::F32 | DType::BF16) && x.dtype() == weight.dtype();
    if rows == 0 || rows > MOST_ROWS || !known || !x.device().is_cpu() || !x.is_contiguous() || !weight.is_contiguous()
    {
        return Ok(None);
    }
    if columns != inputs {
        candle_core::bail!("rows {x:?} by {weight:?}");
    }
    x.apply_op2_no_bwd(weight, &FewRows).map(Some)
}

/// A stored value of a matrix, widened by arithmetic that becomes vector code.
pub(super) trait Stored: Real {
    fn widened(self) -> f32;
}

impl Stored for f32 {
    #[inline(always)]
    fn widened(self) -> f32 {
        self
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn widened(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// The dot product of two rows of one length.
#[inline(always)]
pub(super) fn dot<T: Stored>(x: &[f32], weight: &[T]) -> f32 {
    let mut sums = [0f32; LANES];
    let (x_chunks, w_chunks) = (x.chunks_exact(LANES), weight.chunks_exact(LANES));
    let rest: f32 = x_chunks.remainder().iter().zip(w_chunks.remainder()).map(|(x, w)| x * w.widened()).sum();
    for (x, w) in x_chunks.zip(w_chunks) {
        for ((sum, x), w) in sums.iter_mut().zip(x).zip(w) {
            *sum += x * w.widened();
        }
    }
    folded(&mut sums) + rest
}

/// Sum of a power of two of partial sums, in halves, so that this, too, is vector code.
#[inline(always)]
fn folded(sums: &mut [f32]) -> f32 {
    let mut left = sums.len() / 2;
    while left > 0 {
        let (low, high) = sums.split_at_mut(left);
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
        left /= 2;
    }
    sums[0]
}

/// `x Wᵀ` of rows `x` in f32 of `inputs` values and a piece of a matrix's rows: outcomes of the first row of `x`, then of the next.
///
/// # Panics
/// If `out` does not have a number for each row of both.
pub fn dots(x: &[f32], inputs: usize, weight: &[f32], out: &mut [f32]) {
    dots_of(x, inputs, weight, out, |out, y| *out = y);
}

/// Values of a block of GGUF's `Q8_0`, and its bytes: an f16 scale before them.
const BLOCK: usize = 32;
const BLOCK_BYTES: usize = 2 + BLOCK;

/// [`dots`] with a piece of a matrix in blocks of GGUF's `Q8_0`, whose values are nowhere expanded.
///
/// # Panics
/// If rows are not whole blocks, or `out` does not have a number for each row of both.
pub fn dots_q8(x: &[f32], inputs: usize, weight: &[u8], out: &mut [f32]) {
    let row_bytes = inputs / BLOCK * BLOCK_BYTES;
    let outputs = weight.len() / row_bytes;
    assert!(
        inputs.is_multiple_of(BLOCK) && out.len() == x.len() / inputs * outputs,
        "outcomes of {outputs} rows of {inputs}"
    );
    vectorized(
        #[inline(always)]
        || {
            for (o, weight) in weight.chunks_exact(row_bytes).enumerate() {
                for (r, x) in x.chunks_exact(inputs).enumerate() {
                    out[r * outputs + o] = dot_q8(x, weight);
                }
            }
        },
    );
}

/// An f16 as f32, exactly, of numbers that are finite: by its bits, which lie three to the left there and count from 2^-112.
#[inline(always)]
fn f16_bits(bits: u16) -> f32 {
    let size = f32::from_bits(u32::from(bits & 0x7FFF) << 13) * f32::from_bits((127 + 112) << 23);
    if bits & 0x8000 == 0 { size } else { -size }
}

#[inline(always)]
fn dot_q8(x: &[f32], blocks: &[u8]) -> f32 {
    let mut sums = [0f32; BLOCK];
    for (x, block) in x.chunks_exact(BLOCK).zip(blocks.chunks_exact(BLOCK_BYTES)) {
        let scale = f16_bits(u16::from_le_bytes([block[0], block[1]]));
        for ((sum, x), q) in sums.iter_mut().zip(x).zip(&block[2..]) {
            *sum += x * (scale * f32::from(*q as i8));
        }
    }
    folded(&mut sums)
}

fn dots_of<T: Stored, U>(x: &[f32], inputs: usize, weight: &[T], out: &mut [U], store: impl Fn(&mut U, f32) + Copy) {
    let outputs = weight.len() / inputs;
    assert_eq!(out.len(), x.len() / inputs * outputs, "outcomes of {outputs} rows of {inputs}");
    vectorized(
        #[inline(always)]
        || {
            for (o, weight) in weight.chunks_exact(inputs).enumerate() {
                for (r, x) in x.chunks_exact(inputs).enumerate() {
                    store(&mut out[r * outputs + o], dot(x, weight));
                }
            }
        },
    );
}

struct FewRows;

impl FewRows {
    fn outcome<T: Stored>(x: &[T], weight: &[T], inputs: usize) -> Vec<T> {
        let (rows, outputs) = (x.len() / inputs, weight.len() / inputs);
        let wide: Vec<f32> = x.iter().map(|x| x.wide()).collect();
        let step = (PIECE / inputs).max(1);
        // Piece by piece, each with its outcomes of all rows; one row's lie where they belong.
        let mut by_piece = vec![T::zero(); rows * outputs];
        let pieces = by_piece.par_chunks_mut(rows * step).zip(weight.par_chunks(step * inputs));
        pieces.for_each(|(out, weight)| dots_of(&wide, inputs, weight, out, |out, y| *out = T::narrow(y)));
        if rows == 1 {
            return by_piece;
        }
        let pieces: Vec<(&[T], usize)> =
            by_piece.chunks(rows * step).map(|piece| (piece, piece.len() / rows)).collect();
        (0..rows).flat_map(|r| pieces.iter().flat_map(move |(piece, n)| piece[r * n..][..*n].iter().copied())).collect()
    }
}

impl CustomOp2 for FewRows {
    fn name(&self) -> &'static str {
        "few_rows"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let ((rows, inputs), (outputs, _)) = (x_layout.shape().dims2()?, w_layout.shape().dims2()?);
        let out = match x.dtype() {
            DType::F32 => f32::storage(Self::outcome::<f32>(elements(x, x_layout)?, elements(w, w_layout)?, inputs)),
            _ => bf16::storage(Self::outcome::<bf16>(elements(x, x_layout)?, elements(w, w_layout)?, inputs)),
        };
        Ok((out, (rows, outputs).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Draws;
    use candle_core::Device;

    fn off(a: &Tensor, b: &Tensor) -> Result<f32> {
        (a.to_dtype(DType::F32)? - b.to_dtype(DType::F32)?)?.abs()?.max_all()?.to_scalar()
    }

    /// Sums of 300 products of normal numbers are of the size of 17, and sums of their sizes of 190: in another order they may
    /// differ by 300 x 6e-8 x 190 at the very most.
    #[test]
    fn few_rows_are_the_matmul_but_for_the_order_of_sums() -> Result<()> {
        let draws = Draws::default();
        // More rows of the matrix than a piece has, and a last piece that is not full.
        let weight = draws.normal(&[501, 300])?;
        for rows in 1..=MOST_ROWS {
            let x = draws.normal(&[rows, 300])?;
            let Some(y) = few_rows(&x, &weight)? else { panic!("{rows} rows are few") };
            assert_eq!((y.dims(), y.dtype()), (&[rows, 501][..], DType::F32));
            assert!(off(&y, &x.matmul(&weight.t()?)?)? < 1e-4, "{rows} rows");

            let (x, weight) = (x.to_dtype(DType::BF16)?, weight.to_dtype(DType::BF16)?);
            let Some(y) = few_rows(&x, &weight)? else { panic!("{rows} rows are few in bf16, too") };
            let exact = x.to_dtype(DType::F32)?.matmul(&weight.to_dtype(DType::F32)?.t()?)?;
            assert_eq!(y.dtype(), DType::BF16);
            // Outcomes up to 128 are rounded to 8 bits.
            assert!(off(&y, &exact)? <= 0.251, "{rows} rows");
        }
        Ok(())
    }

    #[test]
    fn blocks_are_multiplied_as_their_values() {
        let (inputs, scales) = (64, [0x3C00u16, 0xB800, 0x0001, 0x7BFF]); // 1, -0.5, 2^-24, 65504
        assert_eq!(scales.map(f16_bits), scales.map(|bits| half::f16::from_bits(bits).to_f32()));
        let value = |i: usize| (i * 37 % 255) as i32 as u8;
        let block = |b: usize| scales[b].to_le_bytes().into_iter().chain((0..BLOCK).map(move |i| value(b * BLOCK + i)));
        let bytes: Vec<u8> = (0..4).flat_map(block).collect();
        let x: Vec<f32> = (0..2 * inputs).map(|i| (i % 5) as f32 - 1.5).collect();
        let mut out = [0f32; 4];
        dots_q8(&x, inputs, &bytes, &mut out);
        for (i, got) in out.into_iter().enumerate() {
            let (r, o) = (i / 2, i % 2);
            let term = |k: usize| {
                let at = o * inputs + k;
                f64::from(x[r * inputs + k]) * f64::from(f16_bits(scales[at / BLOCK])) * f64::from(value(at) as i8)
            };
            let (sum, sizes) = (0..inputs).map(term).fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
            assert!((f64::from(got) - sum).abs() <= 1e-6 * sizes, "{got} {sum}");
        }
    }

    #[test]
    fn views_and_many_rows_are_left_to_a_matmul() -> Result<()> {
        let draws = Draws::default();
        let (x, weight) = (draws.normal(&[2, 8])?, draws.normal(&[8, 8])?);
        assert!(few_rows(&x, &weight.t()?)?.is_none());
        assert!(few_rows(&draws.normal(&[MOST_ROWS + 1, 8])?, &weight)?.is_none());
        assert!(few_rows(&x.to_dtype(DType::F16)?, &weight.to_dtype(DType::F16)?)?.is_none());
        assert!(few_rows(&x, &draws.normal(&[8, 9])?).is_err(), "rows of 8 by a matrix of 9 columns");
        Ok(())
    }

    #[test]
    fn a_number_that_is_none_stays_so() -> Result<()> {
        let x = Tensor::new(&[[1f32, f32::NAN]], &Device::Cpu)?;
        let Some(y) = few_rows(&x, &Tensor::new(&[[1f32, 1.0]], &Device::Cpu)?)? else { panic!("one row is few") };
        assert!(y.to_vec2::<f32>()?[0][0].is_nan());
        Ok(())
    }
}
