//! Logs: one line an event, text for a person or JSON for a collector, the job's id in every span; and [traces](crate::traces) of the
//! same spans, where they are wanted.

use config::{LogConfig, LogFormat, TracesConfig};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

use crate::output::Remarks;
use crate::traces::{self, Exporting};

/// Starts logging to standard error, once per process, and exporting spans under the name `service`, for as long as what is given
/// back is there. Lines that cannot be written are lost: logging ends nothing.
///
/// # Errors
/// A filter that does not parse, a collector's address that is none, or a second call.
pub fn init(log: &LogConfig, traces: &TracesConfig, service: &'static str) -> Result<Exporting, String> {
    let filter = EnvFilter::try_new(&log.filter).map_err(|e| format!("log.filter: {e}"))?;
    let lines = fmt::layer().with_writer(|| Remarks).with_target(false);
    let lines = match log.format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().with_current_span(true).with_span_list(false).boxed(),
    };
    let provider = traces::provider(traces, service)?;
    // A layer's own filter: what the log leaves out may be exported.
    let exported = provider.as_ref().map(traces::layer);
    registry().with(lines.with_filter(filter)).with(exported).try_init().map_err(|e| e.to_string())?;
    Ok(Exporting::new(provider))
}
