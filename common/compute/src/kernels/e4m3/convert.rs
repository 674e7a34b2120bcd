//! Quantizing on a GPU: rows, or what an activation makes of them, to E4M3 in one pass.

#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};

#[cfg(feature = "cuda")]
use super::code::row_bytes;
#[cfg(feature = "cuda")]
use super::gpu::{E4M3, threads};
use super::product::Left;
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::pointwise::Activation;

/// What a row's values are before they are quantized.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// Themselves.
    Rows,
    /// A gated activation of gates and values side by side.
    Glu(Activation),
    /// Their tanh GELU.
    GeluTanh,
    /// Their exact GELU.
    GeluErf,
}

impl Source {
    /// Values that come of a row of `width`.
    pub fn columns(self, width: usize) -> usize {
        match self {
            Source::Glu(_) => width / 2,
            _ => width,
        }
    }
}

/// The operation that makes bytes of rows on a GPU: numbers, then scales.
pub struct ToE4m3<'a> {
    /// What a matmul has left to do to its outcome, if it is one's.
    pub left: Option<Left<'a>>,
    /// What the values are made of.
    pub source: Source,
}

impl CustomOp1 for ToE4m3<'_> {
    fn name(&self) -> &'static str {
        match (self.source, &self.left) {
            (Source::Rows, _) => "e4m3_rows",
            (Source::Glu(Activation::GeluTanh), None) => "e4m3_geglu",
            (Source::Glu(Activation::Silu), None) => "e4m3_swiglu",
            (Source::GeluTanh, None) => "e4m3_gelu_tanh",
            (Source::GeluErf, None) => "e4m3_gelu_erf",
            (Source::Glu(Activation::GeluTanh), Some(_)) => "e4m3_geglu_left",
            (Source::Glu(Activation::Silu), Some(_)) => "e4m3_swiglu_left",
            (Source::GeluTanh, Some(_)) => "e4m3_gelu_tanh_left",
            (Source::GeluErf, Some(_)) => "e4m3_gelu_erf_left",
        }
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("on a CPU, E4M3 rows are candle's, of {:?} {:?}", self.source, self.left)
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let (rows, width) = layout.shape().dims2()?;
        let columns = self.source.columns(width);
        let shape = Shape::from(row_bytes(rows, columns));
        let out = cuda::allocate(&x.device, &shape, DType::U8)?;
        let (from, stride) = cuda::rows(x, layout)?;
        let bytes = cuda::start(&out)?.address();
        let [by_row, by_column, bias] = match &self.left {
            Some(left) => left.pointers()?,
            None => [cuda::NULL; 3],
        };
        let arguments = [
            cuda::Arg::Pointer(from),
            stride.into(),
            cuda::Arg::Pointer(bytes),
            cuda::Arg::Pointer(bytes + (rows * columns) as u64),
            columns.into(),
            by_row,
            by_column,
            bias,
        ];
        let name = format!("{}_{}", self.name(), cuda::suffix(x.dtype())?);
        let threads = threads(columns)?;
        // SAFETY: the arguments are the kernel's as e4m3.cu declares them: rows that begin on 16 bytes, of as many columns
        // as `new` has checked, memory for numbers and scales, and the scales and bias of a matmul of this shape.
        unsafe { E4M3.launch(&x.device, &name, cuda::grid((rows, 1, 1), threads, 0), &arguments) }?;
        Ok((out, shape))
    }
}
