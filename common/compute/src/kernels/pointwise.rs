//! Biases and activations, gated ones too. An activation is taken in f32 of the sum as the reference stores it, rounded to
//! T, and rounded again; candle's own compute in T throughout.

use candle_core::{CpuStorage, CustomOp1, D, InplaceOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use super::cuda;
use super::real::{Real, elements, elements_mut, expect, rounded, weights, with_real};
use crate::elementary::{self, vectorized};

#[cfg(feature = "cuda")]
static POINTWISE: cuda::Kernels = cuda::Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/pointwise.fatbin")));

/// `x + bias`, in place; `x` `[.., D]`, `bias` `[D]`. As with all operations of this module that work in place, every tensor
/// that shares `x`'s storage changes.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn bias_add(x: &Tensor, bias: &Tensor) -> Result<()> {
    in_place(x, BiasAct { bias: Some(bias), table: None, activation: None })
}

/// `gelu_tanh(x + bias)`, in place; `x` `[.., D]`, `bias` `[D]`.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn bias_gelu_tanh(x: &Tensor, bias: &Tensor) -> Result<()> {
    in_place(x, BiasAct { bias: Some(bias), table: None, activation: Some(Gelu::Tanh) })
}

/// The exact `gelu(x + bias)`, in place; `x` `[.., D]`, `bias` `[D]`.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn bias_gelu_erf(x: &Tensor, bias: &Tensor) -> Result<()> {
    in_place(x, BiasAct { bias: Some(bias), table: None, activation: Some(Gelu::Erf) })
}

/// `gelu_tanh(x)`, in place.
///
/// # Errors
/// The device's.
pub fn gelu_tanh(x: &Tensor) -> Result<()> {
    in_place(x, BiasAct { bias: None, table: None, activation: Some(Gelu::Tanh) })
}

/// The exact `gelu(x)`, in place.
///
/// # Errors
/// The device's.
pub fn gelu_erf(x: &Tensor) -> Result<()> {
    in_place(x, BiasAct { bias: None, table: None, activation: Some(Gelu::Erf) })
}

/// `(x + bias) + table`, each sum rounded, in place: `x` `[.., D]` as rows, of which row `r` takes row `r mod P` of `table`
/// `[P, D]`; `bias` `[D]`.
///
/// # Errors
/// Shapes and types that do not fit; the device's.
pub fn add_positions(x: &Tensor, bias: Option<&Tensor>, table: &Tensor) -> Result<()> {
    let columns = x.dim(D::Minus1)?;
    if table.rank() != 2 || table.dim(1)? != columns || table.dtype() != x.dtype() || table.dim(0)? == 0 {
        candle_core::bail!("positions {table:?} for {x:?}");
    }
    in_place(x, BiasAct { bias, table: Some(table), activation: None })
}

/// Activation of a gated feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU in its tanh approximation: Gemma's (MODEL.md 7).
    GeluTanh,
    /// `x * sigmoid(x)`: Mistral's (MODEL-7B.md, "Language model").
    Silu,
}

impl Activation {
    /// Value of the activation in f32.
    #[inline(always)]
    fn of(self, x: f32) -> f32 {
        match self {
            Activation::GeluTanh => elementary::gelu_tanh(x),
            Activation::Silu => x * elementary::sigmoid(x),
        }
    }
}

/// `activation(gate) * up` of rows of both `[.., 2 I]`, the gates first: `[.., I]`. What the activation leaves is rounded
/// before the product is.
///
/// # Errors
/// An odd width; the device's.
pub fn glu(gate_up: &Tensor, activation: Activation) -> Result<Tensor> {
    if !gate_up.dim(D::Minus1)?.is_multiple_of(2) {
        candle_core::bail!("gates and ups of unequal width in {gate_up:?}");
    }
    gate_up.apply_op1_no_bwd(&Glu(activation))
}

/// Form of GELU.
#[derive(Clone, Copy)]
enum Gelu {
    Tanh,
    Erf,
}

/// `act((x + bias) + table)`.
struct BiasAct<'a> {
    bias: Option<&'a Tensor>,
    table: Option<&'a Tensor>,
    activation: Option<Gelu>,
}

fn in_place(x: &Tensor, op: BiasAct) -> Result<()> {
    if let Some(bias) = op.bias {
        expect(bias, x.dim(D::Minus1)?, x.dtype(), "a bias")?;
    }
    x.inplace_op1(&op)
}

impl BiasAct<'_> {
    fn rows<T: Real>(&self, x: &mut [T], columns: usize) -> Result<()> {
        let bias = self.bias.map(weights).transpose()?.unwrap_or_else(|| vec![0.0; columns]);
        let table = self.table.map(weights).transpose()?.unwrap_or_else(|| vec![0.0; columns]);
        // A loop for each: what calls a function or chooses one does not become vector code.
        match self.activation {
            None => each_sum(x, columns, &bias, &table, |sum| sum),
            Some(Gelu::Tanh) => each_sum(x, columns, &bias, &table, elementary::gelu_tanh),
            Some(Gelu::Erf) => each_sum(x, columns, &bias, &table, elementary::gelu_erf),
        }
        Ok(())
    }
}

