//! Output of a stage, cut to the size that the broker takes.

use super::batch::{FeatureBatch, FrameBatch, Modality, PcmWindow, TokenBatch};
use crate::job_id::JobId;
use crate::plan::MediaPlan;
use crate::tensor::Tensor;
use crate::wire_error::{WireError, WireErrorKind};

/// Output of a stage.
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
    /// Job that the output belongs to.
    pub fn job(&self) -> &JobId {
        match self {
            Output::Frames(m) => &m.job,
            Output::Pcm(m) => &m.job,
            Output::Features(m) => &m.job,
            Output::Tokens(m) => &m.job,
        }
    }

    /// `Nats-Msg-Id`: `<job>/<kind>/<offset>`, the same whenever the same rows are sent again. The kind names the number
    /// of rows: a batch cut longer than one sent before (the limit grew, say) is no duplicate of it. What is made again
    /// because it was lost has other ids, which the runtime gives it.
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
