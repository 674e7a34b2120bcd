//! Rows on their way through the pipeline: frames, sound, features, tokens.

use serde::{Deserialize, Serialize};

use super::check::allowed;
use crate::job_id::JobId;
use crate::plan::{FRAME_SIDE, MediaPlan, WINDOW_SAMPLES};
use crate::tensor::{Dtype, Tensor};
use crate::wire::{Message, version};
use crate::wire_error::{WireError, WireErrorKind};

/// Batch of sampled frames, scaled: `[n, 384, 384, 3]` u8. No rows: the picture turned out to be absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrameBatch<'a> {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Job that this batch belongs to.
    pub job: JobId,
    /// Totals of the job; only the image part counts.
    pub plan: MediaPlan,
    /// First frame of the batch.
    pub offset: u64,
    /// `[n, 384, 384, 3]` u8, RGB.
    #[serde(borrow)]
    pub tensor: Tensor<'a>,
}

/// Window of sound: `[samples <= 480000]` i16. No samples: the sound turned out to be absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PcmWindow<'a> {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Job that this window belongs to.
    pub job: JobId,
    /// Totals of the job; only the audio part counts, exact.
    pub plan: MediaPlan,
    /// Index of the window.
    pub index: u64,
    /// `[samples]` i16 at 16 kHz mono.
    #[serde(borrow)]
    pub tensor: Tensor<'a>,
}

/// Modality of the video that a batch belongs to.
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

/// Batch of encoder output. Image: pooled token cells `[n, W]`, W four times the vision width or, after a convolution, once;
/// frame-major, then row, then column.
/// Audio: encoder states `[n, audio width]`, `offset` and `n` multiples of 5 except at the end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeatureBatch<'a> {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Job that this batch belongs to.
    pub job: JobId,
    /// Totals of the job; only the part of `modality` counts.
    pub plan: MediaPlan,
    /// Modality of the rows.
    pub modality: Modality,
    /// First row.
    pub offset: u64,
    /// `[n, channels]`, compute dtype.
    #[serde(borrow)]
    pub tensor: Tensor<'a>,
}

/// Tokens in the language model's space, `[n, hidden]`. No rows: that modality is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenBatch<'a> {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Job that this batch belongs to.
    pub job: JobId,
    /// Totals of the job; only the part of `modality` counts.
    pub plan: MediaPlan,
    /// Modality of the rows.
    pub modality: Modality,
    /// First token.
    pub offset: u64,
    /// `[n, hidden]`, compute dtype.
    #[serde(borrow)]
    pub tensor: Tensor<'a>,
}

/// Checks that rows `offset..offset + rows` lie inside a modality of `total` rows; an absent one takes no rows.
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
