//! Norms over the last axis, with the residual additions that come before them.

use std::cell::RefCell;

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CustomOp1, D, DType, InplaceOp2, Layout, Result, Shape, Storage, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::{self, Arg};
use super::real::{Real, elements, elements_mut, expect, rounded, weights, with_real};

/// `x / sqrt(mean(x^2) + eps) * gain` of `x` `[.., D]`, all in f32 and rounded once. `gain` is f32 `[D]`: for Gemma,
/// `1 + w` (MODEL.md 7).
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn rms_norm(x: &Tensor, gain: &Tensor, eps: f32) -> Result<Tensor> {
    expect(gain, x.dim(D::Minus1)?, DType::F32, "the gain of an RMS norm")?;
    x.apply_op1_no_bwd(&Norm { kind: Kind::Rms { gain }, eps })
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
    x.apply_op1_no_bwd(&Norm { kind: Kind::RoundedRms { weight }, eps })
}

/// `(x - mean) / sqrt(variance + eps) * weight + bias` of `x` `[.., D]`, all in f32 and rounded once; `weight` and `bias`
/// `[D]` of type T. The variance is taken in a second pass: `E[x^2] - E[x]^2` loses digits where the mean is large.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    LayerNorm { weight, bias, eps }.forward(x)
}

/// `x += rms_norm(y, gain)`, the norm rounded before the sum is, and then `rms_norm(x, next_gain)` if there is a next
/// gain. `x` `[.., D]` is overwritten, in every tensor that shares its storage; `y` has its shape; gains are f32 `[D]`.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn add_rms_norm(
    x: &Tensor,
    y: &Tensor,
    gain: &Tensor,
    next_gain: Option<&Tensor>,
    eps: f32,
) -> Result<Option<Tensor>> {
    for gain in [Some(gain), next_gain].into_iter().flatten() {
        expect(gain, x.dim(D::Minus1)?, DType::F32, "the gain of an RMS norm")?;
    }
    add(x, y, Sum::Normed { gain, eps }, next_gain.map(|gain| Norm { kind: Kind::Rms { gain }, eps }))
}

/// `x += y + bias`, each sum rounded to T, then held within `limit` on both sides. `x` `[.., D]` is overwritten, in every
/// tensor that shares its storage; `y` has its shape, `bias` is `[D]`, of type T.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn residual_add(x: &Tensor, y: &Tensor, bias: Option<&Tensor>, limit: Option<f32>) -> Result<()> {
    add(x, y, Sum::biased(x, bias, limit)?, None)?;
    Ok(())
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
}

impl<'a> LayerNorm<'a> {
    /// [`layer_norm`] of `x` `[.., D]`.
    ///
    /// # Errors
    /// Shapes and types that do not fit; the device's.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(&self.of(x)?)
    }

    /// [`residual_add`], then the norm of what `x` has become.
    ///
    /// # Errors
    /// Shapes and types that do not fit; the device's.
    pub fn after_adding(&self, x: &Tensor, y: &Tensor, bias: Option<&Tensor>, limit: Option<f32>) -> Result<Tensor> {
        let normed = add(x, y, Sum::biased(x, bias, limit)?, Some(self.of(x)?))?;
        Ok(normed.expect("a norm was asked for"))
    }

    fn of(&self, x: &Tensor) -> Result<Norm<'a>> {
        let columns = x.dim(D::Minus1)?;
        expect(self.weight, columns, x.dtype(), "the weight of a layer norm")?;
        expect(self.bias, columns, x.dtype(), "the bias of a layer norm")?;
        Ok(Norm { kind: Kind::Layer { weight: self.weight, bias: self.bias }, eps: self.eps })
    }
}

/// A norm of rows.
struct Norm<'a> {
    kind: Kind<'a>,
    eps: f32,
}

enum Kind<'a> {
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
fn inverse_rms<T: Real>(x: &[T], eps: f32) -> f32 {
    1.0 / (sum(x, |v| v * v) / x.len() as f32 + eps).sqrt()
}

impl Norm<'_> {
    fn rows<T: Real>(&self, x: &[T], columns: usize) -> Result<Vec<T>> {
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
        let out = cuda::room(&x.device, layout.shape(), x.dtype())?;
        let mut arguments = vec![cuda::pointer(x, layout)?];
        match self.kind {
            Kind::Rms { gain } => arguments.push(cuda::tensor_pointer(gain)?),
            Kind::RoundedRms { weight } => arguments.push(cuda::optional_pointer(weight)?),
            Kind::Layer { weight, bias } => {
                arguments.extend([cuda::tensor_pointer(weight)?, cuda::tensor_pointer(bias)?]);
            }
        }
        arguments.push(cuda::start(&out)?);
        launch(self.name(), x, layout, self.eps, arguments)?;
        Ok((out, layout.shape().clone()))
    }
}

/// What is added to the residual stream.
#[derive(Clone, Copy)]
enum Sum<'a> {
    Normed { gain: &'a Tensor, eps: f32 },
    Biased { bias: Option<&'a Tensor>, limit: f32 },
}

impl<'a> Sum<'a> {
    fn biased(x: &Tensor, bias: Option<&'a Tensor>, limit: Option<f32>) -> Result<Self> {
        if let Some(bias) = bias {
            expect(bias, x.dim(D::Minus1)?, x.dtype(), "the bias of an addition")?;
        }
        Ok(Sum::Biased { bias, limit: limit.unwrap_or(f32::INFINITY) })
    }
}

/// An addition in place with the norm of its outcome, in one pass over memory. candle's operations have one outcome: the
/// one in place is that, and the norm is left in `normed` for whoever asked for it.
struct AddNorm<'a> {
    sum: Sum<'a>,
    norm: Option<Norm<'a>>,
    normed: RefCell<Option<Storage>>,
}

