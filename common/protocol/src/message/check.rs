//! Refusals that several messages share.

use crate::wire_error::{WireError, WireErrorKind};

pub fn allowed(ok: bool, what: &str) -> Result<(), WireError> {
    if ok { Ok(()) } else { Err(WireError::new(WireErrorKind::Value, what)) }
}

pub fn check_span(span: Option<[f64; 2]>) -> Result<(), WireError> {
    let ok = span.is_none_or(|[a, b]| a.is_finite() && b.is_finite() && a >= 0.0 && a < b);
    allowed(ok, "span is [start_s, end_s] with 0 <= start_s < end_s")
}
