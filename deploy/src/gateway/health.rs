//! `/livez`, `/health` and `/readyz`.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use protocol::error::StageName;
use serde::Deserialize;
use serde_json::json;

use super::pipelines::Pipeline;
use super::problem::Problem;
use super::stages::{Condition, StageState};
use super::state::App;
use crate::client;

/// Times that stages which do not answer are asked: on a busy machine an answer takes longer than one question waits.
const TRIES: usize = 5;

/// `GET /livez`: 200.
pub async fn live() -> Json<serde_json::Value> {
    Json(json!({ "status": "live" }))
}

/// Query of the request.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Model that is asked about; the own one where it is left out.
    model: Option<String>,
}

/// `GET /health`: 200 when a question to the model would be answered now without loading it, else 503; the state of each stage.
pub async fn ready(State(app): State<App>, wanted: Result<Query<Wanted>, QueryRejection>) -> Result<Response, Problem> {
    let Query(Wanted { model }) =
        wanted.map_err(|e| Problem::bad_request(e.body_text()).hint("?model=NAME, or none"))?;
    let pipeline = app.pipelines.pipeline(model.as_deref()).await?;
    let states = states(&pipeline).await;
    let is_ready = states.values().all(|stage| stage.state == Condition::Ready);
    let (status, said) = match is_ready {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    };
    Ok((status, Json(json!({ "status": said, "stages": states }))).into_response())
}

/// State of every stage of a pipeline.
pub async fn states(pipeline: &Pipeline) -> BTreeMap<StageName, StageState> {
    let (bus, stages) = (&pipeline.bus, &pipeline.stages);
    let mut there = BTreeSet::new();
    for _ in 0..TRIES {
        // A broker that cannot be asked has no stages.
        there.extend(client::ready(bus).await.unwrap_or_default());
        let is_awaited =
            |stage: &StageName| !there.contains(stage) && stages.state(*stage, false).state != Condition::Unloaded;
        if !StageName::ALL.iter().any(is_awaited) {
            break;
        }
    }
    StageName::ALL.map(|stage| (stage, stages.state(stage, there.contains(&stage)))).into()
}
