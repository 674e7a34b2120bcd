//! Linear layers and embeddings whose weights are 16 bit or in GGUF's blocks.
//!
//! Blocks are made and read on the CPU by candle's k-quants, so that a file is readable elsewhere. On a GPU kernels of
//! our own multiply them: up to 64 rows directly, bound by reading the blocks once for 32 of them; more rows by expanding stretches of
//! the matrix to 16 bit for cuBLAS.
//!
//! In reading order: [`format`](mod@format) (values to blocks and back), `units` (the layout of blocks in GPU
//! memory), `cuda` (their kernels), [`blocks`] (a matrix in blocks), [`matrix`] (a matrix in either form, to multiply
//! with).

pub mod blocks;
#[cfg(feature = "cuda")]
mod cuda;
pub mod format;
pub mod matrix;
#[cfg(any(feature = "cuda", test))]
mod units;

pub use blocks::{Blocks, Strips};
pub use format::BlockFormat;
pub use matrix::WeightMatrix;
