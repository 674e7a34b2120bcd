//! The demo model: random weights in the layout of Vidi 1.5 or Vidi 7B, for trials and tests where the real checkpoint is not at hand.
//!
//! Tensor names, shapes and types are those of the real checkpoints, also of the tensors that inference does not use; the
//! weights are random, spread so that activations stay near 1 and the greedy answer moves. `vidi demo-model` writes it to
//! disk; stages with [`RandomWeights`] make it while they load. The reading order:
//!
//! * [`size`]: the dimensions of a checkpoint, and the named sizes;
//! * [`tensors`]: every tensor of a size, and [`values`]: theirs, which are [`compute::random`]'s, the same on every machine;
//! * [`config_json`] for `config.json`;
//! * [`tokenizer`]: `tokenizer.json` and `tokenizer_config.json`.

pub mod config_json;
pub mod size;
pub mod tensors;
pub mod tokenizer;
pub mod values;

pub use size::Dims;

/// The seed to use when none is given: of 1 to 40, the one whose tiny Vidi 1.5 has the most different tokens in its answers.
pub const DEFAULT_SEED: u64 = 34;
