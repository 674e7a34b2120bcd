//! Whether a job fits: all bytes that it will hold, before any of them is allocated.

use protocol::bytes::Bytes;
use protocol::error::{ErrorKind, JobError};
use protocol::event::Mode;
use protocol::memory;
use protocol::plan::{AudioPlan, MediaPlan, SAMPLE_RATE};

use crate::language::cache::CacheSize;
use crate::language::footprint::LlmFootprint;

/// Memory that a worker may give to one job, and how much text the job has.
#[derive(Clone, Copy, Debug)]
pub struct Fit {
    /// Footprint of the worker.
    pub footprint: LlmFootprint,
    /// Most bytes that the worker may hold; none without a cap.
    pub budget_bytes: Option<u64>,
    /// Most bytes that the worker may hold alone on the GPU, once the encoders have left; none where they never leave.
    pub gpu_bytes: Option<u64>,
    /// Bytes that GPU or host have left, the cap where there is no budget: read before the job allocates, with the memory
    /// counted in that the worker may release. None where the system does not say.
    pub host_bytes: Option<u64>,
    /// Bytes of what is kept for other jobs, which this one cannot have.
    pub kept_bytes: u64,
    /// Tokens of prompt and answer.
    pub text_tokens: u64,
}

impl Fit {
    /// Mode in which a plan fits: beside the encoders, or in phases.
    ///
    /// # Errors
    /// `does_not_fit` with the figures of the mode with more memory.
    pub fn mode(&self, plan: &MediaPlan) -> Result<Mode, JobError> {
        let beside = self.check(plan, false);
        match (&beside, self.gpu_bytes) {
            (Err(_), Some(_)) => self.alone().check(plan, false).map(|()| Mode::Phases),
            _ => beside.map(|()| Mode::Streaming),
        }
    }

    /// The same with the GPU to itself.
    pub fn alone(self) -> Self {
        Fit { budget_bytes: self.gpu_bytes.or(self.budget_bytes), ..self }
    }

    /// The same for several texts at once, each with a cache of its own, of so many tokens.
    pub fn texts(self, tokens: impl Iterator<Item = usize>) -> Self {
        let LlmFootprint { text_token_bytes, chunk_bytes, .. } = self.footprint;
        let (token, chunk) = (text_token_bytes.max(1), chunk_bytes.max(1));
        // Each cache takes whole chunks.
        let whole = |n: usize| (n as u64).saturating_mul(token).div_ceil(chunk).saturating_mul(chunk).div_ceil(token);
        Fit { text_tokens: tokens.map(whole).fold(0, u64::saturating_add), ..self }
    }

    /// Size of a plan's caches. Before the sound is decoded its length is the container's word, so a second is added
    /// unless the plan is `exact`.
    pub fn caches(&self, plan: &MediaPlan, exact: bool) -> CacheSize {
        let margin = if exact { 0 } else { SAMPLE_RATE };
        let audio = plan.audio.as_ref().and_then(|a| AudioPlan::new(a.samples.saturating_add(margin)));
        CacheSize {
            text_token_bytes: self.footprint.text_token_bytes,
            media_token_bytes: self.footprint.media_token_bytes,
            text_tokens: self.text_tokens,
            image_tokens: plan.image.as_ref().map_or(0, |i| i.tokens),
            audio_tokens: audio.map_or(0, |a| a.tokens),
            chunk_bytes: self.footprint.chunk_bytes,
        }
    }

    /// Bytes left for keys and values; none without any cap.
    fn left_bytes(&self) -> Option<u64> {
        let fixed = &self.footprint.fixed;
        let left = match self.budget_bytes {
            Some(budget) => Some(budget.saturating_sub(fixed.bytes())),
            // An allocation that the host refuses would end the process.
            None => self.host_bytes.map(|free| free.saturating_sub(fixed.activation_bytes)),
        };
        left.map(|left| left.saturating_sub(self.kept_bytes))
    }

