//! Whether a job fits: everything that it will hold, in bytes, before any of it is allocated.

use std::fmt;

use candle_core::DType;
use common::budget::Bytes;
use common::checkpoint::{CheckpointError, Weights};
use common::error::{ErrorKind, JobError};
use common::model::ModelConfig;
use common::plan::{AudioPlan, MediaPlan, SAMPLE_RATE};

use crate::attention::{BLOCK_KEYS, BLOCK_SCORES};
use crate::cache::{CachePlan, Geometry};
use crate::gemma::Gemma;

/// What a worker holds whatever the job, and what a token adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Weights as they are kept.
    pub weights_bytes: u64,
    /// The most that one pass through the layers holds besides.
    pub activation_bytes: u64,
    /// Keys and values of one token.
    pub token_bytes: u64,
}

impl Footprint {
    /// What a model will take, without reading a byte of it, when at most `rows` rows go through its layers together.
    ///
    /// # Errors
    /// None that a checked configuration leads to.
    pub fn new(config: &ModelConfig, dtype: DType, rows: usize) -> Result<Self, CheckpointError> {
        let needs = Weights::survey(dtype, |w| Gemma::new(config, w))?;
        Ok(Footprint {
            weights_bytes: needs.iter().map(|n| n.bytes()).sum(),
            activation_bytes: activation_bytes(config, dtype, rows as u64),
            token_bytes: Geometry::new(config, dtype).token_bytes(),
        })
    }

    /// Refuses a budget that does not even hold the model.
    ///
    /// # Errors
    /// `does_not_fit` with the figures.
    pub fn check(&self, budget_bytes: Option<u64>) -> Result<(), JobError> {
        let needed = self.weights_bytes.saturating_add(self.activation_bytes);
        match budget_bytes {
            Some(budget) if needed > budget => Err(JobError::new(
                ErrorKind::DoesNotFit,
                format!("the language model takes {self}; its budget is {}", Bytes(budget)),
            )
            .hint("raise budgets.llm or lower llm.chunk_rows")
            .detail("weights_bytes", self.weights_bytes)
            .detail("activation_bytes", self.activation_bytes)
            .detail("budget_bytes", budget)),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (weights, activations) = (Bytes(self.weights_bytes), Bytes(self.activation_bytes));
        write!(f, "{weights} of weights, {activations} of activations and {} bytes a token", self.token_bytes)
    }
}

/// The most that rows hold on their way through a layer: the feed-forward part, where its products meet, or a block of
/// attention. An upper bound, not a measurement.
fn activation_bytes(c: &ModelConfig, dtype: DType, rows: u64) -> u64 {
    let (size, wide) = (dtype.size_in_bytes() as u64, 4);
    // Gate in both types, its GELU in both, up, and their product.
    let feed_forward = c.intermediate_size as u64 * (2 * wide + 2 * size);
    // The stream before and after, its norm in f32 and back, and the layer's outcome.
    let stream = c.hidden_size as u64 * (2 * wide + 4 * size);
    let heads = ((c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim) as u64 * (wide + size);
    let widened_keys =
        if dtype == DType::F32 { 0 } else { 2 * (BLOCK_KEYS * c.num_key_value_heads * c.head_dim) as u64 * wide };
    let block = 4 * BLOCK_SCORES as u64 * wide + widened_keys;
    let logits = 3 * c.vocab_size as u64 * wide;
    rows * (stream + feed_forward.max(heads)) + block + logits
}

/// One job's claim on a worker's memory.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// The worker.
    pub footprint: Footprint,
    /// What it may hold; none without a cap.
    pub budget_bytes: Option<u64>,
    /// Prompt and answer.
    pub text_tokens: u64,
}

impl Admission {
    /// What a plan's caches take. Before the sound is decoded its length is the container's word, so a second is added.
    pub fn caches(&self, plan: &MediaPlan, exact: bool) -> CachePlan {
        let margin = if exact { 0 } else { SAMPLE_RATE };
        let audio = plan.audio.as_ref().and_then(|a| AudioPlan::new(a.samples.saturating_add(margin)));
        CachePlan {
            token_bytes: self.footprint.token_bytes,
            text_tokens: self.text_tokens,
            image_tokens: plan.image.as_ref().map_or(0, |i| i.tokens),
            audio_tokens: audio.map_or(0, |a| a.tokens),
        }
    }

