//! Gemma 2 with decomposed attention, and what it computes with.
//!
//! In reading order: [`elementary`] (exp and tanh), [`attention`] (blockwise softmax over long caches), [`kv`] (keys or
//! values of a layer, in 16, 8 or 4 bits), [`rope`] (rotary positions), [`quantized`] (weights in blocks), [`weights`]
//! (where they come from), [`fold`] (the output projection of tokens that see only themselves), [`choose`] (the largest
//! logit), [`kernels`] (CUDA, and its check), [`cache`] (keys and values of a job, and what they weigh), [`observe`]
//! (watching the model for parity), [`language_model`] (the model).

pub mod attention;
pub mod cache;
pub mod choose;
pub mod elementary;
pub mod fold;
pub mod kernels;
pub mod kv;
pub mod language_model;
pub mod observe;
pub mod quantized;
pub mod rope;
pub mod weights;

pub use language_model::{Gemma, untied};
