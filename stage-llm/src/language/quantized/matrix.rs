//! Weights of linear layers and embeddings, dense or in blocks.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use compute::kernels::few_rows::{MOST_ROWS, few_rows};
use compute::kernels::{E4m3Rows, Rows, linear_in_stretches};

use super::blocks::Blocks;
#[cfg(feature = "cuda")]
use super::cuda::gemm::{GEMM_ROWS, gemm};
#[cfg(feature = "cuda")]
use super::cuda::{self, GEMV_ROWS, Source};

/// Most bytes of expanded weights that a matmul holds at a time: half of the 9B model's largest decoder matrix, 103 MB.
pub const EXPANDED_BYTES: usize = 100 << 20;

/// Most rows that are multiplied with the whole numbers of blocks, each group's sum scaled; more are with the blocks' values in
/// 16 bit.
#[cfg(feature = "cuda")]
const GEMV_BLOCK_ROWS: usize = 1;

/// Weights W `[outputs, inputs]` of a linear layer `y = x Wᵀ`, or of an embedding.
#[derive(Debug, Clone)]
pub enum WeightMatrix {
    /// Weights as in the checkpoint.
    Dense(Tensor),
    /// Weights in blocks.
    Blocks(Blocks),
}

/// `x Wᵀ` of contiguous rows; a CPU reads a dense matrix for few rows as it is.
fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    match few_rows(x, weight)? {
        Some(y) => Ok(y),
        None => x.matmul(&weight.t()?),
    }
}

impl WeightMatrix {
    /// Number of outputs and of inputs.
    ///
    /// # Errors
    /// Weights that are not a matrix.
    pub fn dims(&self) -> Result<(usize, usize)> {
        match self {
            WeightMatrix::Dense(w) => w.dims2(),
            WeightMatrix::Blocks(b) => Ok(b.dims()),
        }
    }

