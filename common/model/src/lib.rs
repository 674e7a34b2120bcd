//! What a stage loads: a checkpoint's geometry and tensors, the layers that compute with them, and the memory they take.
//!
//! In reading order: [`config_json`] (the geometry), [`checkpoint`] (the tensors, from files or made up), [`demo_model`]
//! (a made-up checkpoint), [`layers`] (linear layers, norms and attention), [`budget`] (what a stage will hold).

pub mod budget;
pub mod checkpoint;
pub mod config_json;
pub mod demo_model;
pub mod layers;