fn add(x: &Tensor, y: &Tensor, sum: Sum, norm: Option<Norm>) -> Result<Option<Tensor>> {
    if x.shape() != y.shape() || x.dtype() != y.dtype() {
        candle_core::bail!("a sum of {x:?} and {y:?}");
    }
    let op = AddNorm { sum, norm, normed: RefCell::new(None) };
    x.inplace_op2(y, &op)?;
    let normed = op.normed.into_inner();
    Ok(normed.map(|storage| Tensor::from_storage(storage, x.shape(), BackpropOp::none(), false)))
}

impl AddNorm<'_> {
    fn rows<T: Real>(&self, x: &mut [T], y: &[T], columns: usize) -> Result<Option<Vec<T>>> {
        let rows = x.par_chunks_mut(columns).zip(y.par_chunks(columns));
        match self.sum {
            Sum::Normed { gain, eps } => {
                let gain = weights(gain)?;
                rows.for_each(|(x, y)| {
                    let inverse = inverse_rms(y, eps);
                    for ((x, y), g) in x.iter_mut().zip(y).zip(&gain) {
                        *x = T::narrow(x.wide() + rounded::<T>(y.wide() * inverse * g));
                    }
                });
            }
            Sum::Biased { bias, limit } => {
                let bias = bias.map(weights).transpose()?.unwrap_or_else(|| vec![0.0; columns]);
                rows.for_each(|(x, y)| {
                    for ((x, y), b) in x.iter_mut().zip(y).zip(&bias) {
                        let sum = rounded::<T>(x.wide() + rounded::<T>(y.wide() + b));
                        *x = T::narrow(sum.clamp(-limit, limit));
                    }
                });
            }
        }
        self.norm.as_ref().map(|norm| norm.rows(x, columns)).transpose()
    }
}

impl InplaceOp2 for AddNorm<'_> {
    fn name(&self) -> &'static str {
        match self.sum {
            Sum::Normed { .. } => "add_rms_norm",
            Sum::Biased { .. } => "add_layer_norm",
        }
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, x_layout: &Layout, y: &CpuStorage, y_layout: &Layout) -> Result<()> {
        use candle_core::backend::BackendStorage;
        let columns = x_layout.dims()[x_layout.dims().len() - 1];
        let normed = with_real!(x.dtype(), T => {
            self.rows::<T>(elements_mut(x, x_layout)?, elements(y, y_layout)?, columns)?.map(T::storage)
        });
        *self.normed.borrow_mut() = normed.map(Storage::Cpu);
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &mut candle_core::CudaStorage,
        x_layout: &Layout,
        y: &candle_core::CudaStorage,
        y_layout: &Layout,
    ) -> Result<()> {
        use candle_core::backend::BackendStorage;
        let shape = x_layout.shape();
        let normed = self.norm.as_ref().map(|_| cuda::room(&x.device, shape, x.dtype())).transpose()?;
        let out = normed.as_ref().map_or(Ok(cuda::NULL), cuda::start)?;
        let mut arguments = vec![cuda::pointer(x, x_layout)?, cuda::pointer(y, y_layout)?];
        let mut eps = self.norm.as_ref().map_or(0.0, |norm| norm.eps);
        match self.sum {
            Sum::Normed { gain, eps: first } => {
                arguments.push(cuda::tensor_pointer(gain)?);
                eps = first; // the next norm's too
            }
            Sum::Biased { bias, limit } => arguments.extend([cuda::optional_pointer(bias)?, Arg::F32(limit)]),
        }
        match (&self.sum, self.norm.as_ref().map(|norm| &norm.kind)) {
            (Sum::Normed { .. }, Some(Kind::Rms { gain })) => arguments.push(cuda::tensor_pointer(gain)?),
            (Sum::Normed { .. }, _) => arguments.push(cuda::NULL),
            (_, Some(Kind::Layer { weight, bias })) => {
                arguments.extend([cuda::tensor_pointer(weight)?, cuda::tensor_pointer(bias)?]);
            }
            _ => arguments.extend([cuda::NULL, cuda::NULL]),
        }
        arguments.push(out);
        launch(self.name(), x, x_layout, eps, arguments)?;
        *self.normed.borrow_mut() = normed.map(Storage::Cuda);
        Ok(())
    }
}

/// Launches a kernel of `norm.cu` over the rows of `x`; all of them end in columns, eps and alignment.
#[cfg(feature = "cuda")]
fn launch(name: &str, x: &candle_core::CudaStorage, layout: &Layout, eps: f32, mut arguments: Vec<Arg>) -> Result<()> {
    use candle_core::backend::BackendStorage;
    /// Packs of 16 bytes that a thread keeps, as in `norm.cu`.
    const HELD: usize = 2;
    let columns = layout.dims()[layout.dims().len() - 1];
    let bytes = x.dtype().size_in_bytes();
    let threads = (columns * bytes).div_ceil(16).div_ceil(HELD).next_multiple_of(32);
    if threads > 1024 {
        candle_core::bail!("{name}: a block holds rows of up to {} values, not {columns}", 1024 * HELD * 16 / bytes);
    }
    arguments.extend([columns.into(), eps.into(), cuda::aligned(columns * bytes, &arguments)]);
    let rows = layout.shape().elem_count() / columns;
    let name = format!("{name}_{}", cuda::suffix(x.dtype())?);
    // SAFETY: the callers' arguments are the kernel's, rows and weights of the shapes that the public functions expect.
    unsafe { super::NORM.launch(&x.device, &name, cuda::grid((rows, 1, 1), threads, 0), &arguments) }
}
