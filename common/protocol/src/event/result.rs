//! Result of a job: its answers, how they were read, and what it took.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Cached;
use crate::error::StageName;
use crate::plan::MediaPlan;

/// Reason for which generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model said it was done.
    Stop,
    /// `max_new_tokens` were generated.
    Length,
}

/// Whether the released weights can do a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Supported {
    /// They were trained for it.
    Trained,
    /// It is made of questions that they were trained for.
    Composite,
    /// They were not trained for it: an answer may mean nothing.
    Experimental,
}

impl Supported {
    /// Name in tasks and results.
    pub fn as_str(self) -> &'static str {
        match self {
            Supported::Trained => "trained",
            Supported::Composite => "composite",
            Supported::Experimental => "experimental",
        }
    }
}

/// Time range of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimeRange {
    /// Start, seconds from the start of the video.
    pub start_s: f64,
    /// End, seconds from the start of the video.
    pub end_s: f64,
    /// Title of the range, if the task gives it one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
}

/// Box in the picture at a time, or for a range of times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimedBox {
    /// Start, seconds from the start of the video.
    pub start_s: f64,
    /// End, seconds; the start where one time is meant.
    pub end_s: f64,
    /// Left, top, right and bottom as shares of the picture's width and height, 0 to 1.
    pub bbox: [f64; 4],
}

/// Time that one stage's work on a job took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageTiming {
    /// Seconds computing, summed over replicas.
    pub busy_s: f64,
    /// Seconds waiting for whoever takes the output, summed over replicas.
    pub wait_s: f64,
    /// Unix time of the first work, milliseconds.
    pub first_at_ms: u64,
    /// Unix time of the last work, milliseconds.
    pub last_at_ms: u64,
}

/// Timings of a whole job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Timing of each stage.
    pub stages: BTreeMap<StageName, StageTiming>,
    /// Seconds from the owner's taking the job to the first generated token.
    pub first_token_s: f64,
    /// Generated tokens a second, from the first one on.
    pub tokens_per_s: f64,
}

/// Memory of one stage, bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageMemory {
    /// Bytes that any of its processes held at most while it worked on the job.
    pub peak_bytes: u64,
    /// Bytes that it may hold; 0 without a budget.
    pub budget_bytes: u64,
}

/// Model that answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelName {
    /// Name of the checkpoint directory, or `random:SIZE`.
    pub name: String,
    /// Compute type.
    pub dtype: String,
    /// Type of the language model's linear layers.
    pub weights: String,
    /// Type of the image and audio keys and values.
    pub kv: String,
}

/// Result of an answered job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobResult {
    /// Answer, without special tokens, stripped.
    pub text: String,
    /// Generated token ids, the end token included; of several questions none, they stand in `answers`.
    pub token_ids: Vec<u32>,
    /// Reason for which generation ended; of several questions `length` if one of them was cut off.
    pub finish: Finish,
    /// Time ranges, for tasks that answer with them; of several questions all, with their query for a title.
    pub ranges: Vec<TimeRange>,
    /// Totals of the video.
    pub plan: MediaPlan,
    /// Where the video's keys and values were already.
    pub cached: Cached,
    /// Timings of the job.
    pub timings: Timings,
    /// Memory of each stage.
    pub memory: BTreeMap<StageName, StageMemory>,
    /// Model that answered.
    pub model: ModelName,
    /// Task that was answered; empty in results of before 2026-11-26, as all that follows is absent there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub task: String,
    /// Whether the released weights can do the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supported: Option<Supported>,
    /// Parser that read the ranges or boxes: `text`, `reference`, `reference-7b`, `lenient` or `boxes`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parser: String,
    /// Resolution of all times, seconds; none for a text, in which there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution_s: Option<f64>,
    /// Boxes in the picture, for tasks that answer with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub boxes: Vec<TimedBox>,
    /// Reason for which there are no ranges or boxes, where the task answers with them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the model's reference prints for the ranges, to the letter, where its times lack zeros; of several questions none,
    /// it stands in `answers`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_text: Option<String>,
    /// Seconds that were added to both ends of each range.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pad_s: f64,
    /// Seconds that two ranges could be apart and were made one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub join_s: f64,
    /// Sentences on what was left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Answers of a job with several questions, in order; empty for a job with one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<Answer>,
}

impl JobResult {
    /// Tokens that were generated, of all answers.
    pub fn answer_tokens(&self) -> usize {
        self.token_ids.len() + self.answers.iter().map(|answer| answer.token_ids.len()).sum::<usize>()
    }
}

/// Whether a number is 0, which is not written.
pub(crate) fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

/// Answer to one of a job's questions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Query of the client, or the whole question where the task wrote it.
    pub query: String,
    /// Answer, without special tokens, stripped.
    pub text: String,
    /// Generated token ids, the end token included.
    pub token_ids: Vec<u32>,
    /// Reason for which generation ended.
    pub finish: Finish,
    /// Time ranges.
    pub ranges: Vec<TimeRange>,
    /// Boxes in the picture.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub boxes: Vec<TimedBox>,
    /// Reason for which there are no ranges or boxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Resolution of the times, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution_s: Option<f64>,
    /// What the model's reference prints for the ranges, to the letter, where its times lack zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_text: Option<String>,
}
