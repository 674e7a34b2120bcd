//! Errors as HTTP has them: problem+json (RFC 9457) with the kind, stage, message and hint of the pipeline's own errors.

use std::collections::BTreeMap;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::event::CancelledBy;
use serde_json::{Value, json};

/// Seconds after which a client that was refused for now should come again.
const RETRY_AFTER_S: u64 = 5;

/// Kind of a refusal: one of a job, or one that only the gateway knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reason for which a job failed.
    Job(ErrorKind),
    /// No token, or a wrong one.
    Unauthorized,
    /// The request comes from a web page of elsewhere.
    ForbiddenOrigin,
    /// No such path, job or file.
    NotFound,
    /// The path is there, for another method.
    MethodNotAllowed,
    /// It contradicts what is there already.
    Conflict,
    /// The body is larger than the gateway takes.
    TooLarge,
    /// The client stopped sending.
    SlowClient,
    /// The uploaded files that jobs need leave no capacity for another one.
    SpoolFull,
    /// The broker, a supervisor or the spool's disk does not do what was asked.
    Unavailable,
    /// A host that has the video does not give it.
    FetchFailed,
    /// Somebody else cancelled the job.
    Cancelled,
}

impl Kind {
    /// Status of a response about it: the one table.
    pub fn status(self) -> StatusCode {
        match self {
            Kind::Job(ErrorKind::BadRequest) => StatusCode::BAD_REQUEST,
            Kind::Job(ErrorKind::ForbiddenPath) | Kind::ForbiddenOrigin => StatusCode::FORBIDDEN,
            Kind::Job(ErrorKind::MediaNotFound) | Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Job(ErrorKind::DoesNotFit) | Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::Job(ErrorKind::UnsupportedMedia) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Kind::Job(ErrorKind::TooShort) => StatusCode::UNPROCESSABLE_ENTITY,
            Kind::Job(ErrorKind::Busy) => StatusCode::TOO_MANY_REQUESTS,
            Kind::Job(ErrorKind::OutOfMemory | ErrorKind::WorkerLost | ErrorKind::Model) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Kind::Job(ErrorKind::Deadline) => StatusCode::GATEWAY_TIMEOUT,
            Kind::Job(ErrorKind::PoisonMessage | ErrorKind::Internal) => StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Unauthorized => StatusCode::UNAUTHORIZED,
            Kind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Kind::Conflict | Kind::Cancelled => StatusCode::CONFLICT,
            Kind::SlowClient => StatusCode::REQUEST_TIMEOUT,
            Kind::SpoolFull => StatusCode::INSUFFICIENT_STORAGE,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::FetchFailed => StatusCode::BAD_GATEWAY,
        }
    }

    /// Name that a program matches on.
    pub fn name(self) -> String {
        match self {
            Kind::Job(kind) => serde_json::to_value(kind).ok().and_then(|v| v.as_str().map(str::to_owned)),
            Kind::Unauthorized => Some("unauthorized".to_owned()),
            Kind::ForbiddenOrigin => Some("forbidden_origin".to_owned()),
            Kind::NotFound => Some("not_found".to_owned()),
            Kind::MethodNotAllowed => Some("method_not_allowed".to_owned()),
            Kind::Conflict => Some("conflict".to_owned()),
            Kind::TooLarge => Some("too_large".to_owned()),
            Kind::SlowClient => Some("slow_client".to_owned()),
            Kind::SpoolFull => Some("spool_full".to_owned()),
            Kind::Unavailable => Some("unavailable".to_owned()),
            Kind::FetchFailed => Some("fetch_failed".to_owned()),
            Kind::Cancelled => Some("cancelled".to_owned()),
        }
        .unwrap_or_default()
    }
}

/// Refusal of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Its kind, which says the status too.
    pub kind: Kind,
    /// Stage where it happened, if in one.
    pub stage: Option<StageName>,
    /// Sentence for a person: what failed, with the figures.
    pub message: String,
    /// What to do about it.
    pub hint: String,
    /// Figures for a program.
    pub details: BTreeMap<String, Value>,
}

