//! `GET /v1/models`: the model that answers, in OpenAI's shape.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use stage_llm::text::task::{QueryRule, RangeSource, Task};

use super::state::{App, State as Shared};
use crate::client;

/// Name where nobody says one.
const UNNAMED: &str = "vidi";

/// The list, of one.
pub async fn models(State(app): State<App>) -> Json<Value> {
    let tasks: Vec<Value> = app.tasks.iter().map(shown).collect();
    let model = json!({ "id": name(&app).await, "object": "model", "created": 0, "owned_by": "vidi", "tasks": tasks });
    Json(json!({ "object": "list", "data": [model] }))
}

/// A task: its name, whether the released weights can do it, whether it needs a query and takes several, and what reads its answer.
fn shown(task: &Task) -> Value {
    let takes_several = task.query == QueryRule::Required || matches!(task.ranges, Some(RangeSource::Queries { .. }));
    json!({
        "name": task.name,
        "about": task.about,
        "supported": task.supported,
        "parser": task.parser,
        "query": task.query,
        "queries": takes_several,
    })
}

/// Name of the model that answers: what stage-llm says, else this process's configuration.
pub async fn name(app: &Shared) -> String {
    let said = client::model(&app.bus).await.unwrap_or_default();
    let named = said.or_else(|| Some(app.model.clone())).filter(|name| !name.is_empty());
    named.unwrap_or_else(|| UNNAMED.to_owned())
}
