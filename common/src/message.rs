//! What travels between stages and to clients, field by field as PROTOCOL.md has it.

use serde::{Deserialize, Serialize};

use crate::error::JobError;
use crate::plan::{FRAME_SIDE, MediaPlan, WINDOW_SAMPLES};
use crate::tensor::{Dtype, Tensor};
use crate::wire::{Message, VERSION, WireError, WireErrorKind, version};

/// A job's name, chosen by the client: `[A-Za-z0-9_-]{1,64}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

impl JobId {
    /// Checks a name.
    ///
    /// # Errors
    /// [`WireErrorKind::Value`] when it is empty, too long or has a character that no subject may have.
    pub fn new(id: impl Into<String>) -> Result<Self, WireError> {
        let id = id.into();
        let ok =
            (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if ok {
            return Ok(JobId(id));
        }
        let shown: String = id.chars().take(80).collect();
        let detail = format!("job id {shown:?} is not [A-Za-z0-9_-]{{1,64}}");
        Err(WireError::new(WireErrorKind::Value, detail))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for JobId {
    type Error = WireError;
    fn try_from(id: String) -> Result<Self, WireError> {
        JobId::new(id)
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> String {
        id.0
    }
}

/// A question about a video, published to `jobs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRequest {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Its name; the same name twice is the same job.
    pub job: JobId,
    /// Path or `file:` URI under a media root, as stage-decode sees it.
    pub video: String,
    /// A task of stage-llm's registry.
    #[serde(default = "retrieval")]
    pub task: String,
    /// The question.
    #[serde(default)]
    pub query: String,
    /// Only this part of the video: start and end in seconds.
    #[serde(default)]
    pub span: Option<[f64; 2]>,
    /// Sampling rate, frames a second; the reference's is 1.
    #[serde(default = "one")]
    pub fps: f64,
    /// Length of the answer at most.
    #[serde(default = "max_new_tokens")]
    pub max_new_tokens: u32,
    /// 0 is greedy, the reference.
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
    /// 0 to 9, higher first.
    #[serde(default = "priority")]
    pub priority: u8,
}

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
    /// A request with the protocol's defaults.
    pub fn new(job: JobId, video: impl Into<String>, query: impl Into<String>) -> Self {
        JobRequest {
            v: VERSION,
            job,
            video: video.into(),
            task: retrieval(),
            query: query.into(),
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
}

fn allowed(ok: bool, what: &str) -> Result<(), WireError> {
    if ok { Ok(()) } else { Err(WireError::new(WireErrorKind::Value, what)) }
}

fn check_span(span: Option<[f64; 2]>) -> Result<(), WireError> {
    let ok = span.is_none_or(|[a, b]| a.is_finite() && b.is_finite() && a >= 0.0 && a < b);
    allowed(ok, "span is [start_s, end_s] with 0 <= start_s < end_s")
}

impl Message for JobRequest {
    fn check(&self) -> Result<(), WireError> {
        check_span(self.span)?;
        allowed(self.fps.is_finite() && self.fps > 0.0 && self.fps <= 1000.0, "fps is over 0, at most 1000")?;
        allowed((1..=8192).contains(&self.max_new_tokens), "max_new_tokens is 1 to 8192")?;
        allowed((0.0..=10.0).contains(&self.temperature), "temperature is 0 to 10")?;
        allowed(self.top_p > 0.0 && self.top_p <= 1.0, "top_p is over 0, at most 1")?;
        allowed(self.deadline_s.is_none_or(|d| d > 0.0 && d.is_finite()), "deadline_s is over 0")?;
        allowed(self.priority <= 9, "priority is 0 to 9")
    }
}

/// Asks stage-decode what a file is; answered with [`crate::plan::MediaInfo`] or a [`JobError`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeRequest {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Path or `file:` URI.
    pub video: String,
}

impl Message for ProbeRequest {
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}

/// The reply to a probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ProbeReply {
    /// What the file is.
    Info(crate::plan::MediaInfo),
    /// Why it cannot be used.
    Refused {
        /// The reason.
        error: JobError,
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

/// Asks stage-decode for a part of a video.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecodeRequest {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Whose.
    pub job: JobId,
    /// Path or `file:` URI.
    pub video: String,
    /// Only this part: start and end in seconds.
    #[serde(default)]
    pub span: Option<[f64; 2]>,
    /// The totals; the audio half is the container's figure until the sound is decoded.
    pub plan: MediaPlan,
    /// The part to deliver.
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

/// Sampled frames, scaled: `[n, 384, 384, 3]` u8. No rows: the picture turned out to be absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrameBatch<'a> {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Whose.
    pub job: JobId,
    /// The totals; only the image half counts.
    pub plan: MediaPlan,
    /// First frame of the batch.
    pub offset: u64,
    /// `[n, 384, 384, 3]` u8, RGB.
    #[serde(borrow)]
    pub tensor: Tensor<'a>,
}

/// One window of sound: `[samples <= 480000]` i16. No samples: the sound turned out to be absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PcmWindow<'a> {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Whose.
    pub job: JobId,
    /// The totals; only the audio half counts, exact.
    pub plan: MediaPlan,
    /// Which window.
    pub index: u64,
    /// `[samples]` i16 at 16 kHz mono.
    #[serde(borrow)]
    pub tensor: Tensor<'a>,
}

/// Which half of a plan a batch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Modality {
    /// Picture.
    Image,
    /// Sound.
    Audio,
}

impl std::fmt::Display for Modality {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Modality::Image => "image",
            Modality::Audio => "audio",
        })
    }
}

