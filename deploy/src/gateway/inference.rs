//! `POST /inference`: the wire of services that asked an earlier Vidi server.

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Map, Value, json};

use super::form::{self, Form};
use super::problem::Problem;
use super::state::App;
use super::{answer, clock, intake};
use crate::export::clock::resolution_of;

/// Fields of the form that a JobRequest has under the same name.
const PASSED_ON: [&str; 16] = [
    "job",
    "queries",
    "parser",
    "pad_s",
    "join_s",
    "fps",
    "span",
    "max_new_tokens",
    "temperature",
    "top_p",
    "seed",
    "deadline_s",
    "priority",
    "detach",
    "file_id",
    "model",
];

/// A form with `video` (a file) or `video_path`, `question`, and `task`: `vqa` or `retrieval`; answers `{"answer": text}`.
pub async fn inference(State(app): State<App>, request: Request) -> Result<Json<Value>, Problem> {
    if !form::is_form(&request) {
        let hint = "send multipart/form-data with `video` or `video_path`, `question` and `task`";
        return Err(Problem::bad_request("it is no form").hint(hint));
    }
    let Form { fields, file } = form::read(&app, request, &["video"]).await?;
    let mut body = Map::new();
    for (name, text) in fields {
        match name.as_str() {
            "video_path" => body.insert("video".to_owned(), json!(text)),
            "question" | "query" => body.insert("query".to_owned(), json!(text)),
            "task" => body.insert(name, json!(if text == "vqa" { "qa" } else { text.as_str() })),
            "job" | "file_id" | "parser" | "model" => body.insert(name, json!(text)),
            other if PASSED_ON.contains(&other) => {
                let value: Result<Value, _> = serde_json::from_str(&text);
                let wrong = |e| Problem::bad_request(format!("field {other:?} is {text:?}: {e}"));
                let value = value.map_err(wrong)?;
                body.insert(name, value)
            }
            other => {
                let hint = format!("known are video, video_path, question, task, {}", PASSED_ON.join(", "));
                return Err(Problem::bad_request(format!("no field {other:?}")).hint(hint));
            }
        };
    }
    body.entry("task").or_insert_with(|| json!("qa"));
    let asked = intake::job(&app, body, file.map(|(_, held)| held)).await?;
    let job = asked.request.job.clone();
    let result = answer::wait(&app, asked, |_| {}).await?;
    let mut body = json!({
        "answer": clock::text(&result, clock::hundredths),
        "ranges": result.ranges,
        "job": job,
        "resolution_s": resolution_of(&result),
    });
    // What only some answers have.
    let Value::Object(more) = json!({
        "supported": result.supported,
        "answers": result.answers,
        "boxes": result.boxes,
        "reason": result.reason,
        "notes": result.notes,
    }) else {
        return Ok(Json(body));
    };
    for (name, value) in more.into_iter().filter(|(_, value)| !value.is_null() && *value != json!([])) {
        body[name] = value;
    }
    Ok(Json(body))
}
