//! `GET /metrics`: what the gateway counts.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::health;
use super::problem::{Kind, Problem};
use super::state::App;
use runtime::metrics::listen;
use runtime::traces;
use tracing::{Instrument, Span};

/// Routes that are asked every few seconds by programs that only look: no spans of them.
const LOOKED_AT: [&str; 4] = ["/livez", "/readyz", "/health", "/metrics"];

/// Measures a request, which is a span.
pub async fn measure(State(app): State<App>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let (path, method) = (request.extensions().get::<MatchedPath>().cloned(), request.method().clone());
    let span = span_of(&request, path.as_ref());
    let response = next.run(request).instrument(span).await;
    app.metrics.asked(path.as_ref(), &method, response.status(), started.elapsed().as_secs_f64());
    response
}

/// Span of a request, in the trace that it names.
fn span_of(request: &Request, path: Option<&MatchedPath>) -> Span {
    let of = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let route = path.map_or("none", MatchedPath::as_str);
    if LOOKED_AT.contains(&route) {
        return Span::none();
    }
    traces::request(request.method().as_str(), route, of("traceparent"), of("tracestate"))
}

/// What is counted, and what is so now.
pub async fn metrics(State(app): State<App>) -> Result<Response, Problem> {
    let mut stages = Vec::new();
    for pipeline in app.pipelines.iter() {
        stages.push((pipeline.prefix(), health::states(pipeline).await));
    }
    let text = app.metrics.text(app.jobs.in_flight(), app.spool.usage(), &stages);
    let text = text.map_err(|e| Problem::new(Kind::Unavailable, format!("metrics not written: {e}")))?;
    Ok(([(header::CONTENT_TYPE, listen::CONTENT)], text).into_response())
}
