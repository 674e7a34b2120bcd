//! Additions in place to the residual stream, with the norm that the sum goes into, in one pass over memory.

use std::cell::RefCell;

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, D, DType, InplaceOp2, Layout, Result, Shape, Storage, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda::{self, Arg};
#[cfg(feature = "cuda")]
use super::norm::launch;
use super::norm::{Kind, LayerNorm, Norm, inverse_rms};
use super::real::{Real, elements, elements_mut, expect, rounded, weights, with_real};
use super::rows::Rows;
use config::MediaProducts;

/// `x += rms_norm(y, gain)`, the norm rounded before the sum is. `x` `[n, D]` is overwritten, in every tensor that shares its
/// storage; `y` has its shape; `gain` is f32 `[D]`.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn add_rms_norm(x: &Tensor, y: &Tensor, gain: &Tensor, eps: f32) -> Result<()> {
    expect(gain, x.dim(D::Minus1)?, DType::F32, "the gain of an RMS norm")?;
    add(x, y, Sum::Normed { gain, eps })
}

/// [`add_rms_norm`], and `rms_norm(x, next_gain)` of what `x` has become, ready to be multiplied. `next_gain` is f32 `[D]`.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn add_rms_norm_then(
    x: &Tensor,
    y: &Tensor,
    gain: &Tensor,
    next_gain: &Tensor,
    eps: f32,
    products: MediaProducts,
) -> Result<Rows> {
    for gain in [gain, next_gain] {
        expect(gain, x.dim(D::Minus1)?, DType::F32, "the gain of an RMS norm")?;
    }
    add_then(x, y, Sum::Normed { gain, eps }, Norm { kind: Kind::Rms { gain: next_gain }, eps, products })
}

/// `x += y`, and `rms_norm(x, gain)` of what `x` has become, ready to be multiplied: of layers that add what they compute as
/// it is (MODEL-7B.md, "Language model"). `x` `[n, D]` is overwritten, in every tensor that shares its storage; `y` has its
/// shape; `gain` is f32 `[D]`. [`residual_add`] is the same without a norm.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn add_then_rms_norm(x: &Tensor, y: &Tensor, gain: &Tensor, eps: f32, products: MediaProducts) -> Result<Rows> {
    expect(gain, x.dim(D::Minus1)?, DType::F32, "the gain of an RMS norm")?;
    add_then(x, y, Sum::Plain, Norm { kind: Kind::Rms { gain }, eps, products })
}

/// `x += y + bias`, each sum rounded to T, then held within `limit` on both sides. `x` `[.., D]` is overwritten, in every
/// tensor that shares its storage; `y` has its shape, `bias` is `[D]`, of type T.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn residual_add(x: &Tensor, y: &Tensor, bias: Option<&Tensor>, limit: Option<f32>) -> Result<()> {
    add(x, y, Sum::biased(x, bias, limit)?)
}

impl LayerNorm<'_> {
    /// [`residual_add`], then the norm of what `x` has become.
    ///
    /// # Errors
    /// Shapes and types that do not fit; the device's.
    pub fn after_adding(&self, x: &Tensor, y: &Tensor, bias: Option<&Tensor>, limit: Option<f32>) -> Result<Rows> {
        add_then(x, y, Sum::biased(x, bias, limit)?, self.of(x)?)
    }
}

/// What is added to the residual stream.
#[derive(Clone, Copy)]
enum Sum<'a> {
    Normed {
        gain: &'a Tensor,
        eps: f32,
    },
    /// `y` as it is, before an RMS norm.
    Plain,
    Biased {
        bias: Option<&'a Tensor>,
        limit: f32,
    },
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
    normed: RefCell<Option<(Storage, Shape)>>,
}

fn apply<'a>(x: &Tensor, y: &Tensor, sum: Sum<'a>, norm: Option<Norm<'a>>) -> Result<AddNorm<'a>> {
    if x.shape() != y.shape() || x.dtype() != y.dtype() {
        candle_core::bail!("a sum of {x:?} and {y:?}");
    }
    let op = AddNorm { sum, norm, normed: RefCell::new(None) };
    x.inplace_op2(y, &op)?;
    Ok(op)
}

/// `x += sum` in place.
fn add(x: &Tensor, y: &Tensor, sum: Sum) -> Result<()> {
    apply(x, y, sum, None).map(drop)
}

/// [`add`], and the norm of what `x` has become.
fn add_then<'a>(x: &Tensor, y: &Tensor, sum: Sum<'a>, norm: Norm<'a>) -> Result<Rows> {
    let op = apply(x, y, sum, Some(norm))?;
    let name = op.name();
    let Some((storage, shape)) = op.normed.into_inner() else {
        candle_core::bail!("{name} left no norm. This is a bug.")
    };
    norm.made(Tensor::from_storage(storage, shape, BackpropOp::none(), false), x)
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
            Sum::Plain => rows.for_each(|(x, y)| {
                for (x, y) in x.iter_mut().zip(y) {
                    *x = T::narrow(x.wide() + y.wide());
                }
            }),
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
            Sum::Plain => "add_then_rms_norm",
            Sum::Biased { .. } => "add_layer_norm",
        }
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, x_layout: &Layout, y: &CpuStorage, y_layout: &Layout) -> Result<()> {
        use candle_core::backend::BackendStorage;
        let columns = x_layout.dims()[x_layout.dims().len() - 1];
        let normed = with_real!(x.dtype(), T => {
            self.rows::<T>(elements_mut(x, x_layout)?, elements(y, y_layout)?, columns)?.map(T::storage)
        });
        *self.normed.borrow_mut() = normed.map(|normed| (Storage::Cpu(normed), x_layout.shape().clone()));
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
        let out = self.norm.as_ref().map(|norm| norm.outcome(&x.device, shape, x.dtype())).transpose()?;
        let mut arguments = vec![cuda::pointer(x, x_layout)?, cuda::pointer(y, y_layout)?];
        let mut eps = self.norm.as_ref().map_or(0.0, |norm| norm.eps);
        match self.sum {
            Sum::Normed { gain, eps: first } => {
                arguments.push(cuda::tensor_pointer(gain)?);
                eps = first; // the next norm's too
            }
            Sum::Plain => {}
            Sum::Biased { bias, limit } => arguments.extend([cuda::optional_pointer(bias)?, Arg::F32(limit)]),
        }
        match (&self.sum, self.norm.as_ref().map(|norm| &norm.kind)) {
            (Sum::Normed { .. } | Sum::Plain, Some(Kind::Rms { gain })) => arguments.push(cuda::tensor_pointer(gain)?),
            (Sum::Normed { .. }, _) => arguments.push(cuda::NULL),
            (Sum::Plain, _) => candle_core::bail!("a plain sum comes before an RMS norm. This is a bug."),
            (_, Some(Kind::Layer { weight, bias })) => {
                arguments.extend([cuda::tensor_pointer(weight)?, cuda::tensor_pointer(bias)?]);
            }
            _ => arguments.extend([cuda::NULL, cuda::NULL]),
        }
        arguments.extend(out.as_ref().map_or([cuda::NULL; 3], |out| out.arguments));
        launch(self.name(), x, x_layout, eps, arguments)?;
        *self.normed.borrow_mut() = out.map(|out| (Storage::Cuda(out.storage), out.shape));
        Ok(())
    }
}
