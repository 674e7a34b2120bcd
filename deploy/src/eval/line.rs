//! Line of the file of answers: a query, how it was asked, and what came of it.

use protocol::event::{Cached, ModelName};
use serde::{Deserialize, Serialize};

use super::ranges::Range;
use super::records::Id;

/// Settings that every query of a run is asked with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Asking {
    /// Frames a second to look at.
    pub fps: f64,
    /// Length of an answer at most, tokens.
    pub max_new_tokens: u32,
}

/// Line of the file.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// Name of the query.
    pub query_id: &'a Id,
    /// The video that it is about.
    pub video_id: &'a str,
    /// Length of the video as the truth has it, seconds.
    pub duration: Option<f64>,
    /// What was looked for, in words.
    pub query: &'a str,
    /// Kind of the question as the truth has it.
    pub task: Option<&'a str>,
    /// How it was asked.
    #[serde(flatten)]
    pub asking: Asking,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of asking.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// An answer.
    Answered {
        /// Starts and ends, seconds.
        answer: Vec<Range>,
        /// The answer as the model wrote it.
        text: String,
        /// Where the video was known already.
        cached: Cached,
        /// Time from asking to the answer, seconds.
        seconds: f64,
        /// Model that answered.
        model: ModelName,
    },
    /// None.
    Failed {
        /// Reason for that.
        error: Failure,
    },
}

/// Reason for which a query has no answer.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// Kind of the error, as in a failed job's event; `cancelled` or `deadline` for a job that somebody ended.
    pub kind: String,
    /// Sentence for a person.
    pub message: String,
}

/// What is read of a line that is there already.
#[derive(Debug, Deserialize)]
pub struct Seen {
    /// Name of the query.
    pub query_id: Id,
    /// The video that it is about.
    pub video_id: String,
    /// What was looked for, in words.
    pub query: String,
    /// Frames a second that were looked at, where the line says so.
    #[serde(default)]
    pub fps: Option<f64>,
    /// Length of an answer at most, tokens, where the line says so.
    #[serde(default)]
    pub max_new_tokens: Option<u32>,
    /// The answer; none where asking failed.
    #[serde(default)]
    pub answer: Option<Vec<Vec<f64>>>,
    /// Model that answered, where the line says so.
    #[serde(default)]
    pub model: Option<ModelName>,
}

impl Seen {
    /// Whether it was asked with other settings.
    pub fn differs(&self, asking: Asking) -> bool {
        self.fps.is_some_and(|fps| fps != asking.fps)
            || self.max_new_tokens.is_some_and(|most| most != asking.max_new_tokens)
    }
}

/// A model with the types that it computes in, for a person.
pub fn model_text(ModelName { name, dtype, weights, kv }: &ModelName) -> String {
    format!("{name} ({dtype}, weights {weights}, kv {kv})")
}
