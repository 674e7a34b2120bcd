//! Intake of a job's tokens as they come: in any order, cut anywhere, perhaps more than once.

use compute::failure::Failure;
use compute::transfer::{candle_dtype, upload};
use protocol::error::{ErrorKind, JobError};
use protocol::message::{Modality, TokenBatch};
use protocol::plan::MediaPlan;

use crate::job::compact::compacted;
use crate::job::fit::Fit;
use crate::job::pictures::Pictures;
use crate::language::LanguageModel;
use crate::language::cache::{MediaCache, VideoCache};
use crate::language::chunk::Chunk;

/// Tokens of a job's video that have come, and those that are still to come.
#[derive(Debug)]
pub struct Intake {
    plan: MediaPlan,
    /// Whether the audio part of `plan` is the decoder's word; until then it is the container's.
    audio_settled: bool,
    video: VideoCache,
    pictures: Pictures,
    fit: Fit,
    chunk_rows: usize,
}

impl Intake {
    /// Intake of a plan, with its image cache allocated; the length of the sound is settled later, by its first batch.
    ///
    /// # Errors
    /// `does_not_fit`; `out_of_memory`.
    pub fn new(model: &LanguageModel, plan: MediaPlan, fit: Fit, chunk_rows: usize) -> Result<Self, JobError> {
        fit.check(&plan, false)?;
        let image = plan.image.as_ref().map(|i| allocated(model, i.tokens));
        let video = VideoCache { image: image.transpose()?, audio: None };
        let audio_settled = plan.audio.is_none();
        let pictures = Pictures::of(&plan);
        Ok(Intake { plan, audio_settled, video, pictures, fit, chunk_rows: chunk_rows.max(1) })
    }

    /// Plan of the video, as far as it is settled.
    pub fn plan(&self) -> &MediaPlan {
        &self.plan
    }

    /// Keys and values that have been claimed so far.
    pub fn video(&self) -> &VideoCache {
        &self.video
    }

    /// Plan, as far as it is settled, the keys and values, and what is known of the pictures.
    pub fn into_parts(self) -> (MediaPlan, VideoCache, Pictures) {
        (self.plan, self.video, self.pictures)
    }

    /// Number of image and audio tokens taken, and of all.
    pub fn tokens(&self) -> (u64, u64) {
        let image = self.plan.image.as_ref().map_or(0, |i| i.tokens);
        let audio = self.plan.audio.as_ref().map_or(0, |a| a.tokens);
        (self.video.present().map(MediaCache::held).sum(), image + audio)
    }

    /// Whether no token is missing.
    pub fn is_complete(&self) -> bool {
        self.audio_settled && self.video.first_gap().is_none()
    }

    /// Takes a batch and returns the chunks of it that are new, each at most `chunk_rows` long.
    ///
    /// # Errors
    /// `model` for tokens of another width or dtype than the model's; `does_not_fit` when the sound is longer than its
    /// container said; `internal` for a batch that contradicts the plan.
    pub fn take(&mut self, model: &LanguageModel, batch: &TokenBatch<'_>) -> Result<Vec<Chunk>, JobError> {
        let modality = batch.modality;
        let rows = batch.tensor.rows() as u64;
        if rows == 0 {
            self.absent(modality)?;
            return Ok(Vec::new());
        }
        check_tokens(model, batch)?;
        if modality == Modality::Audio && !self.audio_settled {
            self.settle_audio(model, batch)?;
        }
        self.note_replaced(batch);
        let total = match modality {
            Modality::Image => batch.plan.image.as_ref().map(|i| i.tokens),
            Modality::Audio => batch.plan.audio.as_ref().map(|a| a.tokens),
        };
        let cache = self.video.of_mut(modality).filter(|c| Some(c.tokens()) == total);
        let (Some(cache), Some(total)) = (cache, total) else { return Err(contradiction(batch, &self.plan)) };
        let end = batch.offset.checked_add(rows).filter(|&end| end <= total);
        let Some(end) = end else { return Err(contradiction(batch, &self.plan)) };
        let mut chunks = Vec::new();
        for new in cache.claim(batch.offset..end) {
            for offset in new.clone().step_by(self.chunk_rows) {
                let n = (new.end - offset).min(self.chunk_rows as u64);
                let rows = batch.tensor.narrow((offset - batch.offset) as usize, n as usize);
                if modality == Modality::Image {
                    self.pictures.note(offset, &rows);
                }
                chunks.push(Chunk { modality, offset, tokens: upload(&rows, model.device()).map_err(Failure)? });
            }
        }
        Ok(chunks)
    }

    /// Notes the frames that replace frames that did not decode: every batch names those among its own. A batch that
    /// comes twice names none twice.
    fn note_replaced(&mut self, batch: &TokenBatch<'_>) {
        let (Some(all), Some(own)) = (&mut self.plan.image, &batch.plan.image) else { return };
        all.replaced.extend(&own.replaced);
        all.replaced.sort_unstable();
        all.replaced.dedup();
    }

    /// Notes that a modality of the plan turned out to be absent: all black, or silent.
    fn absent(&mut self, modality: Modality) -> Result<(), JobError> {
        if self.video.of(modality).is_some_and(|c| c.held() > 0) {
            let detail = format!("batch refused: it says that there are no {modality} tokens, yet some have come");
            return Err(JobError::new(ErrorKind::Internal, detail));
        }
        match modality {
            Modality::Image => {
                self.plan.image = None;
                self.video.image = None;
            }
            Modality::Audio => {
                self.plan.audio = None;
                self.video.audio = None;
                self.audio_settled = true;
            }
        }
        Ok(())
    }

    /// Settles the length of the sound, which the first audio batch brings.
    fn settle_audio(&mut self, model: &LanguageModel, batch: &TokenBatch<'_>) -> Result<(), JobError> {
        let Some(audio) = &batch.plan.audio else { return Err(contradiction(batch, &self.plan)) };
        let exact = MediaPlan { audio: Some(audio.clone()), ..self.plan.clone() };
        self.fit.check(&exact, true)?;
        self.video.audio = Some(allocated(model, audio.tokens)?);
        self.plan = exact;
        self.audio_settled = true;
        Ok(())
    }
}

fn allocated(model: &LanguageModel, tokens: u64) -> Result<MediaCache, Failure> {
    compacted(|| MediaCache::new(model.geometry(), tokens, model.device())).map_err(Failure)
}

fn check_tokens(model: &LanguageModel, batch: &TokenBatch<'_>) -> Result<(), JobError> {
    let (dtype, shape) = (batch.tensor.dtype(), batch.tensor.shape());
    if candle_dtype(dtype) == model.dtype() && shape.len() == 2 && shape[1] == model.hidden_size() {
        return Ok(());
    }
    let message = format!(
        "batch refused: {} tokens are {dtype} {shape:?}, the language model takes {} of width {}",
        batch.modality,
        model.dtype().as_str(),
        model.hidden_size()
    );
    Err(JobError::new(ErrorKind::Model, message)
        .hint("run stage-fuse and stage-llm with the same checkpoint and dtype"))
}

fn contradiction(batch: &TokenBatch<'_>, plan: &MediaPlan) -> JobError {
    let (modality, offset, rows) = (batch.modality, batch.offset, batch.tensor.rows());
    let message = format!(
        "batch refused: {rows} {modality} tokens from {offset} on of {:?} contradict the job's {plan:?}",
        batch.plan
    );
    JobError::new(ErrorKind::Internal, message)
}
