//! Answering of jobs, from request to result.
//!
//! In reading order: [`fit`] (whether a job fits into memory), [`compact`] (a second try on a compacted memory pool),
//! [`clock`] (progress and timings), [`in_flight`] (a job in flight), [`pictures`] (where its pictures change), [`intake`]
//! (its tokens, taken as they come), [`prefill`] (its tokens through the layers), [`video`] (a video and what it is known by),
//! [`parked`] (videos on disk), [`kept`] (videos for the next question about them), [`obtain`] (the way to a job's video),
//! [`work`] (its questions), [`voice`] (an answer that grows), [`steps`] (several that grow together), [`reply`] (text of one of
//! them), [`composite`] (ranges made of answers), [`outcome`] (a result), [`parts`] (what all jobs share), [`member`] (a job in a
//! batch), [`owned`] (the way in and out of each), [`batch`] (jobs about one video), [`answer`] (a job from start to end).

pub mod answer;
pub mod batch;
pub mod clock;
pub mod compact;
pub mod composite;
pub mod fit;
pub mod in_flight;
pub mod intake;
pub mod kept;
pub mod member;
pub mod obtain;
pub mod outcome;
pub mod owned;
pub mod parked;
pub mod parts;
pub mod pictures;
pub mod prefill;
pub mod reply;
pub mod steps;
pub mod video;
pub mod voice;
pub mod work;
