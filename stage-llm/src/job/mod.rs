//! One job, from its request to its answer.
//!
//! In reading order: [`fit`] (whether a job fits into memory), [`compact`] (memory in pieces), [`clock`] (progress and
//! timings), [`in_flight`] (a job in flight), [`parked`] (waiting for its tokens without taking them), [`intake`] (taking
//! them as they come), [`prefill`] (passing them through the layers), [`generate`] (tokens one after another), [`kept`]
//! (the last video, for the next question about it), [`answer`] (a job from start to end).

pub mod answer;
pub mod clock;
pub mod compact;
pub mod fit;
pub mod generate;
pub mod in_flight;
pub mod intake;
pub mod kept;
pub mod parked;
pub mod prefill;
