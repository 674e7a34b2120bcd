//! `/livez`, `/health` and `/readyz`.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use protocol::error::StageName;
use serde_json::json;

use super::stages::{Condition, StageState};
use super::state::App;
use crate::client;

/// Times that stages which do not answer are asked: on a busy machine an answer takes longer than one question waits.
const TRIES: usize = 5;

/// `GET /livez`: 200.
pub async fn live() -> Json<serde_json::Value> {
    Json(json!({ "status": "live" }))
}

/// `GET /health`: 200 when a question would be answered now without loading a model, else 503; the state of each stage.
pub async fn ready(State(app): State<App>) -> Response {
    let states = states(&app).await;
    let is_ready = states.values().all(|stage| stage.state == Condition::Ready);
    let (status, said) = match is_ready {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    };
    (status, Json(json!({ "status": said, "stages": states }))).into_response()
}

/// State of every stage.
pub async fn states(app: &App) -> BTreeMap<StageName, StageState> {
    let mut there = BTreeSet::new();
    for _ in 0..TRIES {
        // A broker that cannot be asked has no stages.
        there.extend(client::ready(&app.bus).await.unwrap_or_default());
        let is_awaited =
            |stage: &StageName| !there.contains(stage) && app.stages.state(*stage, false).state != Condition::Unloaded;
        if !StageName::ALL.iter().any(is_awaited) {
            break;
        }
    }
    StageName::ALL.map(|stage| (stage, app.stages.state(stage, there.contains(&stage)))).into()
}
