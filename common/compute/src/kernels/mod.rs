//! Fused operations that the models compute with: one pass over memory where a chain of tensor operations makes many,
//! and the reference's roundings where candle's own have others.
//!
//! Every operation has a CPU implementation, which says what it means, and a CUDA one, compiled from
//! `common/compute/kernels/*.cu` with the feature `cuda`. Both take f32, bf16 and f16 (called T below), compute in f32 inside and
//! round to T where the reference stores T (MODEL.md 9). Tensors are contiguous; weights are on the tensor's device.
//!
//! In reading order: [`e4m3`] and [`rows`], [`norm`], [`pointwise`], [`linear`], [`attention`], [`vision`], then `cuda` and `cublaslt`
//! (how kernels and products are launched), [`check`] (whether they are right) and [`bench`] (how fast they are).

pub mod attention;
pub mod bench;
pub mod check;
#[cfg(feature = "cuda")]
pub mod cublaslt;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod e4m3;
pub mod linear;
pub mod norm;
pub mod pointwise;
mod real;
pub mod rows;
#[cfg(test)]
mod tests;
pub mod vision;

pub use attention::attention;
pub use e4m3::E4m3Rows;
pub use linear::{linear, linear_gelu_tanh, linear_in_stretches};
pub use norm::{LayerNorm, add_rms_norm, layer_norm, residual_add, rms, rms_norm, rms_norm_rows};
pub use pointwise::{add_positions, bias_add, bias_gelu_erf, bias_gelu_tanh, geglu, gelu_erf, gelu_tanh};
pub use rows::Rows;
pub use vision::{patchify, pool};

#[cfg(feature = "cuda")]
static NORM: cuda::Kernels = cuda::Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/norm.fatbin")));
#[cfg(feature = "cuda")]
static POINTWISE: cuda::Kernels = cuda::Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/pointwise.fatbin")));
#[cfg(feature = "cuda")]
static E4M3: cuda::Kernels = cuda::Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/e4m3.fatbin")));
#[cfg(feature = "cuda")]
static ATTENTION: cuda::Kernels = cuda::Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/attention.fatbin")));
#[cfg(feature = "cuda")]
static VISION: cuda::Kernels = cuda::Kernels::new(include_bytes!(concat!(env!("OUT_DIR"), "/vision.fatbin")));
