//! Logs: one line an event, text for a person or JSON for a collector, the job's id in every span.

use config::{LogConfig, LogFormat};
use tracing_subscriber::EnvFilter;

use crate::output::Remarks;

/// Starts logging to standard error, once per process. Lines that cannot be written there are lost: logging ends nothing.
///
/// # Errors
/// A filter that does not parse, or a second call.
pub fn init(config: &LogConfig) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|e| format!("log.filter: {e}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Remarks).with_target(false);
    match config.format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().with_current_span(true).with_span_list(false).try_init(),
    }
    .map_err(|e| e.to_string())
}
