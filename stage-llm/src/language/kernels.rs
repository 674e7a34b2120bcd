//! CUDA kernels of this crate: their launches, their check against the CPU, and their speed.

#[cfg(feature = "cuda")]
pub mod bench;
pub mod check;

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
pub(crate) use cuda::{KV_WRITE, address, kv_write, rows};
