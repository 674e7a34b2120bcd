//! `GET /v1/models`: the model that answers, in OpenAI's shape.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use stage_llm::text::task::Tasks;

use super::state::{App, State as Shared};
use crate::client;

/// Name where nobody says one.
const UNNAMED: &str = "vidi";

/// The list, of one.
pub async fn models(State(app): State<App>) -> Json<Value> {
    let tasks: Vec<Value> = Tasks::builtin().names().map(|name| json!({ "name": name })).collect();
    let model = json!({ "id": name(&app).await, "object": "model", "created": 0, "owned_by": "vidi", "tasks": tasks });
    Json(json!({ "object": "list", "data": [model] }))
}

/// Name of the model that answers: what stage-llm says, else this process's configuration.
pub async fn name(app: &Shared) -> String {
    let said = client::model(&app.bus).await.unwrap_or_default();
    let named = said.or_else(|| Some(app.model.clone())).filter(|name| !name.is_empty());
    named.unwrap_or_else(|| UNNAMED.to_owned())
}
