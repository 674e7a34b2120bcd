//! Whether a job fits: everything that it will hold, in bytes, before any of it is allocated.

use compute::transfer::candle_dtype;
use protocol::bytes::Bytes;
use std::fmt;

use compute::kernels::E4m3Rows;
use compute::kernels::linear::WORKSPACE_BYTES;
use config::{ComputeConfig, LlmConfig, MediaProducts, WeightFormat};
use model::budget;
use model::checkpoint::{CheckpointError, Weights};
use model::config_json::ModelConfig;
use protocol::error::{ErrorKind, JobError};
use protocol::event::Mode;
use protocol::plan::{AudioPlan, MediaPlan, SAMPLE_RATE};

use crate::gemma::Gemma;
use crate::gemma::attention::segments::SCRATCH_BYTES;
use crate::gemma::attention::{BLOCK_KEYS, BLOCK_SCORES};
use crate::gemma::cache::{CachePlan, Geometry};
use crate::gemma::quantized;

/// A memory pool maps a card's memory in chunks of so many bytes (seen with CUDA 13.0): what a piece leaves of its last one
/// serves nothing that is larger.
const POOL_CHUNK_BYTES: u64 = 32 << 20;

/// What a worker holds whatever the job, and what a token adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Whatever the job.
    pub fixed: budget::Footprint,
    /// Keys and values of one text token.
    pub text_token_bytes: u64,
    /// Keys and values of one image or audio token.
    pub media_token_bytes: u64,
    /// What memory for keys and values comes in: a pool's chunks on a card, bytes on the CPU.
    pub chunk_bytes: u64,
}

impl Footprint {
    /// What a model will take, without reading a byte of it.
    ///
    /// # Errors
    /// None that a checked configuration leads to.
    pub fn new(model: &ModelConfig, llm: &LlmConfig, compute: &ComputeConfig) -> Result<Self, CheckpointError> {
        let dtype = candle_dtype(compute.dtype.wire());
        let needs = Weights::survey(dtype, |w| Gemma::new(model, w, llm, compute.media_products))?;
        let rows = llm.chunk_rows.max(llm.max_prompt_tokens) as u64;
        let in_blocks = matches!(llm.weights, WeightFormat::Q8 | WeightFormat::Q4);
        let size = dtype.size_in_bytes() as u64;
        let fp8 = (compute.media_products == MediaProducts::Fp8).then_some(llm.chunk_rows as u64);
        let activations = activation_bytes(model, size, rows, compute.cuda_ordinal().is_some(), in_blocks, fp8);
        let geometry = Geometry::new(model, dtype, llm.kv);
        Ok(Footprint {
            fixed: budget::Footprint::new(&needs, activations, compute),
            text_token_bytes: geometry.text_token_bytes(),
            media_token_bytes: geometry.media_token_bytes(),
            chunk_bytes: if compute.cuda_ordinal().is_some() { POOL_CHUNK_BYTES } else { 1 },
        })
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, media) = (self.text_token_bytes, self.media_token_bytes);
        write!(f, "{}, {text} bytes a text token and {media} an image or audio token", self.fixed)
    }
}

/// What to do about a budget that does not hold the model.
pub const HINT: &str = "raise budgets.llm, set llm.weights = \"q8\" or \"q4\", or lower llm.chunk_rows";

