//! The language model with decomposed attention, and what it computes with.
//!
//! In reading order: [`kv`] (keys or values of a layer, in 16, 8 or 4 bits),
//! [`attention`] (softmax over long caches), [`rope`] (rotary positions), [`fold`] (the output projection of tokens
//! that see only themselves), [`choose`] (the largest logit), [`quantized`] (weights in blocks), [`weights`] (where
//! they come from), [`kernels`] (CUDA kernels, their check and their speed), [`cache`] (keys and values of a job),
//! [`chunk`] (image and audio tokens on their way in), [`observe`] (the model's values at the boundaries of the
//! oracle), `layer` (a decoder layer), [`language_model`] (the model), [`footprint`] (the memory that it takes).

pub mod attention;
pub mod cache;
pub mod choose;
pub mod chunk;
pub mod fold;
pub mod footprint;
pub mod kernels;
pub mod kv;
pub mod language_model;
mod layer;
pub mod observe;
pub mod quantized;
pub mod rope;
pub mod weights;

pub use language_model::{LanguageModel, untied};
