//! Why a job failed, as it travels in a `failed` event (PROTOCOL.md).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::budget::Bytes;
use crate::memory::{self, Limits, Usage};

/// The closed list of reasons that a client can match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is wrong.
    BadRequest,
    /// No such file, as stage-decode sees the file system.
    MediaNotFound,
    /// The file is outside the media roots.
    ForbiddenPath,
    /// Not a video or sound that can be decoded.
    UnsupportedMedia,
    /// Fewer than two sampled frames and no sound.
    TooShort,
    /// The plan needs more memory than the budget leaves.
    DoesNotFit,
    /// An allocation failed while the job ran.
    OutOfMemory,
    /// The client's deadline passed.
    Deadline,
    /// A message that fails however often it is tried.
    PoisonMessage,
    /// A worker that the job needs is gone and did not come back.
    WorkerLost,
    /// The checkpoint is incomplete, misshapen or missing.
    Model,
    /// A bug in this project.
    Internal,
}

/// One stage of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StageName {
    /// Video file to frames and PCM.
    Decode,
    /// Frames to pooled patch features.
    Vision,
    /// PCM to encoder states.
    Audio,
    /// Features to tokens.
    Fuse,
    /// Tokens and question to answer; owns the job.
    Llm,
}

impl StageName {
    /// In the order in which data flows.
    pub const ALL: [StageName; 5] =
        [StageName::Decode, StageName::Vision, StageName::Audio, StageName::Fuse, StageName::Llm];

    /// The name as it is written in subjects, configuration and events.
    pub fn as_str(self) -> &'static str {
        match self {
            StageName::Decode => "decode",
            StageName::Vision => "vision",
            StageName::Audio => "audio",
            StageName::Fuse => "fuse",
            StageName::Llm => "llm",
        }
    }
}

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for StageName {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        StageName::ALL
            .into_iter()
            .find(|n| n.as_str() == s)
            .ok_or_else(|| format!("no stage {s:?}; there are decode, vision, audio, fuse, llm"))
    }
}

/// The end of a job that did not work out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobError {
    /// What a program matches on.
    pub kind: ErrorKind,
    /// Where it happened, if in a stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<StageName>,
    /// What happened, with the figures, for a person.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// Figures for a program.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, serde_json::Value>,
}

impl JobError {
    /// An error without hint or figures yet.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        JobError { kind, stage: None, message: message.into(), hint: String::new(), details: BTreeMap::new() }
    }

    /// Says what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Adds a figure.
    pub fn detail(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// Says where, unless that is known already.
    pub fn at(mut self, stage: StageName) -> Self {
        self.stage.get_or_insert(stage);
        self
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(stage) = self.stage {
            write!(f, "{stage}: ")?;
        }
        f.write_str(&self.message)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for JobError {}

impl From<candle_core::Error> for JobError {
    /// An allocation that the budget refuses is the job's failure; anything else in the maths is ours.
    fn from(e: candle_core::Error) -> Self {
        let sentence = sentence(&e);
        if !memory::is_out_of_memory(&e) {
            return JobError::new(ErrorKind::Internal, sentence);
        }
        out_of_memory(&sentence, memory::usage(), memory::limits())
    }
}

/// What an error says, without the stack that candle puts behind it where RUST_BACKTRACE is set.
pub fn sentence(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// An allocation that was refused: by the budget, or by a card on which somebody else has what the budget would allow.
fn out_of_memory(sentence: &str, usage: Usage, limits: Option<Limits>) -> JobError {
    let held = format!("{} in use, {} at most so far", Bytes(usage.used_bytes), Bytes(usage.peak_bytes));
    let of_budget = |budget: u64| format!("{held}, of a budget of {}", Bytes(budget));
    let left = |budget: u64| budget.saturating_sub(usage.used_bytes);
    let (message, hint) = match limits {
        Some(Limits { budget_bytes, free_bytes, total_bytes }) if budget_bytes.is_none_or(|b| left(b) > free_bytes) => {
            let held = budget_bytes.map_or(held.clone(), of_budget);
            let (free, total) = (Bytes(free_bytes), Bytes(total_bytes));
            let message = format!("the card has no memory for an allocation, {free} of {total} are free: {held}");
            (message, "look with `nvidia-smi` who has the rest, or ask about a shorter span or with a lower fps")
        }
        limits => {
            let held = limits.and_then(|l| l.budget_bytes).map_or(held.clone(), of_budget);
            let message = format!("the budget refuses an allocation: {held}");
            (message, "ask about a shorter span or with a lower fps, or raise the stage's budget")
        }
    };
    let error = JobError::new(ErrorKind::OutOfMemory, format!("{message} ({sentence})"))
        .hint(hint)
        .detail("used_bytes", usage.used_bytes)
        .detail("peak_bytes", usage.peak_bytes);
    match limits {
        None => error,
        Some(limits) => error
            .detail("budget_bytes", limits.budget_bytes)
            .detail("card_free_bytes", limits.free_bytes)
            .detail("card_total_bytes", limits.total_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_allocation_says_whether_the_budget_or_the_card_is_full() {
        const GIB: u64 = 1 << 30;
        let usage = Usage { used_bytes: 6 * GIB, peak_bytes: 7 * GIB, reserved_bytes: 7 * GIB };
        let told = |budget_bytes: Option<u64>, free_bytes: u64| {
            let limits = Limits { budget_bytes, free_bytes, total_bytes: 24 * GIB };
            out_of_memory("out of memory", usage, Some(limits))
        };
        let of_budget = told(Some(6 * GIB + 1), 9 * GIB);
        assert_eq!(
            of_budget.message,
            "the budget refuses an allocation: 6.00 GiB in use, 7.00 GiB at most so far, of a budget of 6.00 GiB (out of memory)"
        );
        assert!(of_budget.hint.contains("raise the stage's budget"), "{of_budget}");
        let of_card = told(Some(12 * GIB), GIB / 2);
        assert_eq!(
            of_card.message,
            "the card has no memory for an allocation, 512.0 MiB of 24.00 GiB are free: 6.00 GiB in use, 7.00 GiB at most so \
             far, of a budget of 12.00 GiB (out of memory)"
        );
        assert!(of_card.hint.contains("nvidia-smi"), "{of_card}");
        assert_eq!(of_card.details["card_free_bytes"], GIB / 2);
        assert!(told(None, GIB).message.contains("1.00 GiB of 24.00 GiB are free"));
        let unknown = out_of_memory("out of memory", usage, None);
        assert!(unknown.message.starts_with("the budget refuses") && !unknown.details.contains_key("budget_bytes"));
    }
}
