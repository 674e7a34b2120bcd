//! Prefill: a video's tokens through the layers as they come, in passes of many rows.

use std::collections::VecDeque;

use compute::failure::Failure;
use compute::transfer::Marker;
use config::LlmConfig;
use protocol::coverage::VideoCoverage;
use protocol::error::{ErrorKind, JobError};
use protocol::event::Mode;
use protocol::message::{DecodeRequest, JobRequest, Segment, TokenBatch};
use protocol::plan::MediaPlan;
use protocol::stage::Stop;
use protocol::wire::VERSION;

use crate::job::compact::compacted;
use crate::job::fit::Fit;
use crate::job::in_flight::{Job, here};
use crate::job::intake::Intake;
use crate::job::pictures::Pictures;
use crate::language::LanguageModel;
use crate::language::cache::VideoCache;
use crate::language::chunk::Chunk;

/// Divisor of the tokens that are still to come: a pass through the layers waits for this share of them.
const LEFT_SHARE: usize = 4;
/// Least number of rows that a pass waits for: it takes little longer than a pass of one row, since reading the weights
/// is most of it.
const LEAST_ROWS: usize = 512;
/// Most passes in the device's queue that it has not begun: one is enough for it never to wait for the host, and few
/// enough that a cancelled job's work is soon over.
const AHEAD: usize = 1;

/// Settled plan of a video, its keys and values, and what is known of its pictures.
pub type Prefilled = (MediaPlan, VideoCache, Pictures);

/// Prefill of a video's cache for one job.
pub struct Prefill<'a> {
    /// Model with the layers.
    pub model: &'a LanguageModel,
    /// Section `[llm]` of the configuration, with the most rows of a pass.
    pub llm: &'a LlmConfig,
    /// Memory that the job may hold.
    pub fit: Fit,
    /// Number of tokens that the prompts add to the job's progress.
    pub prompt_tokens: u64,
}

impl Prefill<'_> {
    /// Asks for a plan's tokens, takes them until none is missing, and returns the settled plan with its keys and values, and
    /// what is known of its pictures.
    ///
    /// # Errors
    /// `does_not_fit` when the sound is longer than its container said; `unsupported_media` when nothing is left of
    /// picture and sound; errors of the model and of the port.
    pub fn run(&self, plan: MediaPlan, mode: Mode, job: &mut Job<'_>) -> Result<Prefilled, Stop> {
        job.port.request_decode(whole(job.request, plan.clone()))?;
        let fit = match mode {
            Mode::Streaming => self.fit,
            Mode::Phases => {
                park(&plan, job)?;
                job.take_gpu()?;
                job.port.rewind_tokens();
                self.fit.alone()
            }
        };
        let mut intake = Intake::new(self.model, plan, fit, self.llm.chunk_rows).map_err(here)?;
        self.take(&mut intake, job)?;
        let (plan, cache, pictures) = intake.into_parts();
        if plan.image.is_none() && plan.audio.is_none() {
            return Err(here(
                JobError::new(
                    ErrorKind::UnsupportedMedia,
                    "every sampled frame is black and there is no sound but silence",
                )
                .hint("give another file or span"),
            ));
        }
        Ok((plan, cache, pictures))
    }

    /// Takes tokens until none is missing.
    fn take(&self, intake: &mut Intake, job: &mut Job<'_>) -> Result<(), Stop> {
        let mut taken = 0;
        let mut waiting = Vec::new();
        let mut passes: VecDeque<Marker> = VecDeque::new();
        while !intake.is_complete() {
            self.gather(intake, &mut waiting, job)?;
            // All tokens that have come go through the layers together, up to the rows that memory is planned for.
            while !waiting.is_empty() {
                if job.port.cancelled() {
                    return Err(Stop::Cancelled);
                }
                while passes.len() > AHEAD {
                    let earliest = passes.pop_front().expect("there are more than AHEAD. This is a bug.");
                    earliest.wait().map_err(|e| here(Failure(e).into()))?;
                }
                let chunks = self.together(&mut waiting);
                let pass = || self.model.absorb_all(&chunks, intake.video(), &mut ());
                compacted(pass).map_err(|e| here(Failure(e).into()))?;
                passes.push_back(Marker::behind(self.model.device()).map_err(|e| here(Failure(e).into()))?);
                taken += rows(&chunks) as u64;
                let (_, total) = intake.tokens();
                job.progress.tell(job.port, taken, total + self.prompt_tokens)?;
            }
        }
        Ok(())
    }

    /// Waits until enough has come for a pass through the layers, or nothing more comes for a while.
    ///
    /// Many rows use a GPU well, and few start early: a pass takes a share of the tokens that are still to come, so
    /// that the passes of a long video are full and the last ones are short.
    fn gather(&self, intake: &mut Intake, waiting: &mut Vec<Chunk>, job: &mut Job<'_>) -> Result<(), Stop> {
        let chunk_rows = self.llm.chunk_rows;
        while !intake.is_complete() {
            let before = rows(waiting);
            let (held, total) = intake.tokens();
            let share = (total.saturating_sub(held) as usize / LEFT_SHARE).max(LEAST_ROWS);
            let mut came = false;
            let mut take = |batch: TokenBatch<'_>| {
                came = true;
                waiting.extend(intake.take(self.model, &batch).map_err(here)?);
                Ok(())
            };
            // Tokens that have come already are taken up to a full pass, even if fewer are enough.
            if before > 0 && before < chunk_rows && job.port.more_tokens(&mut take)? {
                continue;
            }
            if before >= chunk_rows.min(share) {
                break;
            }
            job.clock.waiting(|| job.port.next_tokens(&mut take))?;
            if !came {
                break;
            }
        }
        Ok(())
    }

    /// First chunks that fit into a pass.
    fn together(&self, waiting: &mut Vec<Chunk>) -> Vec<Chunk> {
        let fits = |count: &usize| rows(&waiting[..*count]) <= self.llm.chunk_rows;
        // One chunk always fits: the intake cuts longer batches.
        let count = (1..=waiting.len()).take_while(fits).last().unwrap_or(1);
        waiting.drain(..count).collect()
    }
}

/// Number of rows of all chunks.
fn rows(chunks: &[Chunk]) -> usize {
    chunks.iter().map(|chunk| chunk.tokens.dims()[0]).sum()
}

/// Waits until all of a plan's tokens are on the bus, without taking them: they stay there until the encoders have left
/// the GPU.
fn park(plan: &MediaPlan, job: &mut Job<'_>) -> Result<(), Stop> {
    let mut parked = VideoCoverage::planned(plan);
    while !parked.is_complete() {
        if job.port.cancelled() {
            return Err(Stop::Cancelled);
        }
        let mut note = |batch: TokenBatch<'_>| {
            parked.note(&batch);
            Ok(())
        };
        job.clock.waiting(|| job.port.next_tokens(&mut note))?;
    }
    Ok(())
}

/// Request for all of a plan at once.
fn whole(request: &JobRequest, plan: MediaPlan) -> DecodeRequest {
    DecodeRequest {
        v: VERSION,
        job: request.job.clone(),
        video: request.video.clone(),
        span: request.span,
        segment: Segment {
            first_frame: 0,
            frames: plan.image.as_ref().map_or(0, |i| i.frames),
            first_window: 0,
            windows: plan.audio.as_ref().map_or(0, |a| a.windows),
        },
        plan,
    }
}
