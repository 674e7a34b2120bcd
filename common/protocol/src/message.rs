//! What travels between stages and to clients, field by field as PROTOCOL.md has it.
//!
//! In reading order: `job` (what a client asks for), `request` (what a job's owner asks of stage-decode), `batch` (rows
//! on their way), `output` (those that a stage hands on, cut to size), `whereabouts` (what the instances of stage-decode ask each
//! other), `check` (what several of them refuse).

mod batch;
mod check;
mod job;
mod output;
mod request;
mod whereabouts;

pub use crate::job_id::JobId;
pub use batch::{FeatureBatch, FrameBatch, Modality, PcmWindow, TokenBatch};
pub use job::{JobRequest, MOST_QUERIES};
pub use output::Output;
pub use request::{DecodeRequest, ProbeReply, ProbeRequest, Segment};
pub use whereabouts::{WhereReply, WhereRequest};
