//! What every stage shares.
//!
//! In reading order: [`error`] (why a job fails), [`plan`] (what a video comes to), [`tensor`], [`message`] and [`event`]
//! (what travels), [`wire`] (bytes to messages and back), [`rows`] (which of them are there), [`stage`] (what a stage
//! is), [`model`] and [`checkpoint`] (what it loads), [`compute`] (where it computes), [`budget`] (what it will hold),
//! [`kernels`] and [`layers`] (what it computes with), [`random`] and [`demo_model`] (numbers to try it with), [`config`],
//! [`telemetry`] and [`memory`] (how it is run and watched), [`subject`] and [`bus`] (the broker), [`run`] (the loop that
//! connects a stage to it), [`process`] (a process that is one stage).

pub mod budget;
pub mod bus;
pub mod checkpoint;
pub mod compute;
pub mod config;
pub mod demo_model;
pub mod error;
pub mod event;
pub mod kernels;
pub mod layers;
pub mod memory;
pub mod message;
pub mod model;
pub mod plan;
pub mod process;
pub mod random;
pub mod rows;
pub mod run;
pub mod stage;
pub mod subject;
pub mod telemetry;
pub mod tensor;
pub mod wire;
