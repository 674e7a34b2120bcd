//! Traces: spans of a job in all processes that work on it, joined by the header `traceparent` of its messages (W3C Trace Context).
//! Where no collector is configured there is none of it: no span, no header.
//!
//! In reading order: `spans` (what there is, and what travels), `export` (to the collector).
//!
//! A span of `tracing` is exported if it has the field `otel.kind`; the log has its other fields as ever.

mod export;
mod spans;

pub use export::Exporting;
pub(crate) use export::{layer, provider};
pub(crate) use spans::{admission, job, message, write};
pub use spans::{are_on, command, request};