    /// Image and audio tokens of a plan that pass the layers together at most, in the memory that its keys and values leave.
    pub fn pass_rows(&self, plan: &MediaPlan) -> u64 {
        let left = self.left_bytes().map_or(0, |left| left.saturating_sub(self.caches(plan, false).bytes()));
        self.footprint.passes.within(left)
    }

    /// Bytes of a settled plan's keys and values, as they are allocated.
    pub fn video_bytes(&self, plan: &MediaPlan) -> u64 {
        Fit { text_tokens: 0, ..*self }.caches(plan, true).bytes()
    }

    /// Whether keys and values of so many bytes may stay once the job is done, with the encoders back beside them.
    pub fn leaves(&self, bytes: u64) -> bool {
        self.left_bytes().is_none_or(|left| bytes <= left)
    }

    /// Refuses a plan that does not fit into the budget.
    ///
    /// # Errors
    /// `does_not_fit` with the figures.
    pub fn check(&self, plan: &MediaPlan, exact: bool) -> Result<(), JobError> {
        let caches = self.caches(plan, exact);
        let fixed = &self.footprint.fixed;
        let needed = caches.bytes();
        let Some(left) = self.left_bytes().filter(|&left| needed > left) else { return Ok(()) };
        let cap = match self.budget_bytes {
            Some(budget) => format!("the budget of {}", Bytes(budget)),
            None if memory::limits().is_some() => "the GPU's free memory".to_owned(),
            None => "the host's memory".to_owned(),
        };
        let message = format!(
            "job does not fit: needs {} for the keys and values of {} image and {} audio tokens at {} bytes each and {} \
             text tokens at {}; {cap} leaves {} besides {fixed}",
            Bytes(needed),
            caches.image_tokens,
            caches.audio_tokens,
            caches.media_token_bytes,
            caches.text_tokens,
            caches.text_token_bytes,
            Bytes(left),
        );
        Err(JobError::new(ErrorKind::DoesNotFit, message)
            .hint("ask with a lower fps, a shorter span or fewer max_new_tokens, set llm.kv = \"q8\" or \"q4\", or raise budgets.llm")
            .detail("needed_bytes", needed)
            .detail("available_bytes", left)
            .detail("budget_bytes", self.budget_bytes)
            .detail("weights_bytes", fixed.weights_bytes)
            .detail("activation_bytes", fixed.activation_bytes)
            .detail("context_bytes", fixed.context_bytes)
            .detail("text_token_bytes", caches.text_token_bytes)
            .detail("media_token_bytes", caches.media_token_bytes)
            .detail("image_tokens", caches.image_tokens)
            .detail("audio_tokens", caches.audio_tokens)
            .detail("text_tokens", caches.text_tokens))
    }
}

