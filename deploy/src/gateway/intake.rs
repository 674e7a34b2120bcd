//! Requests for jobs: JSON or a form to the JobRequest that is submitted.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::header;
use futures::StreamExt;
use protocol::bytes::Bytes;
use protocol::json::unmarked;
use protocol::message::{JobId, JobRequest};
use protocol::wire::Message;
use serde_json::{Map, Value, json};

use super::form::{self, Form};
use super::pipelines::Pipeline;
use super::problem::{Kind, Problem};
use super::spool::{Held, no_file};
use super::state::State;

/// Fields of a request that are texts in a form too; all others are written there as in JSON.
const TEXTS: [&str; 7] = ["job", "video", "task", "query", "parser", "file_id", "model"];

/// Job as it was asked for.
pub struct Asked {
    /// Pipeline that is to answer it.
    pub pipeline: Arc<Pipeline>,
    /// Request as it is submitted.
    pub request: JobRequest,
    /// Whether it goes on though its client hangs up.
    pub detach: bool,
    /// Hold on its video, where that was uploaded.
    pub held: Option<Held>,
}

/// Reads the body of `POST /v1/jobs`: JSON, or a form with the file `video`.
///
/// # Errors
/// As [`form::read`] and [`job`].
pub async fn read(app: &State, request: Request) -> Result<Asked, Problem> {
    if !form::is_form(&request) {
        let body = json_body(app, request).await?;
        return job(app, body, None).await;
    }
    let Form { fields, file } = form::read(app, request, &["video"]).await?;
    job(app, object(fields)?, file.map(|(_, held)| held)).await
}

/// Reads a body that is a JSON object.
///
/// # Errors
/// `too_large`, `slow_client`, and `bad_request` for what is none.
pub async fn json_body(app: &State, request: Request) -> Result<Map<String, Value>, Problem> {
    let limit = app.http.json_bytes;
    let large = || {
        let text = format!("request refused: a JSON body has at most {} (http.json_bytes)", Bytes(limit));
        Problem::new(Kind::TooLarge, text).hint("upload the video first: POST /v1/files").detail("limit_bytes", limit)
    };
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit) {
        return Err(large());
    }
    let idle = Duration::from_secs_f64(app.http.idle_s);
    let mut stream = request.into_body().into_data_stream();
    let mut body = Vec::new();
    loop {
        let chunk = tokio::time::timeout(idle, stream.next()).await.map_err(|_| {
            Problem::new(
                Kind::SlowClient,
                format!("request given up: the client sent nothing for {idle:?} (http.idle_s)"),
            )
        })?;
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(|e| Problem::bad_request(format!("its body ends early: {e}")))?;
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(large());
        }
        body.extend_from_slice(&chunk);
    }
    match serde_json::from_slice(unmarked(&body)) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Problem::bad_request("its body is JSON, and no object")),
        Err(e) => Err(Problem::bad_request(format!("its body is no JSON: {e}")).hint("send a JSON object, or a form")),
    }
}

/// Fields of a form as JSON.
fn object(fields: BTreeMap<String, String>) -> Result<Map<String, Value>, Problem> {
    let value = |(name, text): (String, String)| {
        if TEXTS.contains(&name.as_str()) {
            return Ok((name, Value::String(text)));
        }
        let value = serde_json::from_str(&text);
        let value =
            value.map_err(|e| Problem::bad_request(format!("field {name:?} is {text:?}, which is no JSON: {e}")))?;
        Ok((name, value))
    };
    fields.into_iter().map(value).collect()
}

/// The job that a JSON object describes: a JobRequest, with `file_id` in place of `video` where that was uploaded, `detach`, and
/// `model`, which chooses the pipeline. `job` is made up where it is left out.
///
/// # Errors
/// `bad_request` for a field that is off or unknown, or for no video; `not_found` for a file or a model that is not there.
pub async fn job(app: &State, mut body: Map<String, Value>, held: Option<Held>) -> Result<Asked, Problem> {
    let model = model(&mut body)?;
    let pipeline = app.pipelines.pipeline(model.as_deref()).await?;
    job_of(app, pipeline, body, held)
}

