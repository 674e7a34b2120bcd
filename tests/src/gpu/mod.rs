//! The pipeline measured on a GPU machine, where there is no GStreamer: frames and sound are made, all else is real.
//!
//! In reading order: [`synthetic`] (a stage-decode that makes its frames), [`card`] (what the card has given
//! away), [`kernels`] (ours, one by one), [`stages`] (each without a bus),
//! [`run`] (one pipeline, one question), [`floor`] (what a card cannot be faster than), [`bench`] (one configuration, some
//! videos, a soak), [`table`] (all configurations).

pub mod bench;
pub mod card;
pub mod floor;
pub mod kernels;
pub mod run;
pub mod stages;
pub mod synthetic;
pub mod table;
