//! `GET /metrics`: what the gateway counts.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::health;
use super::problem::{Kind, Problem};
use super::state::App;

/// Type of the body.
const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Measures a request.
pub async fn measure(State(app): State<App>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let (path, method) = (request.extensions().get::<MatchedPath>().cloned(), request.method().clone());
    let response = next.run(request).await;
    app.metrics.asked(path.as_ref(), &method, response.status(), started.elapsed().as_secs_f64());
    response
}

/// What is counted, and what is so now.
pub async fn metrics(State(app): State<App>) -> Result<Response, Problem> {
    let mut stages = Vec::new();
    for pipeline in app.pipelines.iter() {
        stages.push((pipeline.prefix(), health::states(pipeline).await));
    }
    let text = app.metrics.text(app.jobs.in_flight(), app.spool.usage(), &stages);
    let text = text.map_err(|e| Problem::new(Kind::Unavailable, format!("metrics not written: {e}")))?;
    Ok(([(header::CONTENT_TYPE, CONTENT)], text).into_response())
}
