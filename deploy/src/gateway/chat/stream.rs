//! An answer in chunks: its text as it comes, progress as comments, `[DONE]` at the end.

use axum::body::Bytes;
use axum::response::Response;
use protocol::event::{Event, JobResult};
use serde_json::{Value, json};

use super::completion::Completion;
use crate::gateway::answer;
use crate::gateway::events::{self, Pieces};
use crate::gateway::intake::Asked;
use crate::gateway::problem::Problem;
use crate::gateway::state::App;

/// Streams the answer of a job, which is cancelled when nobody takes it any more.
pub fn streamed(app: App, asked: Asked, completion: Completion, include_usage: bool) -> Response {
    let (pieces, response) = events::streamed();
    tokio::spawn(async move {
        let mut chunks = Chunks { completion, pieces: pieces.clone(), said: String::new(), idle_s: app.http.idle_s };
        let role = chunks.completion.chunk(json!({ "role": "assistant", "content": "" }));
        if !chunks.send(&role).await {
            return;
        }
        let outcome = tokio::select! {
            outcome = answer::wait(&app, asked, |event| chunks.note(event)) => outcome,
            () = pieces.closed() => return,
        };
        chunks.end(outcome, include_usage).await;
    });
    response
}

struct Chunks {
    completion: Completion,
    pieces: Pieces,
    /// Text that was sent.
    said: String,
    idle_s: f64,
}

impl Chunks {
    /// Passes on what there is to tell of an event, where the reader is fast enough: text that it misses comes at the end.
    fn note(&mut self, event: &Event) {
        match event {
            Event::Text { delta, at, .. } if self.completion.grows() => {
                let Some(new) = unsaid(delta, *at, self.said.len()) else { return };
                let chunk = self.completion.chunk(json!({ "content": new }));
                if self.pieces.try_send(Ok(Bytes::from(data(&chunk)))).is_ok() {
                    self.said += new;
                }
            }
            Event::Text { .. } => {}
            other => {
                let told = serde_json::to_string(other).unwrap_or_default();
                // A comment that is lost is no loss.
                let _ = self.pieces.try_send(Ok(Bytes::from(format!(": {told}\n\n"))));
            }
        }
    }

    async fn end(mut self, outcome: Result<JobResult, Problem>, include_usage: bool) {
        match outcome {
            Ok(result) => {
                let text = self.completion.text(&result);
                let rest = rest(&text, &self.said).to_owned();
                let mut chunks = Vec::new();
                if !rest.is_empty() {
                    chunks.push(self.completion.chunk(json!({ "content": rest })));
                }
                chunks.push(self.completion.last_chunk(&result));
                if include_usage {
                    chunks.push(self.completion.usage_chunk(&result));
                }
                for chunk in chunks {
                    if !self.send(&chunk).await {
                        return;
                    }
                }
            }
            Err(problem) => {
                let body = problem.body();
                let (kind, code) = (problem.kind.name(), problem.kind.status().as_u16());
                let error = json!({ "message": problem.message, "type": kind, "code": code, "problem": body });
                if !self.send(&json!({ "error": error })).await {
                    return;
                }
            }
        }
        events::send(&self.pieces, "data: [DONE]\n\n".to_owned(), self.idle_s).await;
    }

    async fn send(&mut self, chunk: &Value) -> bool {
        events::send(&self.pieces, data(chunk), self.idle_s).await
    }
}

fn data(chunk: &Value) -> String {
    format!("data: {chunk}\n\n")
}

/// What of a piece of text was not said, where it goes on behind what was; `at` is the number of bytes before it.
fn unsaid(delta: &str, at: u64, said: usize) -> Option<&str> {
    let before = said.checked_sub(usize::try_from(at).ok()?)?;
    delta.get(before..).filter(|new| !new.is_empty())
}

/// What of a whole text was not said yet; pieces may have white space around it that the whole has not.
fn rest<'a>(text: &'a str, said: &str) -> &'a str {
    let said = said.trim_start();
    text.strip_prefix(said).or_else(|| text.strip_prefix(said.trim_end())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_that_comes_again_is_said_once_and_one_that_was_missed_comes_at_the_end() {
        assert_eq!(unsaid("a red", 0, 0), Some("a red"));
        assert_eq!(unsaid("a red", 0, 5), None);
        assert_eq!(unsaid("a red circle", 0, 5), Some(" circle"));
        assert_eq!(unsaid(" circle", 5, 5), Some(" circle"));
        // Something before it was not taken.
        assert_eq!(unsaid("!", 12, 5), None);
        assert_eq!(rest("a red circle", " a red"), " circle");
        assert_eq!(rest("a red circle", "a red circle "), "");
        assert_eq!(rest("a red circle", ""), "a red circle");
    }
}
