//! The language model: a question and a video's tokens in, an answer out; no bus in sight.
//!
//! In reading order: [`elementary`] (exp and tanh), [`attention`] (blockwise softmax over long caches), [`kv`] (keys or
//! values of a layer, in 16, 8 or 4 bits), [`rope`] (rotary positions), [`quantized`] (weights in blocks), [`weights`]
//! (where they come from), [`fold`] (the output projection of tokens that see only themselves), [`kernels`] (CUDA, and
//! its check), [`cache`] (keys and values of a job, and what they weigh), [`gemma`] (the model), [`observe`] (watching it
//! for parity), [`task`] (what can be asked), [`prompt`] (text to tokens), [`detokenize`] (tokens to text), [`choose`]
//! (the largest logit), [`sample`] (logits to a token), [`generate`] (tokens one after another), [`admission`] (whether a
//! job fits), [`compact`] (memory in pieces), [`clock`] (progress and timings), [`job`] (a job in hand), [`parked`]
//! (waiting for its tokens without taking them), [`intake`] (taking them as they come), [`prefill`] (passing them through
//! the layers), [`kept`] (the last video, for the next question about it), [`answer`] (a job from start to end),
//! [`open`](mod@open) (the stage as a process serves it).

pub mod admission;
pub mod answer;
pub mod attention;
pub mod cache;
pub mod choose;
pub mod clock;
pub mod compact;
pub mod detokenize;
pub mod elementary;
pub mod fold;
pub mod gemma;
pub mod generate;
pub mod intake;
pub mod job;
pub mod kept;
pub mod kernels;
pub mod kv;
pub mod observe;
pub mod open;
pub mod parked;
pub mod prefill;
pub mod prompt;
pub mod quantized;
pub mod rope;
pub mod sample;
pub mod task;
pub mod weights;

pub use answer::{LlmStage, Settings};
pub use gemma::Gemma;
pub use open::open;
pub use prompt::Prompter;
