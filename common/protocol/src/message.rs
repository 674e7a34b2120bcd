//! What travels between stages and to clients, field by field as PROTOCOL.md has it.
//!
//! In reading order: `job` (what a client asks for), `request` (what a job's owner asks of stage-decode), `batch` (rows
//! on their way), `output` (those that a stage hands on, cut to size).

mod batch;
mod job;
mod output;
mod request;

pub use crate::job_id::JobId;
pub use batch::{FeatureBatch, FrameBatch, Modality, PcmWindow, TokenBatch};
pub use job::JobRequest;
pub use output::Output;
pub use request::{DecodeRequest, ProbeReply, ProbeRequest, Segment};

use crate::wire_error::{WireError, WireErrorKind};

fn allowed(ok: bool, what: &str) -> Result<(), WireError> {
    if ok { Ok(()) } else { Err(WireError::new(WireErrorKind::Value, what)) }
}

fn check_span(span: Option<[f64; 2]>) -> Result<(), WireError> {
    let ok = span.is_none_or(|[a, b]| a.is_finite() && b.is_finite() && a >= 0.0 && a < b);
    allowed(ok, "span is [start_s, end_s] with 0 <= start_s < end_s")
}