/// Memory that a process without a budget may still take: what is free on its GPU, or its host's. None where nobody says.
pub fn free_bytes() -> Option<u64> {
    let Some(gpu) = memory::limits() else { return memory::host_bytes() };
    let held = memory::usage();
    Some(gpu.free_bytes + held.reserved_bytes.saturating_sub(held.used_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::{ComputeConfig, LlmConfig, Precision};
    use model::config_json::ModelConfig;
    use protocol::plan::ImagePlan;

    fn footprint() -> LlmFootprint {
        let compute = ComputeConfig { device: "cuda".to_owned(), dtype: Precision::F16, ..ComputeConfig::default() };
        LlmFootprint::new(&ModelConfig::default(), &LlmConfig::default(), &compute).unwrap()
    }

    fn fit(budget_bytes: Option<u64>) -> Fit {
        Fit {
            footprint: footprint(),
            budget_bytes,
            gpu_bytes: None,
            host_bytes: None,
            kept_bytes: 0,
            text_tokens: 1064,
        }
    }

    fn plan(frames: u64, audio_samples: u64) -> MediaPlan {
        let image = Some(ImagePlan::new(1, frames));
        MediaPlan {
            content_id: String::new(),
            duration_s: 1.0,
            image,
            audio: AudioPlan::new(audio_samples),
            notes: Vec::new(),
        }
    }

    #[test]
    fn the_containers_word_on_the_sound_is_taken_with_a_second_more() {
        let plan = plan(10, 160_000);
        assert_eq!(fit(None).caches(&plan, true).audio_tokens, 100);
        assert_eq!(fit(None).caches(&plan, false).audio_tokens, 110);
    }

    #[test]
    fn a_budget_that_holds_a_plan_exactly_holds_it_and_a_byte_less_does_not() {
        let plan = plan(300, 4_800_000);
        let resident = fit(None).footprint.fixed.bytes();
        let needed = fit(None).caches(&plan, true).bytes();
        let chunks = |tokens: u64| (tokens * 344_064).div_ceil(32 << 20) * (32 << 20);
        assert_eq!(needed, chunks(58_800) + chunks(3_000) + chunks(1_064));
        assert!(fit(Some(resident + needed)).check(&plan, true).is_ok());
        let error = fit(Some(resident + needed - 1)).check(&plan, true).unwrap_err();
        assert_eq!((error.kind, &error.details["needed_bytes"]), (ErrorKind::DoesNotFit, &needed.into()));
    }

    #[test]
    fn passes_are_as_large_as_what_the_keys_and_values_leave_and_never_smaller_than_what_is_kept_for_them() {
        let plan = plan(300, 4_800_000);
        let whole = |budget| Fit { footprint: footprint(), ..fit(Some(budget)) };
        let resident = fit(None).footprint.fixed.bytes() + fit(None).caches(&plan, false).bytes();
        // Of the stream, its norm, the output and the rows of three passes, and of gates, ups and their product, in 16 bit.
        let row = (6 * 3584 + 3 * 14_336) * 2;
        for (spare, rows) in
            [(0, 4096), (512 * row - 1, 4096), (512 * row, 4608), (3000 * row, 6656), (u64::MAX / 2, 8192)]
        {
            assert_eq!(whole(resident + spare).pass_rows(&plan), rows, "{spare} bytes to spare");
        }
        // What is kept of other videos is not given up for it, and where nobody says what there is, it is as planned.
        assert_eq!(Fit { kept_bytes: 3000 * row, ..whole(resident + 3000 * row) }.pass_rows(&plan), 4096);
        assert_eq!(fit(None).pass_rows(&plan), 4096);
    }

    #[test]
    fn on_a_gpu_each_cache_takes_whole_chunks_of_the_pool_and_on_the_cpu_what_it_holds() {
        let plan = plan(2, 0);
        let on_gpu = fit(None);
        let on_cpu = Fit { footprint: LlmFootprint { chunk_bytes: 1, ..on_gpu.footprint }, ..on_gpu };
        assert_eq!(on_cpu.caches(&plan, true).bytes(), (2 * 196 + 1_064) * 344_064);
        // 128.6 and 349.1 MiB, and no sound.
        assert_eq!(on_gpu.caches(&plan, true).bytes(), (160 + 352) << 20);
        let beyond = Fit { text_tokens: u64::MAX, ..on_gpu };
        assert_eq!(beyond.caches(&plan, true).bytes(), u64::MAX);
    }

    #[test]
    fn without_a_budget_a_video_beyond_the_hosts_memory_is_refused() {
        let plan = plan(300, 0);
        let needed = fit(None).caches(&plan, true).bytes();
        let on_host = |free: u64| {
            let host_bytes = Some(free + fit(None).footprint.fixed.activation_bytes);
            Fit { host_bytes, ..fit(None) }.check(&plan, true)
        };
        assert!(on_host(needed).is_ok());
        let error = on_host(needed - 1).unwrap_err();
        assert_eq!(error.kind, ErrorKind::DoesNotFit);
        assert!(error.message.contains("host"), "{error}");
    }

    #[test]
    fn the_system_says_what_the_host_has_left() {
        assert!(memory::host_bytes().is_some_and(|free| free > 1 << 20));
    }
}
