//! Fused operations that the models compute with: one pass over memory where a chain of tensor operations makes many,
//! and the reference's roundings where candle's own have others.
//!
//! Every operation has a CPU implementation, which says what it means, and a CUDA one, compiled from
//! `common/compute/kernels/*.cu` with the feature `cuda`. Both take f32, bf16 and f16 (called T below), compute in f32 inside and
//! round to T where the reference stores T (MODEL.md 9). Tensors are contiguous; weights are on the tensor's device.
//!
//! In reading order: [`pointwise`], [`e4m3`] and [`rows`], [`norm`] and [`add_norm`], [`linear`], [`mod@few_rows`], [`few_queries`], `matmul` and [`attention`], [`vision`],
//! then `cuda` and `cublaslt` (how kernels and matmuls are launched), [`check`] (whether they are right) and [`bench`] (how
//! fast they are).

pub mod add_norm;
pub mod attention;
pub mod bench;
pub mod check;
#[cfg(feature = "cuda")]
pub mod cublaslt;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod e4m3;
pub mod few_queries;
pub mod few_rows;
pub mod linear;
mod matmul;
pub mod norm;
pub mod pointwise;
mod real;
pub mod rows;
#[cfg(test)]
mod tests;
pub mod vision;
mod workspace;

pub use add_norm::{add_rms_norm, add_rms_norm_then, add_then_rms_norm, residual_add};
pub use attention::attention;
pub use e4m3::{E4m3Rows, Product};
pub use few_rows::few_rows;
pub use linear::{linear, linear_gelu_tanh, linear_in_stretches};
pub use norm::{LayerNorm, layer_norm, rms, rms_norm, rms_norm_rows};
pub use pointwise::{Activation, add_positions, bias_add, bias_gelu_erf, bias_gelu_tanh, gelu_erf, gelu_tanh, glu};
pub use rows::Rows;
pub use vision::{patchify, pool};
pub use workspace::WORKSPACE_BYTES;