impl Problem {
    /// Problem without hint or figures yet.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Problem { kind, stage: None, message: message.into(), hint: String::new(), details: BTreeMap::new() }
    }

    /// Request that is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Problem::new(Kind::Job(ErrorKind::BadRequest), format!("request refused: {}", message.into()))
    }

    /// Pipeline that does not do what was asked.
    pub fn unavailable(error: &anyhow::Error) -> Self {
        Problem::new(Kind::Unavailable, format!("{error:#}"))
    }

    /// Says what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Adds a figure.
    pub fn detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// Problem of a job that was cancelled.
    pub fn cancelled(by: CancelledBy, deadline_s: Option<f64>) -> Self {
        match by {
            CancelledBy::Deadline => {
                let after = deadline_s.map_or(String::new(), |s| format!(" of {s} s from submission"));
                Problem::new(Kind::Job(ErrorKind::Deadline), format!("job cancelled: its deadline{after} passed"))
                    .hint("ask with a later deadline_s, a shorter span or a lower fps")
            }
            CancelledBy::Client => Problem::new(Kind::Cancelled, "job cancelled: by a client"),
            CancelledBy::Operator => Problem::new(Kind::Cancelled, "job cancelled: by an operator"),
        }
    }

    /// Body of its response.
    pub fn body(&self) -> Value {
        let name = self.kind.name();
        let mut body = json!({
            "type": "about:blank",
            "title": name.replace('_', " "),
            "status": self.kind.status().as_u16(),
            "detail": self.message,
            "kind": name,
            "message": self.message,
        });
        if let Some(stage) = self.stage {
            body["stage"] = json!(stage);
        }
        if !self.hint.is_empty() {
            body["hint"] = json!(self.hint);
        }
        if !self.details.is_empty() {
            body["details"] = json!(self.details);
        }
        body
    }
}

impl From<JobError> for Problem {
    fn from(error: JobError) -> Self {
        let JobError { kind, stage, message, hint, details } = error;
        Problem { kind: Kind::Job(kind), stage, message, hint, details }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.kind.status();
        let mut response = (status, self.body().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::TOO_MANY_REQUESTS {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        if self.kind == Kind::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 24] = [
        Kind::Job(ErrorKind::BadRequest),
        Kind::Job(ErrorKind::MediaNotFound),
        Kind::Job(ErrorKind::ForbiddenPath),
        Kind::Job(ErrorKind::UnsupportedMedia),
        Kind::Job(ErrorKind::TooShort),
        Kind::Job(ErrorKind::DoesNotFit),
        Kind::Job(ErrorKind::OutOfMemory),
        Kind::Job(ErrorKind::Deadline),
        Kind::Job(ErrorKind::PoisonMessage),
        Kind::Job(ErrorKind::WorkerLost),
        Kind::Job(ErrorKind::Busy),
        Kind::Job(ErrorKind::Model),
        Kind::Job(ErrorKind::Internal),
        Kind::Unauthorized,
        Kind::ForbiddenOrigin,
        Kind::NotFound,
        Kind::MethodNotAllowed,
        Kind::Conflict,
        Kind::TooLarge,
        Kind::SlowClient,
        Kind::SpoolFull,
        Kind::Unavailable,
        Kind::FetchFailed,
        Kind::Cancelled,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_stands_with_its_status_in_the_readme() {
        let readme = include_str!("../../README.md");
        for kind in Kind::ALL {
            let row = format!("| `{}` | {} |", kind.name(), kind.status().as_u16());
            assert!(readme.contains(&row), "deploy/README.md has no row {row}");
        }
    }

    #[test]
    fn kinds_have_the_statuses_that_the_design_gives_them() {
        let table = [
            (ErrorKind::BadRequest, 400, "bad_request"),
            (ErrorKind::ForbiddenPath, 403, "forbidden_path"),
            (ErrorKind::MediaNotFound, 404, "media_not_found"),
            (ErrorKind::DoesNotFit, 413, "does_not_fit"),
            (ErrorKind::UnsupportedMedia, 415, "unsupported_media"),
            (ErrorKind::Busy, 429, "busy"),
            (ErrorKind::OutOfMemory, 503, "out_of_memory"),
            (ErrorKind::Deadline, 504, "deadline"),
        ];
        for (kind, status, name) in table {
            let problem = Problem::from(JobError::new(kind, "m").hint("h").at(StageName::Llm).detail("bytes", 7));
            let body = problem.body();
            assert_eq!((body["status"].as_u64(), body["kind"].as_str()), (Some(status), Some(name)));
            assert_eq!((&body["stage"], &body["message"], &body["hint"]), (&json!("llm"), &json!("m"), &json!("h")));
            assert_eq!(body["details"]["bytes"], 7);
            let response = problem.into_response();
            assert_eq!(response.status().as_u16(), status as u16);
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
            assert_eq!(response.headers().contains_key(header::RETRY_AFTER), kind == ErrorKind::Busy);
        }
    }
}
