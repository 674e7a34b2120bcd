//! What a job's owner asks of stage-decode: what a file is, and a part of what is in it.

use serde::{Deserialize, Serialize};

use super::check::{allowed, check_span};
use crate::error::JobError;
use crate::job_id::JobId;
use crate::plan::MediaPlan;
use crate::wire::{Message, version};
use crate::wire_error::WireError;

/// Request to tell what a file is, made to stage-decode; answered with [`crate::plan::MediaInfo`] or a [`JobError`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeRequest {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Path or `file:` URI.
    pub video: String,
    /// Whether [`ProbeReply::Working`] is an answer, upon which the same is asked again. Without it a probe that takes longer
    /// than 30 s is not answered.
    #[serde(default)]
    pub again: bool,
    /// Instance that said so: another one does not begin as well, but is `busy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

impl ProbeRequest {
    /// Request of one who waits for the answer itself.
    pub fn new(video: impl Into<String>) -> Self {
        ProbeRequest { v: version(), video: video.into(), again: false, at: None }
    }
}

impl Message for ProbeRequest {
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}

/// Reply to a probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ProbeReply {
    /// The file can be used, and is this.
    Info(crate::plan::MediaInfo),
    /// The file cannot be used.
    Refused {
        /// Reason for that.
        error: JobError,
    },
    /// The file is still looked at, or waits for its turn.
    Working {
        /// Instance that does.
        working: String,
        /// Bytes that it has read.
        read_bytes: u64,
        /// Size of the file; 0 before it is open.
        size_bytes: u64,
    },
}

impl Message for ProbeReply {
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}

/// Part of a plan that one decoder delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// First sampled frame.
    pub first_frame: u64,
    /// Sampled frames.
    pub frames: u64,
    /// First window.
    pub first_window: u64,
    /// Windows.
    pub windows: u64,
}

/// Request for a part of a video, made to stage-decode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecodeRequest {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Job that asks for it.
    pub job: JobId,
    /// Path or `file:` URI.
    pub video: String,
    /// Part of the video that alone counts: start and end in seconds.
    #[serde(default)]
    pub span: Option<[f64; 2]>,
    /// Totals of the job; the audio part is the container's figure until the sound is decoded.
    pub plan: MediaPlan,
    /// Part of the plan to deliver.
    pub segment: Segment,
}

impl Message for DecodeRequest {
    fn job(&self) -> Option<&JobId> {
        Some(&self.job)
    }

    fn check(&self) -> Result<(), WireError> {
        check_span(self.span)?;
        self.plan.check()?;
        let s = &self.segment;
        let frames = self.plan.image.as_ref().map_or(0, |i| i.frames);
        let windows = self.plan.audio.as_ref().map_or(0, |a| a.windows);
        let inside = |first: u64, n: u64, all: u64| first.checked_add(n).is_some_and(|end| end <= all);
        allowed(
            inside(s.first_frame, s.frames, frames) && inside(s.first_window, s.windows, windows),
            "segment reaches beyond the plan",
        )
    }
}
