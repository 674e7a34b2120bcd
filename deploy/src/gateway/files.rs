//! `/v1/files`: uploads.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::form;
use super::intake::file_id;
use super::problem::Problem;
use super::spool::{Facts, no_file};
use super::state::App;

/// `POST /v1/files`: a form with the file `file` or `video`; 201, or 200 where its bytes are here already.
pub async fn upload(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    if !form::is_form(&request) {
        return Err(Problem::bad_request("it is no form").hint("send multipart/form-data with the file `file`"));
    }
    let form = form::read(&app, request, &["file", "video"]).await?;
    let (is_new, held) = form.file.ok_or_else(|| {
        Problem::bad_request("the form has no file").hint("put the video into the field `file`, with a file name")
    })?;
    app.lend(Some(&held), None).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    let place = format!("/v1/files/file-{}", held.facts.id);
    Ok((status, [(header::LOCATION, place)], Json(shown(&held.facts))).into_response())
}

/// `GET /v1/files/{id}`: facts about an uploaded file.
pub async fn look(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    let facts = app.spool.facts(file_id(&id)).ok_or_else(|| no_file(&id))?;
    Ok(Json(shown(&facts)))
}

/// `DELETE /v1/files/{id}`: removes it, unless a job needs it.
pub async fn remove(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    app.spool.remove(file_id(&id))?;
    Ok(Json(json!({ "id": id, "object": "file", "deleted": true })))
}

/// A file as OpenAI's interface shows one.
fn shown(facts: &Facts) -> Value {
    json!({
        "id": format!("file-{}", facts.id),
        "object": "file",
        "bytes": facts.bytes,
        "created_at": facts.created_s,
        "filename": facts.name,
        "purpose": "vision",
        "status": "processed",
    })
}
