//! Prefill: a video's tokens through the layers as they come, in passes of many rows.

use std::collections::VecDeque;

use compute::failure::{Failure, is_out_of_memory};
use compute::transfer::Marker;
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
    /// Most rows of a pass, at first: [`Fit::pass_rows`].
    pub rows: u64,
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
        let mut intake = Intake::new(self.model, plan, fit, self.most_rows()).map_err(here)?;
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
        let (mut taken, mut most) = (0, self.most_rows());
        let mut waiting = Vec::new();
        let mut passes: VecDeque<Marker> = VecDeque::new();
        while !intake.is_complete() {
            self.gather(intake, most, &mut waiting, job)?;
            // All tokens that have come go through the layers together, up to the rows that there is memory for.
            while !waiting.is_empty() {
                if job.port.cancelled() {
                    return Err(Stop::Cancelled);
                }
                while passes.len() > AHEAD {
                    let earliest = passes.pop_front().expect("there are more than AHEAD. This is a bug.");
                    earliest.wait().map_err(|e| here(Failure(e).into()))?;
                }
                let chunks = together(&mut waiting, most);
                taken += rows(&chunks) as u64;
                let mut pass = |chunks: &[Chunk]| compacted(|| self.model.absorb_all(chunks, intake.video(), &mut ()));
                absorb(chunks, &mut most, &mut pass).map_err(|e| here(Failure(e).into()))?;
                passes.push_back(Marker::behind(self.model.device()).map_err(|e| here(Failure(e).into()))?);
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
    fn gather(
        &self,
        intake: &mut Intake,
        most: usize,
        waiting: &mut Vec<Chunk>,
        job: &mut Job<'_>,
    ) -> Result<(), Stop> {
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
            if before > 0 && before < most && job.port.more_tokens(&mut take)? {
                continue;
            }
            if before >= most.min(share) {
                break;
            }
            job.clock.waiting(|| job.port.next_tokens(&mut take))?;
            if !came {
                break;
            }
        }
        Ok(())
    }

    fn most_rows(&self) -> usize {
        usize::try_from(self.rows).unwrap_or(usize::MAX)
    }
}

/// First chunks that fit into a pass.
fn together(waiting: &mut Vec<Chunk>, most: usize) -> Vec<Chunk> {
    let fits = |count: &usize| rows(&waiting[..*count]) <= most;
    // One chunk fits, as the intake cuts longer batches, unless there was no memory for so many rows: then it is cut again.
    let count = (1..=waiting.len()).take_while(fits).last().unwrap_or(1);
    waiting.drain(..count).collect()
}

/// Has chunks pass the layers; where there is no memory for all of their rows, in halves, and with no more rows than those from
/// then on. A pass that failed has written nothing that the next one does not write again: every row has its place.
fn absorb(
    chunks: Vec<Chunk>,
    most: &mut usize,
    pass: &mut dyn FnMut(&[Chunk]) -> candle_core::Result<()>,
) -> candle_core::Result<()> {
    let count = rows(&chunks);
    match pass(&chunks) {
        Err(error) if count > LEAST_ROWS && is_out_of_memory(&error) => {
            *most = count.div_ceil(2).min(*most);
            tracing::warn!(rows = count, %error, "no memory for a pass of so many rows: in halves from now on");
            let (first, second) = cut(chunks, count.div_ceil(2))?;
            absorb(first, most, pass)?;
            absorb(second, most, pass)
        }
        outcome => outcome,
    }
}

/// The first `at` rows of chunks, and the others.
fn cut(chunks: Vec<Chunk>, at: usize) -> candle_core::Result<(Vec<Chunk>, Vec<Chunk>)> {
    let (mut first, mut second, mut before) = (Vec::new(), Vec::new(), 0);
    for chunk in chunks {
        let count = chunk.tokens.dims()[0];
        let here = at.saturating_sub(before).min(count);
        before += count;
        match here {
            0 => second.push(chunk),
            here if here == count => first.push(chunk),
            here => {
                let part = |from: usize, n: usize| -> candle_core::Result<Chunk> {
                    let tokens = chunk.tokens.narrow(0, from, n)?;
                    Ok(Chunk { modality: chunk.modality, offset: chunk.offset + from as u64, tokens })
                };
                first.push(part(0, here)?);
                second.push(part(here, count - here)?);
            }
        }
    }
    Ok((first, second))
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use protocol::message::Modality;

    use super::*;

    /// Rows that were handed over, each with its modality, place and value.
    type Passed = Vec<(Modality, u64, f32)>;

    fn chunk(modality: Modality, offset: u64, n: u32) -> Chunk {
        let first = if modality == Modality::Audio { 100_000 } else { 0 } + offset as u32;
        let tokens = Tensor::arange(first, first + n, &Device::Cpu).and_then(|t| t.to_dtype(DType::F32)?.unsqueeze(1));
        Chunk { modality, offset, tokens: tokens.unwrap() }
    }

    /// Passes chunks in a memory for `fits` rows; what was passed, the rows of each try, and the most rows from then on.
    fn passed(fits: usize, most: usize) -> (candle_core::Result<()>, Passed, Vec<usize>, usize) {
        let chunks =
            vec![chunk(Modality::Image, 0, 900), chunk(Modality::Audio, 40, 1500), chunk(Modality::Image, 3000, 1601)];
        let (mut passed, mut tries, mut most) = (Passed::new(), Vec::new(), most);
        let outcome = absorb(chunks, &mut most, &mut |chunks| {
            tries.push(rows(chunks));
            if rows(chunks) > fits {
                candle_core::bail!("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")");
            }
            for chunk in chunks {
                let values = chunk.tokens.flatten_all()?.to_vec1::<f32>()?;
                passed.extend(values.iter().zip(chunk.offset..).map(|(&value, at)| (chunk.modality, at, value)));
            }
            Ok(())
        });
        (outcome, passed, tries, most)
    }

    #[test]
    fn rows_that_there_is_no_memory_for_pass_in_halves_each_once_and_in_their_place() {
        let (outcome, whole, tries, most) = passed(usize::MAX, 8192);
        assert!(outcome.is_ok() && whole.len() == 4001);
        assert_eq!((tries, most), (vec![4001], 8192));
        let (outcome, halves, tries, most) = passed(1100, 8192);
        assert!(outcome.is_ok());
        assert_eq!(halves, whole);
        assert_eq!((tries, most), (vec![4001, 2001, 1001, 1000, 2000, 1000, 1000], 1000));
        // What finds no memory for a few rows has another reason.
        let (outcome, none, tries, most) = passed(0, 8192);
        assert!(outcome.is_err_and(|e| is_out_of_memory(&e)) && none.is_empty());
        assert_eq!((tries, most), (vec![4001, 2001, 1001, 501], 501));
    }

    #[test]
    fn what_fails_otherwise_is_tried_once() {
        let mut tries = 0;
        let outcome = absorb(vec![chunk(Modality::Image, 0, 4000)], &mut 8192, &mut |_| {
            tries += 1;
            candle_core::bail!("shapes differ")
        });
        assert!(outcome.is_err() && tries == 1);
    }
}
