//! `POST /v1/chat/completions`: questions about a video in OpenAI's shape.
//!
//! In reading order: [`part`] (parts of a message's content), [`video`] (where a video comes from), [`request`] (a body to a job),
//! [`completion`] (an answer to a body), [`stream`] (the same in chunks).

mod completion;
mod part;
mod request;
mod stream;
mod video;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use super::state::App;
use super::{answer, intake};
use completion::Completion;
use request::Chat;

/// Answers the question of the last message about the last video of the chat.
pub async fn completions(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let body = intake::json_body(&app, request).await?;
    let Chat { asked, model, stream, include_usage } = request::chat(&app, body).await?;
    let completion = Completion::new(&asked.request, model, app.pipelines.tasks(&asked.pipeline));
    if stream {
        return Ok(stream::streamed(app, asked, completion, include_usage));
    }
    let result = answer::wait(&app, asked, |_| {}).await?;
    Ok(Json(completion.whole(&result)).into_response())
}
