//! Multipart bodies: fields as texts, one file to the spool as it comes.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request};
use axum::http::header;
use futures::TryFutureExt;
use protocol::bytes::Bytes;

use super::problem::{Kind, Problem};
use super::spool::Held;
use super::state::State;
use super::upload::{Upload, too_large};

/// Bytes of a field that is no file, at most.
const FIELD_BYTES: usize = 64 << 10;
/// Fields of a body at most.
const FIELDS: usize = 64;
/// Bytes that a body of one file has besides that file, at most.
const AROUND: u64 = 8 << 20;

/// Body of a form.
#[derive(Default)]
pub struct Form {
    /// Fields that are texts.
    pub fields: BTreeMap<String, String>,
    /// The uploaded file, and whether the spool did not have it yet.
    pub file: Option<(bool, Held)>,
}

/// Whether a request has a multipart body.
pub fn is_form(request: &Request) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with("multipart/"))
}

/// Reads a form whose file is in a field of one of these names.
///
/// # Errors
/// `bad_request` for what is no form, has two files or a field twice; `too_large`; `slow_client`; and the spool's.
pub async fn read(app: &State, request: Request, file_fields: &[&str]) -> Result<Form, Problem> {
    let limit = app.http.upload_bytes;
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit.saturating_add(AROUND)) {
        return Err(too_large(limit));
    }
    let multipart = Multipart::from_request(request, &()).await;
    let mut multipart = multipart.map_err(|e| Problem::bad_request(e.body_text()).hint("send multipart/form-data"))?;
    let mut form = Form::default();
    let idle = Duration::from_secs_f64(app.http.idle_s);
    while let Some(field) = timely(idle, multipart.next_field()).await? {
        let name = field.name().unwrap_or_default().to_owned();
        if file_fields.contains(&name.as_str()) {
            if form.file.is_some() {
                return Err(Problem::bad_request("it has more than one file"));
            }
            form.file = Some(file(app, field, idle).await?);
        } else {
            let text = text(field, &name, idle).await?;
            if form.fields.insert(name.clone(), text).is_some() {
                return Err(Problem::bad_request(format!("field {name:?} is there twice")));
            }
        }
        if form.fields.len() > FIELDS {
            return Err(Problem::bad_request(format!("it has more than {FIELDS} fields")));
        }
    }
    Ok(form)
}

async fn file(app: &State, mut field: Field<'_>, idle: Duration) -> Result<(bool, Held), Problem> {
    let name = field.file_name().unwrap_or_default().to_owned();
    let mut upload = Upload::begin(&app.spool, &name, app.http.upload_bytes)?;
    while let Some(chunk) = timely(idle, field.chunk()).await? {
        upload.write(&chunk).await?;
    }
    upload.finish().await
}

async fn text(mut field: Field<'_>, name: &str, idle: Duration) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    while let Some(chunk) = timely(idle, field.chunk()).await? {
        if bytes.len() + chunk.len() > FIELD_BYTES {
            let text = format!("field {name:?} has more than {}", Bytes(FIELD_BYTES as u64));
            return Err(Problem::new(Kind::TooLarge, format!("request refused: {text}")));
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| Problem::bad_request(format!("field {name:?} is not UTF-8")))
}

/// What a client sends next, where it does not keep silent for too long.
async fn timely<T>(idle: Duration, next: impl Future<Output = Result<T, MultipartError>>) -> Result<T, Problem> {
    let broken =
        |e: MultipartError| Problem::bad_request(format!("the form ends early or is broken: {}", e.body_text()));
    match tokio::time::timeout(idle, next.map_err(broken)).await {
        Ok(next) => next,
        Err(_) => {
            let text = format!("request given up: the client sent nothing for {idle:?} (http.idle_s)");
            Err(Problem::new(Kind::SlowClient, text))
        }
    }
}
