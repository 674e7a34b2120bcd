//! The pipeline measured on a GPU machine, where there is no GStreamer: frames and sound are made, all else is real.
//!
//! In reading order: [`synthetic`] (a stage-decode that makes its frames), [`card`] (what the card has given
//! away), [`kernels`] (ours, one by one),
//! [`run`] (one pipeline, some videos).

pub mod card;
pub mod kernels;
pub mod run;
pub mod synthetic;
