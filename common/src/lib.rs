//! What every stage shares.
//!
//! In reading order: [`error`] (why a job fails), [`plan`] (what a video comes to), [`tensor`] and [`message`] and [`event`] (what
//! travels), [`wire`] (bytes to messages and back), [`stage`] (what a stage is), [`model`] and [`checkpoint`] (what
//! it loads).

pub mod checkpoint;
pub mod error;
pub mod event;
pub mod message;
pub mod model;
pub mod plan;
pub mod stage;
pub mod tensor;
pub mod wire;
