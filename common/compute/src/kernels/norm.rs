//! Norms over the last axis.

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::{self, Arg};
#[cfg(feature = "cuda")]
use super::e4m3::ALIGNMENT;
use super::e4m3::E4m3Rows;
use super::real::{Real, elements, expect, rounded, weights, with_real};
use super::rows::Rows;
use config::MediaProducts;

#[cfg(feature = "cuda")]
static NORM: cuda::Kernels = cuda::Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/norm.fatbin")));

/// `x / sqrt(mean(x^2) + eps) * gain` of `x` `[.., D]`, all in f32 and rounded once. `gain` is f32 `[D]`: for Gemma,
/// `1 + w` (MODEL.md 7); for Mistral `w`, where the reference rounds before the gain, too (MODEL-7B.md, "Language model"):
/// the same in f32, and in 16 bits closer to it by that rounding.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn rms_norm(x: &Tensor, gain: &Tensor, eps: f32) -> Result<Tensor> {
    rms_norm_rows(x, gain, eps, MediaProducts::Dense).map(Rows::dense)
}

/// [`rms_norm`] of `x` `[n, D]`, ready to be multiplied.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn rms_norm_rows(x: &Tensor, gain: &Tensor, eps: f32, products: MediaProducts) -> Result<Rows> {
    expect(gain, x.dim(D::Minus1)?, DType::F32, "the gain of an RMS norm")?;
    Norm { kind: Kind::Rms { gain }, eps, products }.apply(x)
}