/// The most that rows hold on their way through a layer: the feed-forward part, where gates and ups meet, or a block of
/// attention. An upper bound, not a measurement. `fp8` says how many rows are multiplied in 8 bits, if any.
fn activation_bytes(c: &ModelConfig, size: u64, rows: u64, on_gpu: bool, in_blocks: bool, fp8: Option<u64>) -> u64 {
    let wide = 4;
    let (hidden, inner) = (c.hidden_size as u64, c.intermediate_size as u64);
    let (q, kv) = ((c.num_attention_heads * c.head_dim) as u64, (c.num_key_value_heads * c.head_dim) as u64);
    // The stream, its norm, what attention or the feed-forward part makes of it, and the rows as they came, of the next two
    // passes too: a device is given one ahead while another is gathered.
    let stream = 6 * hidden * size;
    let feed_forward = 3 * inner * size; // gates and ups, and their product
    let heads = 2 * (q + 2 * kv) * size;
    // The folded output projection, and what it is made from: blocks expanded; on the CPU, where it is summed in parts, f32.
    let folded = hidden
        * match (on_gpu, in_blocks) {
            (true, false) => kv * size,
            (true, true) => (q + kv) * size,
            (false, _) => q * wide + kv * (wide + size),
        };
    let attention = if on_gpu {
        SCRATCH_BYTES as u64
    } else {
        let widened_keys = if size == wide { 0 } else { 2 * BLOCK_KEYS as u64 * kv * wide };
        // In f32, before they are rounded: the CPU's norms and products.
        4 * BLOCK_SCORES as u64 * wide + widened_keys + rows * (2 * hidden + inner) * wide
    };
    let logits = 3 * c.vocab_size as u64 * wide;
    // Blocks are expanded a matrix, or a stretch of one, at a time.
    let expanded = match (in_blocks, on_gpu) {
        (false, _) => 0,
        (true, false) => (2 * inner * hidden * wide).min(quantized::SCRATCH_BYTES as u64),
        (true, true) => (2 * inner * hidden * size).min(quantized::SCRATCH_BYTES as u64) + WORKSPACE_BYTES as u64,
    };
    // So are the weights of a product in 8 bits; its rows take less than those in T, for which there is room. On the CPU
    // both stand there once more in f32.
    let (quantized, besides) = match fp8 {
        None => (0, 0),
        Some(_) if on_gpu => (E4m3Rows::bytes(2 * c.intermediate_size, c.hidden_size) as u64, WORKSPACE_BYTES as u64),
        Some(rows) => (inner * hidden * 2 * (1 + wide), rows * inner * (1 + wide)),
    };
    rows * (stream + feed_forward.max(heads)) + folded.max(expanded).max(quantized) + besides + attention + logits
}

/// One job's claim on a worker's memory.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// The worker.
    pub footprint: Footprint,
    /// What it may hold; none without a cap.
    pub budget_bytes: Option<u64>,
    /// What it may hold alone on the card, the encoders gone; none where they never go.
    pub card_bytes: Option<u64>,
    /// What the host has left for it, the cap where there is no budget: read before the job allocates, with what it may
    /// let go counted in. None where the system does not say.
    pub host_bytes: Option<u64>,
    /// Prompt and answer.
    pub text_tokens: u64,
}

impl Admission {
    /// How a plan fits: beside the encoders, or in phases.
    ///
    /// # Errors
    /// `does_not_fit` with the figures of the roomier way.
    pub fn mode(&self, plan: &MediaPlan) -> Result<Mode, JobError> {
        let beside = self.check(plan, false);
        match (&beside, self.card_bytes) {
            (Err(_), Some(_)) => self.alone().check(plan, false).map(|()| Mode::Phases),
            _ => beside.map(|()| Mode::Streaming),
        }
    }

    /// The same claim with the card to itself.
    pub fn alone(self) -> Self {
        Admission { budget_bytes: self.card_bytes.or(self.budget_bytes), ..self }
    }

    /// What a plan's caches take. Before the sound is decoded its length is the container's word, so a second is added.
    pub fn caches(&self, plan: &MediaPlan, exact: bool) -> CachePlan {
        let margin = if exact { 0 } else { SAMPLE_RATE };
        let audio = plan.audio.as_ref().and_then(|a| AudioPlan::new(a.samples.saturating_add(margin)));
        CachePlan {
            text_token_bytes: self.footprint.text_token_bytes,
            media_token_bytes: self.footprint.media_token_bytes,
            text_tokens: self.text_tokens,
            image_tokens: plan.image.as_ref().map_or(0, |i| i.tokens),
            audio_tokens: audio.map_or(0, |a| a.tokens),
            chunk_bytes: self.footprint.chunk_bytes,
        }
    }

    /// What is left for keys and values; none without any cap.
    fn left_bytes(&self) -> Option<u64> {
        let fixed = &self.footprint.fixed;
        match self.budget_bytes {
            Some(budget) => Some(budget.saturating_sub(fixed.bytes())),
            // An allocation that the host refuses would end the process.
            None => self.host_bytes.map(|free| free.saturating_sub(fixed.activation_bytes)),
        }
    }

    /// Whether keys and values of so many bytes may stay once the job is done, with the encoders back beside them.
    pub fn leaves(&self, bytes: u64) -> bool {
        self.left_bytes().is_none_or(|left| bytes <= left)
    }

