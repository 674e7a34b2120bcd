//! Question of a client about a video.

use serde::{Deserialize, Serialize};

use super::check::{allowed, check_span};
use crate::event::is_zero;
use crate::job_id::JobId;
use crate::wire::{Message, VERSION, version};
use crate::wire_error::WireError;

/// Question about a video, published to `jobs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRequest {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Name of the job; the same name twice is the same job.
    pub job: JobId,
    /// Path or `file:` URI under a media root, as stage-decode sees it.
    pub video: String,
    /// Task of stage-llm's registry.
    #[serde(default = "retrieval")]
    pub task: String,
    /// Question, in words.
    #[serde(default)]
    pub query: String,
    /// Questions, several at once about one video, in place of `query`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queries: Vec<String>,
    /// Parser of the answer, in place of the task's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parser: Option<String>,
    /// Seconds to add to both ends of each range.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pad_s: f64,
    /// Seconds that two ranges may be apart to become one; 0 joins none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub join_s: f64,
    /// Part of the video that alone counts: start and end in seconds.
    #[serde(default)]
    pub span: Option<[f64; 2]>,
    /// Sampling rate, frames a second; the reference's is 1.
    #[serde(default = "one")]
    pub fps: f64,
    /// Length of the answer at most.
    #[serde(default = "max_new_tokens")]
    pub max_new_tokens: u32,
    /// Temperature of sampling; 0 is greedy, the reference.
    #[serde(default)]
    pub temperature: f64,
    /// Nucleus of the distribution to sample from.
    #[serde(default = "one")]
    pub top_p: f64,
    /// Seed of the sampler.
    #[serde(default)]
    pub seed: u64,
    /// Seconds from submission after which the job is cancelled.
    #[serde(default)]
    pub deadline_s: Option<f64>,
    /// Priority, 0 to 9, higher first.
    #[serde(default = "priority")]
    pub priority: u8,
}

/// Most questions of one job.
pub const MOST_QUERIES: usize = 64;

fn retrieval() -> String {
    "retrieval".to_owned()
}
fn one() -> f64 {
    1.0
}
fn max_new_tokens() -> u32 {
    1024
}
fn priority() -> u8 {
    5
}

impl JobRequest {
    /// Request with the protocol's defaults.
    pub fn new(job: JobId, video: impl Into<String>, query: impl Into<String>) -> Self {
        JobRequest {
            v: VERSION,
            job,
            video: video.into(),
            task: retrieval(),
            query: query.into(),
            queries: Vec::new(),
            parser: None,
            pad_s: 0.0,
            join_s: 0.0,
            span: None,
            fps: one(),
            max_new_tokens: max_new_tokens(),
            temperature: 0.0,
            top_p: one(),
            seed: 0,
            deadline_s: None,
            priority: priority(),
        }
    }

    /// The same request with these questions: one in `query`, several in `queries`.
    pub fn with_queries(self, mut queries: Vec<String>) -> Self {
        let query = if queries.len() == 1 { queries.remove(0) } else { String::new() };
        JobRequest { query, queries, ..self }
    }
}

impl Message for JobRequest {
    fn check(&self) -> Result<(), WireError> {
        check_span(self.span)?;
        let several = self.queries.is_empty() || self.query.is_empty();
        allowed(several, "query and queries exclude each other: keep one")?;
        allowed(self.queries.len() <= MOST_QUERIES, "queries are 64 at most")?;
        let seconds = |s: f64| s.is_finite() && s >= 0.0;
        allowed(seconds(self.pad_s) && seconds(self.join_s), "pad_s and join_s are 0 or more seconds")?;
        allowed(self.fps.is_finite() && self.fps > 0.0 && self.fps <= 1000.0, "fps is over 0, at most 1000")?;
        allowed((1..=8192).contains(&self.max_new_tokens), "max_new_tokens is 1 to 8192")?;
        allowed((0.0..=10.0).contains(&self.temperature), "temperature is 0 to 10")?;
        allowed(self.top_p > 0.0 && self.top_p <= 1.0, "top_p is over 0, at most 1")?;
        allowed(self.deadline_s.is_none_or(|d| d > 0.0 && d.is_finite()), "deadline_s is over 0")?;
        allowed(self.priority <= 9, "priority is 0 to 9")
    }
}
