//! Reason for which a job failed, as it travels in a `failed` event (PROTOCOL.md).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Closed list of reasons that a client can match on.
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
    /// Too many wait already; only a probe is answered so, and no job ends so.
    Busy,
    /// The checkpoint is incomplete, misshapen or missing.
    Model,
    /// A bug in this project.
    Internal,
}

/// Name of a stage of the pipeline.
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
    /// Every stage, in the order in which data flows.
    pub const ALL: [StageName; 5] =
        [StageName::Decode, StageName::Vision, StageName::Audio, StageName::Fuse, StageName::Llm];

    /// Name as it is written in subjects, configuration and events.
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

/// Error that ends a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobError {
    /// Kind that a program matches on.
    pub kind: ErrorKind,
    /// Stage where it happened, if in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<StageName>,
    /// Sentence for a person: what happened, with the figures.
    pub message: String,
    /// Advice on what to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// Figures for a program.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, serde_json::Value>,
}

impl JobError {
    /// Error without hint or figures yet.
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