    /// Matmul of rows `[m, inputs]`: `[m, outputs]` in their type, accumulated in f32.
    ///
    /// # Errors
    /// Errors of candle; shapes and types that do not match.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let ((m, k), (outputs, inputs)) = (x.dims2()?, self.dims()?);
        if k != inputs {
            candle_core::bail!("matmul refused: rows of {k} for a layer with {inputs} inputs");
        }
        #[cfg(feature = "cuda")]
        if let Some(y) = self.few_rows(x)? {
            return Ok(y);
        }
        match self {
            WeightMatrix::Dense(w) => product(&x.contiguous()?, w),
            WeightMatrix::Blocks(blocks) if x.device().is_cpu() && (1..=MOST_ROWS).contains(&m) => {
                blocks.few_rows(&x.to_dtype(DType::F32)?.contiguous()?)?.to_dtype(x.dtype())
            }
            WeightMatrix::Blocks(blocks) => {
                // A CPU multiplies in f32 whatever the type; nothing is lost by expanding to it.
                let dtype = if x.device().is_cpu() { DType::F32 } else { x.dtype() };
                let wide = x.to_dtype(dtype)?.contiguous()?;
                let most = EXPANDED_BYTES / (inputs * dtype.size_in_bytes());
                let y = linear_in_stretches(&wide, outputs, most, |rows| blocks.dequantize(rows, dtype))?;
                debug_assert_eq!(y.dims(), [m, outputs]);
                y.to_dtype(x.dtype())
            }
        }
    }

    /// [`forward`](Self::forward), of some of the outputs only.
    ///
    /// # Errors
    /// As `forward`.
    fn forward_rows(&self, x: &Tensor, outputs: Range<usize>) -> Result<Tensor> {
        let weight = match self {
            WeightMatrix::Dense(w) => w.narrow(0, outputs.start, outputs.len())?,
            WeightMatrix::Blocks(blocks) => blocks.dequantize(outputs, x.dtype())?,
        };
        product(x, &weight)
    }

    /// [`forward`](Self::forward) of rows in either precision, of some of the outputs only, `[m, outputs]` in `dtype`.
    /// Rows in E4M3 are multiplied with `kept`, which are [`e4m3`](Self::e4m3) of these outputs; without it with what is made
    /// for this matmul only: that costs a fraction of a pass of many rows, and no memory that stays.
    ///
    /// # Errors
    /// As `forward`.
    pub fn times(&self, x: &Rows, kept: Option<&E4m3Rows>, outputs: Range<usize>, dtype: DType) -> Result<Tensor> {
        match (x, kept) {
            (Rows::Dense(x), _) if outputs.len() == self.dims()?.0 => self.forward(x),
            (Rows::Dense(x), _) => self.forward_rows(x, outputs),
            (Rows::E4m3(x), Some(kept)) => x.matmul(kept, None, dtype),
            (Rows::E4m3(x), None) => x.matmul(&self.e4m3(outputs)?, None, dtype),
        }
    }

    /// All rows in E4M3: those that are kept, or what is made for one matmul.
    ///
    /// # Errors
    /// As [`e4m3`](Self::e4m3).
    pub fn kept_or_e4m3<'a>(&self, kept: Option<&'a E4m3Rows>) -> Result<Cow<'a, E4m3Rows>> {
        match kept {
            Some(kept) => Ok(Cow::Borrowed(kept)),
            None => self.e4m3(0..self.dims()?.0).map(Cow::Owned),
        }
    }

    /// Rows of a range, each quantized to E4M3.
    ///
    /// # Errors
    /// Errors of candle, when there is no memory; inputs that are no multiple of 16; rows beyond the matrix.
    pub fn e4m3(&self, outputs: Range<usize>) -> Result<E4m3Rows> {
        match self {
            WeightMatrix::Dense(w) => E4m3Rows::quantize(&w.narrow(0, outputs.start, outputs.len())?),
            WeightMatrix::Blocks(blocks) => blocks.e4m3(outputs),
        }
    }

    /// All weights `[outputs, inputs]` in `dtype`.
    ///
    /// # Errors
    /// Errors of candle, when there is no memory.
    pub fn expanded(&self, dtype: DType) -> Result<Tensor> {
        match self {
            WeightMatrix::Dense(w) => w.to_dtype(dtype),
            WeightMatrix::Blocks(blocks) => blocks.dequantize(0..blocks.dims().0, dtype),
        }
    }

    /// Embedding of the numbers `ids`: their rows times a factor, `[ids, inputs]` in `dtype`. A row is rounded to
    /// `dtype` before it is scaled, as a dense one is; the factor is rounded to it, too (MODEL.md 7).
    ///
    /// # Errors
    /// Errors of candle; on the CPU, a number beyond the rows.
    pub fn gather(&self, ids: &Tensor, dtype: DType, scale: f64) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if ids.device().is_cuda() {
            let scale =
                Tensor::new(scale, &candle_core::Device::Cpu)?.to_dtype(dtype)?.to_dtype(DType::F32)?.to_scalar()?;
            let source = match self {
                WeightMatrix::Dense(w) if w.dtype() != dtype => {
                    candle_core::bail!("embedding refused: {:?} rows as {dtype:?}", w.dtype())
                }
                _ => self.source(),
            };
            return cuda::take(source, Some(ids), 0..ids.elem_count(), scale, dtype);
        }
        let rows = match self {
            WeightMatrix::Dense(w) => w.index_select(ids, 0)?.to_dtype(dtype)?,
            WeightMatrix::Blocks(b) => b.gather(&ids.to_vec1()?, dtype)?,
        };
        rows * scale
    }

    /// Matmul of so few rows that it is bound by reading the weights, by kernels that read them once, where there is one.
    #[cfg(feature = "cuda")]
    fn few_rows(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let m = x.dim(0)?;
        if m == 0 || !cuda::takes(self.source(), x) {
            return Ok(None);
        }
        match self {
            WeightMatrix::Blocks(b) if m > GEMV_BLOCK_ROWS && m <= GEMM_ROWS => gemm(b.raw(), x).map(Some),
            _ if m <= GEMV_ROWS => cuda::gemv(self.source(), x).map(Some),
            _ => Ok(None),
        }
    }

    /// Weights as kernels take them.
    #[cfg(feature = "cuda")]
    fn source(&self) -> Source<'_> {
        match self {
            WeightMatrix::Dense(w) => Source::Dense(w),
            WeightMatrix::Blocks(b) => Source::Blocks(b.raw()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::quantized::BlockFormat;
    use candle_core::Device;
    use compute::random::Draws;

    const FORMATS: [BlockFormat; 3] = [BlockFormat::Q8_0, BlockFormat::Q4K, BlockFormat::Q6K];

    fn error(got: &Tensor, exact: &Tensor) -> f32 {
        let rms = |t: Tensor| t.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        rms((got - exact).unwrap()) / rms(exact.clone())
    }

    #[test]
    fn products_and_rows_are_those_of_the_expanded_matrix_and_near_those_of_the_dense_one() {
        let (rows, cols) = (70, 512);
        let draws = Draws::default();
        let (w, x) = (draws.normal((rows, cols)).unwrap(), draws.normal((11, cols)).unwrap());
        let values: Vec<f32> = w.flatten_all().unwrap().to_vec1().unwrap();
        let exact = WeightMatrix::Dense(w).forward(&x).unwrap();
        for (format, bound) in FORMATS.into_iter().zip([0.007, 0.09, 0.025]) {
            let bytes = format.quantize(&values, cols).unwrap();
            let blocks = Blocks::new(format, rows, cols, &bytes, &Device::Cpu).unwrap();
            let expanded = blocks.dequantize(0..rows, DType::F32).unwrap();
            let part = blocks.dequantize(13..60, DType::F32).unwrap();
            assert_eq!(error(&part, &expanded.narrow(0, 13, 47).unwrap()), 0.0);
            let linear = WeightMatrix::Blocks(blocks);
            let y = linear.forward(&x).unwrap();
            assert!(error(&y, &x.matmul(&expanded.t().unwrap()).unwrap()) < 1e-6);
            let of_product = error(&y, &exact);
            println!("{format:?}: error of the matmul {of_product:.4}");
            assert!(of_product < bound, "{format:?}: {of_product}");
            let ids = Tensor::new(&[69u32, 0, 5], &Device::Cpu).unwrap();
            let rows = linear.gather(&ids, DType::F32, 2.0).unwrap();
            assert_eq!(error(&rows, &(expanded.index_select(&ids, 0).unwrap() * 2.0).unwrap()), 0.0);
            assert!(linear.gather(&Tensor::new(&[70u32], &Device::Cpu).unwrap(), DType::F32, 1.0).is_err());
        }
    }
}
