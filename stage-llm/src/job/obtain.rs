//! Way to a job's video: kept in memory, parked on disk, or computed from its tokens, which the other stages are asked for.

use protocol::error::ErrorKind;
use protocol::event::{Cached, Event, Mode};
use protocol::plan::MediaPlan;
use protocol::stage::Stop;

use crate::job::fit::Fit;
use crate::job::in_flight::{Job, here};
use crate::job::kept::Kept;
use crate::job::parked::reader::Unread;
use crate::job::prefill::{Prefill, Prefilled};
use crate::job::video::{Video, VideoKey, asked};
use crate::language::LanguageModel;

/// What a job has to obtain its video with.
pub struct Obtain<'a> {
    /// Model with the layers.
    pub model: &'a LanguageModel,
    /// Videos that are kept.
    pub kept: &'a mut Kept,
    /// Memory that the job may hold, those videos' included.
    pub fit: Fit,
    /// Number of tokens that the prompts add to the job's progress.
    pub prompt_tokens: u64,
}

/// Video of a job.
pub struct Obtained {
    /// The video, which is nobody else's until it is [put back](Kept::put_back).
    pub video: Video,
    /// Where it was already.
    pub cached: Cached,
    /// Memory that the job may hold beside what is still kept.
    pub fit: Fit,
}

impl Obtain<'_> {
    /// Obtains the video that was just probed and planned, and tells the client how.
    ///
    /// # Errors
    /// `does_not_fit` with the figures; those of [`Prefill::run`].
    pub fn run(&mut self, plan: MediaPlan, job: &mut Job<'_>) -> Result<Obtained, Stop> {
        let key = VideoKey::new(&plan, job.request);
        if let Some(obtained) = self.kept_video(key.as_ref(), job)? {
            return Ok(obtained);
        }
        if let Some(obtained) = self.parked_video(key.as_ref(), job)? {
            return Ok(obtained);
        }
        self.computed_video(key, plan, job)
    }

    /// Video that is in memory, and has room beside the question.
    fn kept_video(&mut self, key: Option<&VideoKey>, job: &mut Job<'_>) -> Result<Option<Obtained>, Stop> {
        let base = self.fit;
        let Some(video) = self.kept.take(key, |plan| base.check(plan, true).is_ok()) else { return Ok(None) };
        let (fit, cached) = (self.kept.make_room(base, &video.plan, true), Cached::Memory);
        match planned(&video.plan, Mode::Streaming, cached, None, job) {
            Ok(()) => Ok(Some(Obtained { video, cached, fit })),
            Err(stop) => {
                self.kept.put_back(video, base, true);
                Err(stop)
            }
        }
    }

    /// Video that is on disk, and has room beside the question; none if its file turns out to be damaged.
    fn parked_video(&mut self, key: Option<&VideoKey>, job: &mut Job<'_>) -> Result<Option<Obtained>, Stop> {
        let found = self.kept.parked().zip(key).and_then(|(parked, key)| parked.find(key));
        let Some(found) = found.filter(|found| self.fit.check(found.plan(), true).is_ok()) else { return Ok(None) };
        let (plan, cached) = (found.plan().clone(), Cached::Disk);
        let fit = self.kept.make_room(self.fit, &plan, true);
        planned(&plan, Mode::Streaming, cached, None, job)?;
        let tokens = plan.image.as_ref().map_or(0, |image| image.tokens) + plan.audio.as_ref().map_or(0, |a| a.tokens);
        let prompt_tokens = self.prompt_tokens;
        let mut tell = |done: u64, of: u64| {
            if job.port.cancelled() {
                return Err(Stop::Cancelled);
            }
            let read = (tokens as f64 * done as f64 / of.max(1) as f64) as u64;
            job.progress.tell(job.port, read, tokens + prompt_tokens)
        };
        let read = self.kept.parked().map(|parked| parked.read(&found, &mut tell));
        match read {
            Some(Ok((cache, pictures))) => {
                let video = Video { key: key.cloned(), asked: asked(job.request), plan, cache, pictures };
                Ok(Some(Obtained { video, cached, fit }))
            }
            Some(Err(Unread::Stop(stop))) => Err(stop),
            // What was allocated for it is free again.
            Some(Err(Unread::Damaged(_) | Unread::Device(_))) | None => {
                compute::trim();
                Ok(None)
            }
        }
    }

    /// Video computed from its tokens.
    fn computed_video(&mut self, key: Option<VideoKey>, plan: MediaPlan, job: &mut Job<'_>) -> Result<Obtained, Stop> {
        let mode = self.fit.mode(&plan).map_err(here)?;
        let whole = if mode == Mode::Phases { self.fit.alone() } else { self.fit };
        let mut fit = self.kept.make_room(whole, &plan, false);
        planned(&plan, mode, Cached::No, Some(fit.pass_rows(&plan)), job)?;
        let (plan, cache, pictures) = match self.prefill(fit, plan.clone(), mode, job) {
            // The sound is longer than its container said: what is kept goes before the job is refused.
            Err(Stop::Failed(error)) if error.kind == ErrorKind::DoesNotFit && fit.kept_bytes > 0 => {
                fit = self.kept.clear(whole);
                job.port.rewind_tokens();
                self.prefill(fit, plan, mode, job)?
            }
            prefilled => prefilled?,
        };
        let video = Video { key, asked: asked(job.request), plan, cache, pictures };
        Ok(Obtained { video, cached: Cached::No, fit })
    }

    fn prefill(&self, fit: Fit, plan: MediaPlan, mode: Mode, job: &mut Job<'_>) -> Result<Prefilled, Stop> {
        let rows = fit.pass_rows(&plan);
        let fit = Fit { kept_bytes: fit.kept_bytes, ..self.fit };
        Prefill { model: self.model, rows, fit, prompt_tokens: self.prompt_tokens }.run(plan, mode, job)
    }
}

fn planned(
    plan: &MediaPlan,
    mode: Mode,
    cached: Cached,
    pass_rows: Option<u64>,
    job: &mut Job<'_>,
) -> Result<(), Stop> {
    job.port.event(Event::Planned { plan: plan.clone(), mode, cached, pass_rows })
}