/// Encoder output. Image: pooled token cells `[n, 4 x vision width]`, frame-major, then row, then column.
/// Audio: encoder states `[n, audio width]`, `offset` and `n` multiples of 5 except at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeatureBatch<'a> {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Whose.
    pub job: JobId,
    /// The totals; only the half of `modality` counts.
    pub plan: MediaPlan,
    /// Picture or sound.
    pub modality: Modality,
    /// First row.
    pub offset: u64,
    /// `[n, channels]`, compute dtype.
    #[serde(borrow)]
    pub tensor: Tensor<'a>,
}

/// Tokens in the language model's space, `[n, hidden]`. No rows: that half is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenBatch<'a> {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Whose.
    pub job: JobId,
    /// The totals; only the half of `modality` counts.
    pub plan: MediaPlan,
    /// Picture or sound.
    pub modality: Modality,
    /// First token.
    pub offset: u64,
    /// `[n, hidden]`, compute dtype.
    #[serde(borrow)]
    pub tensor: Tensor<'a>,
}

/// Checks that rows `offset..offset + rows` lie inside a half of `total` rows; an absent half takes no rows.
fn check_rows(what: &str, total: Option<u64>, offset: u64, rows: usize) -> Result<(), WireError> {
    let ok = match total {
        None => offset == 0 && rows == 0,
        Some(total) => rows > 0 && offset.checked_add(rows as u64).is_some_and(|end| end <= total),
    };
    let detail = || format!("{what} {offset} and {rows} more do not lie in a plan of {total:?}");
    if ok { Ok(()) } else { Err(WireError::new(WireErrorKind::Value, detail())) }
}

impl Message for FrameBatch<'_> {
    fn job(&self) -> Option<&JobId> {
        Some(&self.job)
    }

    fn check(&self) -> Result<(), WireError> {
        self.plan.check()?;
        let side = Some(FRAME_SIDE);
        self.tensor.expect(&[Dtype::U8], &[None, side, side, Some(3)])?;
        check_rows("frame", self.plan.image.as_ref().map(|i| i.frames), self.offset, self.tensor.rows())
    }
}

impl Message for PcmWindow<'_> {
    fn job(&self) -> Option<&JobId> {
        Some(&self.job)
    }

    fn check(&self) -> Result<(), WireError> {
        self.plan.check()?;
        self.tensor.expect(&[Dtype::I16], &[None])?;
        let expected = match &self.plan.audio {
            None => 0,
            Some(a) if self.index >= a.windows => {
                return allowed(false, "window index is beyond the plan");
            }
            Some(a) => (a.samples - self.index * WINDOW_SAMPLES).min(WINDOW_SAMPLES),
        };
        allowed(
            self.tensor.rows() as u64 == expected && (expected > 0 || self.index == 0),
            "window does not have the samples that its plan says",
        )
    }
}

const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

impl Message for FeatureBatch<'_> {
    fn job(&self) -> Option<&JobId> {
        Some(&self.job)
    }

    fn check(&self) -> Result<(), WireError> {
        self.plan.check()?;
        self.tensor.expect(&FLOATS, &[None, None])?;
        let total = match self.modality {
            Modality::Image => self.plan.image.as_ref().map(|i| i.tokens),
            Modality::Audio => self.plan.audio.as_ref().map(|a| a.rows),
        };
        check_rows("feature row", total, self.offset, self.tensor.rows())?;
        if self.modality == Modality::Audio && self.tensor.rows() > 0 {
            let quantum = crate::plan::AUDIO_POOL;
            let end = self.offset + self.tensor.rows() as u64;
            let whole = self.offset.is_multiple_of(quantum) && (end.is_multiple_of(quantum) || Some(end) == total);
            allowed(whole, "audio rows are not cut at a multiple of 5")?;
        }
        Ok(())
    }
}

impl Message for TokenBatch<'_> {
    fn job(&self) -> Option<&JobId> {
        Some(&self.job)
    }

    fn check(&self) -> Result<(), WireError> {
        self.plan.check()?;
        self.tensor.expect(&FLOATS, &[None, None])?;
        let total = match self.modality {
            Modality::Image => self.plan.image.as_ref().map(|i| i.tokens),
            Modality::Audio => self.plan.audio.as_ref().map(|a| a.tokens),
        };
        check_rows("token", total, self.offset, self.tensor.rows())
    }
}

