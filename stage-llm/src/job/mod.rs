//! Answering of one job, from its request to its result.
//!
//! In reading order: [`fit`] (whether a job fits into memory), [`compact`] (a second try on a compacted memory pool),
//! [`clock`] (progress and timings), [`in_flight`] (a job in flight), [`intake`] (its tokens, taken as they come),
//! [`prefill`] (its tokens through the layers), [`generate`] (one token after another), [`kept`] (the last video, for
//! the next question about it), [`answer`] (a job from start to end).

pub mod answer;
pub mod clock;
pub mod compact;
pub mod fit;
pub mod generate;
pub mod in_flight;
pub mod intake;
pub mod kept;
pub mod prefill;
