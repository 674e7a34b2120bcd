//! `POST /inference`: the wire of services that asked an earlier Vidi server.

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Map, Value, json};

use super::form::{self, Form};
use super::problem::Problem;
use super::state::App;
use super::{answer, clock, intake};
use crate::export::clock::resolution_s;

/// Fields of the form that a JobRequest has under the same name.
const PASSED_ON: [&str; 11] = [
    "job",
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
            "job" | "file_id" => body.insert(name, json!(text)),
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
    let asked = intake::job(&app, body, file.map(|(_, held)| held))?;
    let (job, is_retrieval) = (asked.request.job.clone(), asked.request.task == "retrieval");
    let result = answer::wait(&app, asked, |_| {}).await?;
    let text = if is_retrieval { clock::hundredths(&result.ranges) } else { result.text.clone() };
    Ok(Json(json!({
        "answer": text,
        "ranges": result.ranges,
        "job": job,
        "resolution_s": resolution_s(&result.text, result.plan.duration_s),
    })))
}