    /// Refuses a plan that the budget has no room for.
    ///
    /// # Errors
    /// `does_not_fit` with the figures.
    pub fn check(&self, plan: &MediaPlan, exact: bool) -> Result<(), JobError> {
        let caches = self.caches(plan, exact);
        let resident = self.footprint.weights_bytes.saturating_add(self.footprint.activation_bytes);
        // Without a budget the host's memory is the cap: an allocation that it refuses would end the process.
        let left = match self.budget_bytes {
            Some(budget) => Some(budget.saturating_sub(resident)),
            None => host_bytes().map(|free| free.saturating_sub(self.footprint.activation_bytes)),
        };
        let needed = caches.bytes();
        let Some(left) = left.filter(|&left| needed > left) else { return Ok(()) };
        let cap = match self.budget_bytes {
            Some(budget) => format!("the budget of {}", Bytes(budget)),
            None => "the host's memory".to_owned(),
        };
        let message = format!(
            "needs {} for the keys and values of {} image, {} audio and {} text tokens at {} bytes each; {cap} leaves {} \
             besides {} of weights and {} of activations",
            Bytes(needed),
            caches.image_tokens,
            caches.audio_tokens,
            caches.text_tokens,
            caches.token_bytes,
            Bytes(left),
            Bytes(self.footprint.weights_bytes),
            Bytes(self.footprint.activation_bytes),
        );
        Err(JobError::new(ErrorKind::DoesNotFit, message)
            .hint("ask with a lower fps, a shorter span or fewer max_new_tokens, or raise budgets.llm")
            .detail("needed_bytes", needed)
            .detail("available_bytes", left)
            .detail("budget_bytes", self.budget_bytes)
            .detail("weights_bytes", self.footprint.weights_bytes)
            .detail("activation_bytes", self.footprint.activation_bytes)
            .detail("token_bytes", caches.token_bytes)
            .detail("image_tokens", caches.image_tokens)
            .detail("audio_tokens", caches.audio_tokens)
            .detail("text_tokens", caches.text_tokens))
    }
}

/// Memory that the host has left, `MemAvailable`; none where the kernel does not say.
fn host_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::plan::ImagePlan;

    fn admission(budget_bytes: Option<u64>) -> Admission {
        let footprint = Footprint::new(&ModelConfig::default(), DType::F16, 4096).unwrap();
        Admission { footprint, budget_bytes, text_tokens: 1064 }
    }

    fn plan(frames: u64, audio_samples: u64) -> MediaPlan {
        let image = Some(ImagePlan::new(1, frames));
        MediaPlan { content_id: String::new(), duration_s: 1.0, image, audio: AudioPlan::new(audio_samples) }
    }

    #[test]
    fn the_9b_model_takes_what_the_specification_says() {
        let footprint = admission(None).footprint;
        // In 16 bit, but for the gains of the 4 x 42 + 1 norms, which are kept in f32.
        assert_eq!(footprint.weights_bytes, 2 * 9_241_705_984 + 2 * 169 * 3584);
        assert_eq!(footprint.token_bytes, 344_064);
        assert!(footprint.activation_bytes < 2 << 30, "{footprint}");
        assert_eq!(footprint.check(Some(17 << 30)).unwrap_err().kind, ErrorKind::DoesNotFit);
        assert!(footprint.check(Some(20 << 30)).is_ok() && footprint.check(None).is_ok());
    }

    #[test]
    fn the_containers_word_on_the_sound_is_taken_with_a_second_more() {
        let plan = plan(10, 160_000);
        assert_eq!(admission(None).caches(&plan, true).audio_tokens, 100);
        assert_eq!(admission(None).caches(&plan, false).audio_tokens, 110);
    }

    #[test]
    fn a_budget_that_holds_a_plan_exactly_holds_it_and_a_byte_less_does_not() {
        let plan = plan(300, 4_800_000);
        let claim = admission(None);
        let resident = claim.footprint.weights_bytes + claim.footprint.activation_bytes;
        let needed = claim.caches(&plan, true).bytes();
        assert_eq!(needed, (58_800 + 3_000 + 1_064) * 344_064);
        assert!(admission(Some(resident + needed)).check(&plan, true).is_ok());
        let error = admission(Some(resident + needed - 1)).check(&plan, true).unwrap_err();
        assert_eq!((error.kind, &error.details["needed_bytes"]), (ErrorKind::DoesNotFit, &needed.into()));
    }

    #[test]
    fn without_a_budget_a_video_beyond_the_hosts_memory_is_refused() {
        let error = admission(None).check(&plan(1 << 23, 0), true).unwrap_err();
        assert_eq!(error.kind, ErrorKind::DoesNotFit);
        assert!(error.message.contains("host"), "{error}");
    }
}