/// What a stage hands on.
#[derive(Clone, Debug, PartialEq)]
pub enum Output<'a> {
    /// stage-decode to stage-vision.
    Frames(FrameBatch<'a>),
    /// stage-decode to stage-audio.
    Pcm(PcmWindow<'a>),
    /// stage-vision or stage-audio to stage-fuse.
    Features(FeatureBatch<'a>),
    /// stage-fuse to the job's owner.
    Tokens(TokenBatch<'a>),
}

impl Output<'_> {
    /// Whose it is.
    pub fn job(&self) -> &JobId {
        match self {
            Output::Frames(m) => &m.job,
            Output::Pcm(m) => &m.job,
            Output::Features(m) => &m.job,
            Output::Tokens(m) => &m.job,
        }
    }

    /// `Nats-Msg-Id`: `<job>/<kind>/<offset>`, the same whenever the same rows are sent again. The kind names the number
    /// of rows: a batch cut longer than one sent before (the limit grew, say) is no duplicate of it.
    pub fn message_id(&self) -> String {
        let rows = self.tensor().rows();
        match self {
            Output::Frames(m) => format!("{}/frames-{rows}/{}", m.job, m.offset),
            Output::Pcm(m) => format!("{}/audio-{rows}/{}", m.job, m.index),
            Output::Features(m) => format!("{}/features-{}-{rows}/{}", m.job, m.modality, m.offset),
            Output::Tokens(m) => format!("{}/tokens-{}-{rows}/{}", m.job, m.modality, m.offset),
        }
    }

    /// MessagePack bodies with their ids, each at most `max_bytes`, split along rows where needed.
    ///
    /// # Errors
    /// [`WireErrorKind::Oversize`] with the figures, when not even one row fits.
    pub fn encode(&self, max_bytes: usize) -> Result<Vec<(String, Vec<u8>)>, WireError> {
        let mut bodies = Vec::new();
        self.encode_into(max_bytes, &mut bodies)?;
        Ok(bodies)
    }

    fn encode_into(&self, max_bytes: usize, out: &mut Vec<(String, Vec<u8>)>) -> Result<(), WireError> {
        let tensor = self.tensor();
        // What the body takes besides its rows; ids and offsets grow by a few bytes at most.
        let envelope = 64 + crate::wire::encode(self.plan()).len() + self.job().as_str().len() + 128;
        let rows = tensor.rows();
        let quantum = self.row_quantum();
        let fit = max_bytes.saturating_sub(envelope) / tensor.row_bytes().max(1) / quantum * quantum;
        if rows <= fit || rows == 0 {
            out.push((self.message_id(), self.body()));
            return Ok(());
        }
        if fit == 0 || matches!(self, Output::Pcm(_)) {
            return Err(WireError::new(
                WireErrorKind::Oversize,
                format!(
                    "{} takes {} bytes and cannot be split further; the server's max_payload leaves {max_bytes}",
                    self.message_id(),
                    envelope + quantum * tensor.row_bytes(),
                ),
            ));
        }
        for start in (0..rows).step_by(fit) {
            let part = self.narrow(start, fit.min(rows - start));
            out.push((part.message_id(), part.body()));
        }
        Ok(())
    }

    fn body(&self) -> Vec<u8> {
        match self {
            Output::Frames(m) => crate::wire::encode(m),
            Output::Pcm(m) => crate::wire::encode(m),
            Output::Features(m) => crate::wire::encode(m),
            Output::Tokens(m) => crate::wire::encode(m),
        }
    }

    fn tensor(&self) -> &Tensor<'_> {
        match self {
            Output::Frames(m) => &m.tensor,
            Output::Pcm(m) => &m.tensor,
            Output::Features(m) => &m.tensor,
            Output::Tokens(m) => &m.tensor,
        }
    }

    fn plan(&self) -> &MediaPlan {
        match self {
            Output::Frames(m) => &m.plan,
            Output::Pcm(m) => &m.plan,
            Output::Features(m) => &m.plan,
            Output::Tokens(m) => &m.plan,
        }
    }

    /// Rows that stay together: the audio pool takes five at a time.
    fn row_quantum(&self) -> usize {
        match self {
            Output::Features(m) if m.modality == Modality::Audio => crate::plan::AUDIO_POOL as usize,
            _ => 1,
        }
    }

    /// Rows `start..start + len`; a PCM window has no parts.
    fn narrow(&self, start: usize, len: usize) -> Output<'_> {
        let at = start as u64;
        match self {
            Output::Frames(m) => Output::Frames(FrameBatch {
                v: m.v,
                job: m.job.clone(),
                plan: m.plan.clone(),
                offset: m.offset + at,
                tensor: m.tensor.narrow(start, len),
            }),
            Output::Pcm(m) => Output::Pcm(m.clone()),
            Output::Features(m) => Output::Features(FeatureBatch {
                v: m.v,
                job: m.job.clone(),
                plan: m.plan.clone(),
                modality: m.modality,
                offset: m.offset + at,
                tensor: m.tensor.narrow(start, len),
            }),
            Output::Tokens(m) => Output::Tokens(TokenBatch {
                v: m.v,
                job: m.job.clone(),
                plan: m.plan.clone(),
                modality: m.modality,
                offset: m.offset + at,
                tensor: m.tensor.narrow(start, len),
            }),
        }
    }
}