    /// Refuses a plan that the budget has no room for.
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
            None => "the host's memory".to_owned(),
        };
        let message = format!(
            "needs {} for the keys and values of {} image and {} audio tokens at {} bytes each and {} text tokens at {}; \
             {cap} leaves {} besides {fixed}",
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

/// Memory that the host has left, `MemAvailable`; none where the kernel does not say.
pub fn host_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::{KvPrecision, Precision};
    use protocol::error::StageName;
    use protocol::plan::ImagePlan;

    fn footprint(kv: KvPrecision) -> Footprint {
        let llm = LlmConfig { kv, ..LlmConfig::default() };
        let compute = ComputeConfig { device: "cuda".to_owned(), dtype: Precision::F16, ..ComputeConfig::default() };
        Footprint::new(&ModelConfig::default(), &llm, &compute).unwrap()
    }

    fn admission(budget_bytes: Option<u64>) -> Admission {
        Admission {
            footprint: footprint(KvPrecision::Dense),
            budget_bytes,
            card_bytes: None,
            host_bytes: None,
            text_tokens: 1064,
        }
    }

    fn plan(frames: u64, audio_samples: u64) -> MediaPlan {
        let image = Some(ImagePlan::new(1, frames));
        MediaPlan { content_id: String::new(), duration_s: 1.0, image, audio: AudioPlan::new(audio_samples) }
    }

    #[test]
    fn the_9b_model_takes_what_the_specification_says() {
        let footprint = admission(None).footprint;
        // In 16 bit, but for the gains of the 4 x 42 + 1 norms, which are kept in f32.
        assert_eq!(footprint.fixed.weights_bytes, 2 * 9_241_705_984 + 2 * 169 * 3584);
        assert_eq!((footprint.text_token_bytes, footprint.media_token_bytes), (344_064, 344_064));
        assert!(footprint.fixed.activation_bytes < 1 << 30, "{footprint}");
        let check = |gib: u64| footprint.fixed.check(StageName::Llm, Some(gib << 30), HINT);
        assert_eq!(check(17).unwrap_err().kind, ErrorKind::DoesNotFit);
        assert!(check(20).is_ok());
    }

    #[test]
    fn quantized_keys_and_values_take_a_half_and_a_quarter_and_the_texts_stay_as_they_are() {
        let [q8, q4] = [KvPrecision::Q8, KvPrecision::Q4].map(footprint);
        assert_eq!((q8.text_token_bytes, q4.text_token_bytes), (344_064, 344_064));
        assert!(q8.media_token_bytes * 16 <= 344_064 * 17 / 2, "{q8}");
        assert!(q4.media_token_bytes * 32 <= 344_064 * 9, "{q4}");
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
        let resident = claim.footprint.fixed.bytes();
        let needed = claim.caches(&plan, true).bytes();
        let chunks = |tokens: u64| (tokens * 344_064).div_ceil(32 << 20) * (32 << 20);
        assert_eq!(needed, chunks(58_800) + chunks(3_000) + chunks(1_064));
        assert!(admission(Some(resident + needed)).check(&plan, true).is_ok());
        let error = admission(Some(resident + needed - 1)).check(&plan, true).unwrap_err();
        assert_eq!((error.kind, &error.details["needed_bytes"]), (ErrorKind::DoesNotFit, &needed.into()));
    }

    #[test]
    fn on_a_card_each_cache_takes_whole_chunks_of_the_pool_and_on_the_cpu_what_it_holds() {
        let plan = plan(2, 0);
        let on_card = admission(None);
        let on_cpu = Admission { footprint: Footprint { chunk_bytes: 1, ..on_card.footprint }, ..on_card };
        assert_eq!(on_cpu.caches(&plan, true).bytes(), (2 * 196 + 1_064) * 344_064);
        // 128.6 and 349.1 MiB, and no sound.
        assert_eq!(on_card.caches(&plan, true).bytes(), (160 + 352) << 20);
        let beyond = Admission { text_tokens: u64::MAX, ..on_card };
        assert_eq!(beyond.caches(&plan, true).bytes(), u64::MAX);
    }

    #[test]
    fn without_a_budget_a_video_beyond_the_hosts_memory_is_refused() {
        let plan = plan(300, 0);
        let needed = admission(None).caches(&plan, true).bytes();
        let on_host = |free: u64| {
            let host_bytes = Some(free + admission(None).footprint.fixed.activation_bytes);
            Admission { host_bytes, ..admission(None) }.check(&plan, true)
        };
        assert!(on_host(needed).is_ok());
        let error = on_host(needed - 1).unwrap_err();
        assert_eq!(error.kind, ErrorKind::DoesNotFit);
        assert!(error.message.contains("host"), "{error}");
    }

    #[test]
    fn the_system_says_what_the_host_has_left() {
        assert!(host_bytes().is_some_and(|free| free > 1 << 20));
    }
}
