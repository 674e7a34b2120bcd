//! What travels between stages and to clients, and the contract of a stage. It knows no tensor library and no bus.
//!
//! In reading order: [`error`] (why a job fails), [`job_id`], [`plan`] (totals of a video), [`tensor`] (numbers as
//! bytes), [`message`], [`event`], [`control`] and [`report`] (what travels), [`wire`] and [`wire_error`] (bytes to
//! messages and back) with [`json`], [`rows`] (which rows are there), [`coverage`] (of how many), [`stage`] (what a stage is),
//! [`workers`] (what workers of stage-llm tell each other), [`memory`] (what a process holds), [`bytes`] (sizes for a person), [`file_uri`] (paths as text).

pub mod bytes;
pub mod control;
pub mod coverage;
pub mod error;
pub mod event;
pub mod file_uri;
pub mod job_id;
pub mod json;
pub mod memory;
pub mod message;
pub mod plan;
pub mod report;
pub mod rows;
pub mod stage;
pub mod tensor;
pub mod wire;
pub mod wire_error;
pub mod workers;