/// Takes the model that a body names, if it names one.
///
/// # Errors
/// `bad_request` for what is no name.
pub fn model(body: &mut Map<String, Value>) -> Result<Option<String>, Problem> {
    match body.remove("model") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) => Ok(Some(name)),
        Some(other) => Err(Problem::bad_request(format!("model is a text, not {other}"))),
    }
}

/// [`job`] of a pipeline that was chosen already.
///
/// # Errors
/// As `job`.
pub fn job_of(
    app: &State,
    pipeline: Arc<Pipeline>,
    mut body: Map<String, Value>,
    mut held: Option<Held>,
) -> Result<Asked, Problem> {
    let detach = match body.remove("detach") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(detach)) => detach,
        Some(other) => return Err(Problem::bad_request(format!("detach is true or false, not {other}"))),
    };
    if let Some(id) = body.remove("file_id").filter(|id| !id.is_null()) {
        let id = id.as_str().ok_or_else(|| Problem::bad_request("file_id is a text"))?.to_owned();
        if held.is_some() {
            return Err(Problem::bad_request("it has an uploaded video and a file_id: keep one"));
        }
        held = Some(app.spool.hold(file_id(&id)).ok_or_else(|| no_file(&id))?);
    }
    if let Some(held) = &held {
        if body.get("video").is_some_and(|video| !video.is_null()) {
            return Err(Problem::bad_request("it has a video's path and an uploaded one: keep one"));
        }
        body.insert("video".to_owned(), json!(app.video_of(held)));
    }
    let Some(video) = body.get("video").and_then(Value::as_str) else {
        let hint = "give `video` (a path under a media root), `file_id`, or a form with the file `video`";
        return Err(Problem::bad_request("it names no video").hint(hint));
    };
    let video = if held.is_some() { video.to_owned() } else { app.mapped(video) };
    body.insert("video".to_owned(), Value::String(video));
    body.retain(|_, value| !value.is_null());
    body.entry("job").or_insert_with(|| json!(new_job()));
    let names: Vec<String> = body.keys().cloned().collect();
    let request: JobRequest = serde_json::from_value(body.into()).map_err(|e| Problem::bad_request(e.to_string()))?;
    known(&request, &names)?;
    request.check().map_err(|e| Problem::bad_request(e.to_string()))?;
    Ok(Asked { pipeline, request, detach, held })
}

/// Refuses fields that no JobRequest has: misspelt ones would be ignored on the bus.
fn known(request: &JobRequest, names: &[String]) -> Result<(), Problem> {
    // Some are not written where they have their default.
    let some = Some("text".to_owned());
    let whole = JobRequest { queries: vec![String::new()], parser: some, pad_s: 1.0, join_s: 1.0, ..request.clone() };
    let whole = serde_json::to_value(whole).unwrap_or_default();
    match names.iter().find(|name| whole.get(name.as_str()).is_none()) {
        None => Ok(()),
        Some(name) => {
            let known = whole.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>().join(", "));
            let hint = format!("known are {}, file_id, model, detach", known.unwrap_or_default());
            Err(Problem::bad_request(format!("no field {name:?}")).hint(hint))
        }
    }
}

/// Id of a file as the spool has it, of one as clients do.
pub fn file_id(id: &str) -> &str {
    id.strip_prefix("file-").unwrap_or(id)
}

/// A new job's name.
pub fn new_job() -> String {
    // Each has a key of its own, from the system.
    let random = || RandomState::new().build_hasher().finish();
    format!("http-{:016x}{:016x}", random(), random())
}

/// Id in a request's path.
///
/// # Errors
/// `bad_request` for what is no job's id.
pub fn job_id(text: &str) -> Result<JobId, Problem> {
    JobId::new(text).map_err(|e| Problem::bad_request(e.to_string()))
}
