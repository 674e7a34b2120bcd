//! Answering of one job, from its request to its result.
//!
//! In reading order: [`fit`] (whether a job fits into memory), [`compact`] (a second try on a compacted memory pool),
//! [`clock`] (progress and timings), [`in_flight`] (a job in flight), [`pictures`] (where its pictures change), [`intake`]
//! (its tokens, taken as they come), [`prefill`] (its tokens through the layers), [`generate`] (one token after another),
//! [`video`] (a video and what it is known by), [`parked`] (videos on disk), [`kept`] (videos for the next question about
//! them), [`obtain`] (the way to a job's video), [`work`] (its questions), [`reply`] (answers to them), [`composite`] (ranges made
//! of answers), [`outcome`] (its result), [`answer`] (a job from start to end).

pub mod answer;
pub mod clock;
pub mod compact;
pub mod composite;
pub mod fit;
pub mod generate;
pub mod in_flight;
pub mod intake;
pub mod kept;
pub mod obtain;
pub mod outcome;
pub mod parked;
pub mod pictures;
pub mod prefill;
pub mod reply;
pub mod video;
pub mod work;