/// `of((x + bias) + table)` of rows, in place.
fn each_sum<T: Real>(x: &mut [T], columns: usize, bias: &[f32], table: &[f32], of: impl Fn(f32) -> f32 + Copy + Sync) {
    let period = table.len() / columns;
    x.par_chunks_mut(columns).enumerate().for_each(|(row, x)| {
        let positions = &table[row % period * columns..][..columns];
        vectorized(
            #[inline(always)]
            || {
                for ((x, b), p) in x.iter_mut().zip(bias).zip(positions) {
                    *x = T::narrow(of(rounded::<T>(rounded::<T>(x.wide() + b) + p)));
                }
            },
        );
    });
}

impl InplaceOp1 for BiasAct<'_> {
    fn name(&self) -> &'static str {
        match self.activation {
            None => "bias_add",
            Some(Gelu::Tanh) => "bias_gelu_tanh",
            Some(Gelu::Erf) => "bias_gelu_erf",
        }
    }

    fn cpu_fwd(&self, x: &mut CpuStorage, layout: &Layout) -> Result<()> {
        use candle_core::backend::BackendStorage;
        let columns = layout.dims()[layout.dims().len() - 1];
        with_real!(x.dtype(), T => self.rows::<T>(elements_mut(x, layout)?, columns))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        let columns = layout.dims()[layout.dims().len() - 1];
        let period = self.table.map_or(1, |table| table.dims()[0]);
        let arguments = vec![
            cuda::pointer(x, layout)?,
            cuda::optional_pointer(self.bias)?,
            cuda::optional_pointer(self.table)?,
            period.into(),
        ];
        launch(self.name(), x, layout.shape().elem_count() / columns, columns, arguments, false)
    }
}

struct Glu(Activation);

impl Glu {
    fn rows<T: Real>(&self, gate_up: &[T], width: usize) -> Vec<T> {
        let mut out = vec![T::zero(); gate_up.len() / 2];
        out.par_chunks_mut(width).zip(gate_up.par_chunks(2 * width)).for_each(|(out, gate_up)| {
            let (gate, up) = gate_up.split_at(width);
            vectorized(
                #[inline(always)]
                || {
                    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                        *out = T::narrow(rounded::<T>(self.0.of(gate.wide())) * up.wide());
                    }
                },
            );
        });
        out
    }

    fn shape(layout: &Layout) -> Shape {
        let mut dims = layout.dims().to_vec();
        *dims.last_mut().expect("a row has a width") /= 2;
        dims.into()
    }
}

impl CustomOp1 for Glu {
    fn name(&self) -> &'static str {
        match self.0 {
            Activation::GeluTanh => "geglu",
            Activation::Silu => "swiglu",
        }
    }

    fn cpu_fwd(&self, gate_up: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let shape = Glu::shape(layout);
        let width = shape.dims()[shape.rank() - 1];
        let out = with_real!(gate_up.dtype(), T => T::storage(self.rows::<T>(elements(gate_up, layout)?, width)));
        Ok((out, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        gate_up: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let shape = Glu::shape(layout);
        let width = shape.dims()[shape.rank() - 1];
        let out = cuda::allocate(&gate_up.device, &shape, gate_up.dtype())?;
        let arguments = vec![cuda::pointer(gate_up, layout)?, cuda::start(&out)?];
        launch(self.name(), gate_up, shape.elem_count() / width, width, arguments, true)?;
        Ok((out, shape))
    }
}

/// Launches a kernel of `pointwise.cu`, a thread per 16 bytes; all of them end in rows, columns and alignment. `waits`: the
/// kernel waits for earlier ones before anything else.
#[cfg(feature = "cuda")]
fn launch(
    name: &str,
    x: &candle_core::CudaStorage,
    rows: usize,
    columns: usize,
    mut arguments: Vec<cuda::Arg>,
    waits: bool,
) -> Result<()> {
    use candle_core::backend::BackendStorage;
    const THREADS: usize = 256;
    let bytes = x.dtype().size_in_bytes();
    let packs = (columns * bytes).div_ceil(16);
    arguments.extend([rows.into(), columns.into(), cuda::aligned(columns * bytes, &arguments)]);
    let name = format!("{name}_{}", cuda::suffix(x.dtype())?);
    let grid = cuda::grid(((rows * packs).div_ceil(THREADS), 1, 1), THREADS, 0);
    // SAFETY: the callers' arguments are the kernel's, their shapes the ones that the public functions expect. What is
    // launched ahead waits.
    unsafe {
        match waits && rows <= cuda::FEW_ROWS {
            true => POINTWISE.launch_ahead(&x.device, &name, grid, &arguments),
            false => POINTWISE.launch(&x.device, &name, grid, &arguments),
        }
    }
}
