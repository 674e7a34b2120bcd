//! `GET /v1/models`: the models that answer, in OpenAI's shape.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use stage_llm::text::task::{QueryRule, RangeSource, Task};

use super::pipelines::Model;
use super::state::App;

/// The list; the first answers where a request names none.
pub async fn models(State(app): State<App>) -> Json<Value> {
    let models = app.pipelines.models().await;
    let one = |model: &Model| {
        let tasks: Vec<Value> = app.pipelines.tasks(&model.pipeline).iter().map(shown).collect();
        let mut one = json!({ "id": model.id, "object": "model", "created": 0, "owned_by": "vidi", "tasks": tasks });
        one["prefix"] = json!(model.pipeline.prefix());
        if let Some(family) = model.family {
            one["family"] = json!(family.as_str());
        }
        one
    };
    Json(json!({ "object": "list", "data": models.iter().map(one).collect::<Vec<_>>() }))
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
