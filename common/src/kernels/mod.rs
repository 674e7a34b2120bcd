//! Fused operations of the models.

#[cfg(feature = "cuda")]
pub mod cuda;