/// `x / sqrt(mean(x^2) + eps)` rounded to T, then times `weight` `[D]` of type T, if any, and rounded again: the
/// adapters' norm (MODEL.md 4).
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn rms(x: &Tensor, weight: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    if let Some(weight) = weight {
        expect(weight, x.dim(D::Minus1)?, x.dtype(), "the weight of an RMS norm")?;
    }
    let products = MediaProducts::Dense;
    Norm { kind: Kind::RoundedRms { weight }, eps, products }.apply(x).map(Rows::dense)
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` of `x` `[.., D]`, all in f32 and rounded once; `weight` and `bias`
/// `[D]` of type T. The variance is taken in a second pass: `E[x^2] - E[x]^2` loses digits where the mean is large.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    LayerNorm { weight, bias, eps, products: MediaProducts::Dense }.forward(x).map(Rows::dense)
}

/// A layer norm with its weights, of type T.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// `[D]`.
    pub weight: &'a Tensor,
    /// `[D]`.
    pub bias: &'a Tensor,
    /// Added to the variance.
    pub eps: f32,
    /// How the outcome is going to be multiplied.
    pub products: MediaProducts,
}

impl<'a> LayerNorm<'a> {
    /// [`layer_norm`] of `x` `[.., D]`; for 8 bits, `[n, D]`.
    ///
    /// # Errors
    /// Shapes and types that do not fit; the device's.
    pub fn forward(&self, x: &Tensor) -> Result<Rows> {
        self.of(x)?.apply(x)
    }

    /// The norm of rows like `x`'s.
    pub(super) fn of(&self, x: &Tensor) -> Result<Norm<'a>> {
        let columns = x.dim(D::Minus1)?;
        expect(self.weight, columns, x.dtype(), "the weight of a layer norm")?;
        expect(self.bias, columns, x.dtype(), "the bias of a layer norm")?;
        let kind = Kind::Layer { weight: self.weight, bias: self.bias };
        Ok(Norm { kind, eps: self.eps, products: self.products })
    }
}

/// A norm of rows.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub kind: Kind<'a>,
    pub eps: f32,
    /// What its outcome is for. In 8 bits it is quantized once it is rounded to T, on a GPU by the same kernel.
    pub products: MediaProducts,
}

/// A norm's formula and parameters.
#[derive(Clone, Copy)]
pub(super) enum Kind<'a> {
    Rms { gain: &'a Tensor },
    RoundedRms { weight: Option<&'a Tensor> },
    Layer { weight: &'a Tensor, bias: &'a Tensor },
}

/// `f` of every element, summed in sixteen parts: as exact as a tree, and what vector units do well.
fn sum<T: Real>(x: &[T], f: impl Fn(f32) -> f32) -> f32 {
    let mut parts = [0f32; 16];
    for chunk in x.chunks(parts.len()) {
        for (part, v) in parts.iter_mut().zip(chunk) {
            *part += f(v.wide());
        }
    }
    parts.iter().sum()
}

/// One over the root of the mean of squares.
pub(super) fn inverse_rms<T: Real>(x: &[T], eps: f32) -> f32 {
    1.0 / (sum(x, |v| v * v) / x.len() as f32 + eps).sqrt()
}

impl Norm<'_> {
    fn apply(&self, x: &Tensor) -> Result<Rows> {
        self.made(x.apply_op1_no_bwd(self)?, x)
    }

    /// What an operation over rows `x` has left, as rows.
    pub(super) fn made(&self, outcome: Tensor, x: &Tensor) -> Result<Rows> {
        match self.products {
            MediaProducts::Dense => Ok(Rows::Dense(outcome)),
            MediaProducts::Fp8 if x.device().is_cpu() => Rows::new(&outcome, self.products),
            MediaProducts::Fp8 => {
                let (rows, columns) = x.dims2()?;
                Ok(Rows::E4m3(E4m3Rows::from_bytes(outcome, rows, columns)?))
            }
        }
    }

    /// Memory for the outcome over rows of a shape, and its addresses as the kernels end in them: in T, in 8 bits, scales.
    #[cfg(feature = "cuda")]
    pub(super) fn outcome(&self, device: &candle_core::CudaDevice, shape: &Shape, dtype: DType) -> Result<Outcome> {
        match self.products {
            MediaProducts::Dense => {
                let storage = cuda::allocate(device, shape, dtype)?;
                let arguments = [cuda::start(&storage)?, cuda::NULL, cuda::NULL];
                Ok(Outcome { storage, shape: shape.clone(), arguments })
            }
            MediaProducts::Fp8 => {
                let (rows, columns) = shape.dims2()?;
                if !columns.is_multiple_of(ALIGNMENT) {
                    candle_core::bail!("E4M3 rows have multiples of {ALIGNMENT} columns, not {columns}");
                }
                let shape = Shape::from(E4m3Rows::bytes(rows, columns));
                let storage = cuda::allocate(device, &shape, DType::U8)?;
                let bytes = cuda::start(&storage)?;
                let scales = Arg::Pointer(bytes.address() + (rows * columns) as u64);
                Ok(Outcome { storage, shape, arguments: [cuda::NULL, bytes, scales] })
            }
        }
    }

    /// The norm of each row, on the CPU.
    pub(super) fn rows<T: Real>(&self, x: &[T], columns: usize) -> Result<Vec<T>> {
        let mut out = vec![T::zero(); x.len()];
        let rows = out.par_chunks_mut(columns).zip(x.par_chunks(columns));
        match self.kind {
            Kind::Rms { gain } => {
                let gain = weights(gain)?;
                rows.for_each(|(out, x)| {
                    let inverse = inverse_rms(x, self.eps);
                    for ((out, v), g) in out.iter_mut().zip(x).zip(&gain) {
                        *out = T::narrow(v.wide() * inverse * g);
                    }
                });
            }
            Kind::RoundedRms { weight } => {
                let weight = weight.map(weights).transpose()?.unwrap_or_else(|| vec![1.0; columns]);
                rows.for_each(|(out, x)| {
                    let inverse = inverse_rms(x, self.eps);
                    for ((out, v), w) in out.iter_mut().zip(x).zip(&weight) {
                        *out = T::narrow(rounded::<T>(v.wide() * inverse) * w);
                    }
                });
            }
            Kind::Layer { weight, bias } => {
                let (weight, bias) = (weights(weight)?, weights(bias)?);
                rows.for_each(|(out, x)| {
                    let mean = sum(x, |v| v) / columns as f32;
                    let variance = sum(x, |v| (v - mean) * (v - mean)) / columns as f32;
                    let inverse = 1.0 / (variance + self.eps).sqrt();
                    for (((out, v), w), b) in out.iter_mut().zip(x).zip(&weight).zip(&bias) {
                        *out = T::narrow((v.wide() - mean) * inverse * w + b);
                    }
                });
            }
        }
        Ok(out)
    }
}

impl CustomOp1 for Norm<'_> {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Rms { .. } => "rms_norm",
            Kind::RoundedRms { .. } => "rms",
            Kind::Layer { .. } => "layer_norm",
        }
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let columns = layout.dims()[layout.dims().len() - 1];
        let out = with_real!(x.dtype(), T => T::storage(self.rows::<T>(elements(x, layout)?, columns)?));
        Ok((out, layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let out = self.outcome(&x.device, layout.shape(), x.dtype())?;
        let mut arguments = vec![cuda::pointer(x, layout)?];
        match self.kind {
            Kind::Rms { gain } => arguments.push(cuda::tensor_pointer(gain)?),
            Kind::RoundedRms { weight } => arguments.push(cuda::optional_pointer(weight)?),
            Kind::Layer { weight, bias } => {
                arguments.extend([cuda::tensor_pointer(weight)?, cuda::tensor_pointer(bias)?]);
            }
        }
        let ends = if matches!(self.kind, Kind::RoundedRms { .. }) { 1 } else { 3 };
        arguments.extend(&out.arguments[..ends]);
        launch(self.name(), x, layout, self.eps, arguments)?;
        Ok((out.storage, out.shape))
    }
}

/// Where a kernel leaves its outcome.
#[cfg(feature = "cuda")]
pub(super) struct Outcome {
    pub storage: candle_core::CudaStorage,
    pub shape: Shape,
    /// Addresses: in T, in 8 bits, of the scales. Those of another form are null.
    pub arguments: [Arg; 3],
}

/// Launches a kernel of `norm.cu` over the rows of `x`; all of them end in rows, columns, eps and alignment.
#[cfg(feature = "cuda")]
pub(super) fn launch(
    name: &str,
    x: &candle_core::CudaStorage,
    layout: &Layout,
    eps: f32,
    mut arguments: Vec<Arg>,
) -> Result<()> {
    use candle_core::backend::BackendStorage;
    /// Packs of 16 bytes that a thread keeps where a block makes a row, and where a warp does, as in `norm.cu`.
    const HELD: usize = 2;
    const HELD_NARROW: usize = 5;
    /// Rows that a block of warps makes.
    const WARPS: usize = 4;
    let columns = layout.dims()[layout.dims().len() - 1];
    let bytes = x.dtype().size_in_bytes();
    let rows = layout.shape().elem_count() / columns;
    let packs = (columns * bytes).div_ceil(16);
    let narrow = packs <= 32 * HELD_NARROW;
    let threads = packs.div_ceil(HELD).next_multiple_of(32);
    if threads > 1024 {
        candle_core::bail!("{name}: a block holds rows of up to {} values, not {columns}", 1024 * HELD * 16 / bytes);
    }
    arguments.extend([rows.into(), columns.into(), eps.into(), cuda::aligned(columns * bytes, &arguments)]);
    let (kind, blocks, threads) =
        if narrow { ("narrow_", rows.div_ceil(WARPS), 32 * WARPS) } else { ("", rows, threads) };
    let name = format!("{name}_{kind}{}", cuda::suffix(x.dtype())?);
    let grid = cuda::grid((blocks, 1, 1), threads, 0);
    // SAFETY: the callers' arguments are the kernel's, rows and weights of the shapes that the public functions expect. All of
    // them wait before anything else.
    unsafe {
        match rows <= cuda::FEW_ROWS {
            true => NORM.launch_ahead(&x.device, &name, grid, &arguments),
            false => NORM.launch(&x.device, &name, grid, &arguments),
        }
    }
}
