//! CUDA kernels of this crate, and their check against the CPU.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "cuda")]
pub(crate) use cuda::{KV_WRITE, address, kv_write, rows};
