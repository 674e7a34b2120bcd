//! Memory that the language model takes: known from its geometry, before a byte of it is read.

use std::fmt;

use compute::kernels::E4m3Rows;
use compute::kernels::WORKSPACE_BYTES;
use compute::transfer::candle_dtype;
use config::{ComputeConfig, LlmConfig, MediaProducts, WeightFormat};
use model::budget::Footprint;
use model::checkpoint::{CheckpointError, Weights};
use model::config_json::ModelConfig;

use crate::language::attention::SCRATCH_BYTES;
use crate::language::attention::blockwise::{BLOCK_KEYS, BLOCK_SCORES};
use crate::language::cache::Geometry;
use crate::language::language_model::LanguageModel;
use crate::language::quantized::matrix::EXPANDED_BYTES;

/// Bytes of a chunk in which a memory pool maps GPU memory (seen with CUDA 13.0): what an allocation leaves of its last
/// chunk serves nothing that is larger.
const POOL_CHUNK_BYTES: u64 = 32 << 20;
/// Bytes of an f32.
const WIDE: u64 = 4;
/// Rows by which passes grow: matmuls take their rows in tiles of a few hundred.
const ROW_STEP: u64 = 512;

/// Memory that a worker holds whatever the job, and that each token adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LlmFootprint {
    /// Weights, activations and context, whatever the job.
    pub fixed: Footprint,
    /// Bytes of the keys and values of one text token.
    pub text_token_bytes: u64,
    /// Bytes of the keys and values of one image or audio token.
    pub media_token_bytes: u64,
    /// Unit in which memory for keys and values is allocated: chunks of the pool on a GPU, bytes on the CPU.
    pub chunk_bytes: u64,
    /// Image and audio tokens that pass the layers together, by what memory there is.
    pub passes: PassRows,
}

/// Rows of a pass of image and audio tokens, by the memory that a job leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassRows {
    /// Rows whose activations are in the footprint.
    kept: u64,
    /// Rows at most.
    most: u64,
    /// Bytes that one row more takes.
    row_bytes: u64,
}

impl PassRows {
    /// Rows of a pass where so many bytes are left beside the footprint and the job's keys and values.
    pub fn within(&self, spare_bytes: u64) -> u64 {
        let more = spare_bytes / self.row_bytes.max(1) / ROW_STEP * ROW_STEP;
        self.kept.saturating_add(more).min(self.most)
    }

    /// Rows at most, whatever memory there is.
    pub fn most(&self) -> u64 {
        self.most
    }
}

impl LlmFootprint {
    /// Footprint of a model, without reading a byte of it.
    ///
    /// # Errors
    /// None with a checked configuration.
    pub fn new(model: &ModelConfig, llm: &LlmConfig, compute: &ComputeConfig) -> Result<Self, CheckpointError> {
        let dtype = candle_dtype(compute.dtype.wire());
        let needs = Weights::survey(dtype, |w| LanguageModel::new(model, w, llm, compute.media_products))?;
        let rows = llm.chunk_rows.max(llm.max_prompt_tokens) as u64;
        let in_blocks = matches!(llm.weights, WeightFormat::Q8 | WeightFormat::Q4);
        let size = dtype.size_in_bytes() as u64;
        let fp8 = (compute.media_products == MediaProducts::Fp8)
            .then_some(Fp8 { rows: llm.chunk_rows as u64, kept: llm.keep_fp8 });
        let bounds = Passes { rows, answers: llm.together.into(), fp8 };
        let activations = activation_bytes(model, size, bounds, compute.cuda_ordinal().is_some(), in_blocks);
        let geometry = Geometry::new(model, dtype, llm.kv);
        let on_gpu = compute.cuda_ordinal().is_some();
        // On the CPU passes of more rows gain nothing.
        let most = if on_gpu { llm.chunk_rows.max(llm.pass_rows) } else { llm.chunk_rows } as u64;
        let passes = PassRows { kept: rows, most, row_bytes: row_bytes(model, size, on_gpu) };
        Ok(LlmFootprint {
            fixed: Footprint::new(&needs, activations, compute),
            text_token_bytes: geometry.text_token_bytes(),
            media_token_bytes: geometry.media_token_bytes(),
            chunk_bytes: if on_gpu { POOL_CHUNK_BYTES } else { 1 },
            passes,
        })
    }
}

impl fmt::Display for LlmFootprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, media) = (self.text_token_bytes, self.media_token_bytes);
        write!(f, "{}, {text} bytes a text token and {media} an image or audio token", self.fixed)
    }
}

/// Advice for a budget that does not hold the model.
pub const HINT: &str =
    "raise budgets.llm, set llm.weights = \"q8\" or \"q4\", lower llm.chunk_rows, or leave out llm.keep_fp8";

/// Rows that pass the layers together at most.
struct Passes {
    /// Rows of media or of a prompt, of which the last one alone has logits.
    rows: u64,
    /// Answers of a step, each with a row and its logits.
    answers: u64,
    /// Matmuls in 8 bits, if there are any.
    fp8: Option<Fp8>,
}

/// Matmuls in 8 bits.
struct Fp8 {
    /// Rows of one at most.
    rows: u64,
    /// Whether its weights are kept, and not made for it.
    kept: bool,
}

/// Upper bound of the bytes that one row takes on its way through a layer: in the feed-forward part, where gates and ups meet, or
/// in a block of attention.
fn row_bytes(c: &ModelConfig, size: u64, on_gpu: bool) -> u64 {
    let (hidden, inner) = (c.hidden_size as u64, c.intermediate_size as u64);
    let (q, kv) = ((c.num_attention_heads * c.head_dim) as u64, (c.num_key_value_heads * c.head_dim) as u64);
    // The stream, its norm, the output of attention or of the feed-forward part, and the rows as they came, of the next
    // two passes too: one is queued on the device while another is gathered.
    let stream = 6 * hidden * size;
    let feed_forward = 3 * inner * size; // gates, ups, and gates times ups
    let heads = 2 * (q + 2 * kv) * size;
    // In f32, before they are rounded: norms and matmuls on the CPU.
    let rounded = if on_gpu { 0 } else { (2 * hidden + inner) * WIDE };
    stream + feed_forward.max(heads) + rounded
}

/// Upper bound of the bytes that a pass takes besides the weights as they are kept, not a measurement.
fn activation_bytes(c: &ModelConfig, size: u64, passes: Passes, on_gpu: bool, in_blocks: bool) -> u64 {
    let Passes { rows, answers, fp8 } = passes;
    let (hidden, inner) = (c.hidden_size as u64, c.intermediate_size as u64);
    let (q, kv) = ((c.num_attention_heads * c.head_dim) as u64, (c.num_key_value_heads * c.head_dim) as u64);
    // The folded output projection and its source: blocks expanded, or f32 on the CPU, where it is summed in parts.
    let folded = hidden
        * match (on_gpu, in_blocks) {
            (true, false) => kv * size,
            (true, true) => (q + kv) * size,
            (false, _) => q * WIDE + kv * (WIDE + size),
        };
    let attention = if on_gpu {
        SCRATCH_BYTES as u64
    } else {
        let widened_keys = if size == WIDE { 0 } else { 2 * BLOCK_KEYS as u64 * kv * WIDE };
        4 * BLOCK_SCORES as u64 * WIDE + widened_keys
    };
    let logits = 3 * c.vocab_size as u64 * WIDE;
    // One matrix, or a stretch of it, is expanded at a time.
    let expanded = match (in_blocks, on_gpu) {
        (false, _) => 0,
        (true, false) => (2 * inner * hidden * WIDE).min(EXPANDED_BYTES as u64),
        (true, true) => (2 * inner * hidden * size).min(EXPANDED_BYTES as u64) + WORKSPACE_BYTES as u64,
    };
    // So are the weights of a matmul in 8 bits; its rows take less than those in T, which are counted. On the CPU both
    // exist once more in f32.
    let (quantized, besides) = match fp8 {
        None => (0, 0),
        Some(Fp8 { kept: true, .. }) if on_gpu => (0, WORKSPACE_BYTES as u64),
        Some(_) if on_gpu => (E4m3Rows::bytes(2 * c.intermediate_size, c.hidden_size) as u64, WORKSPACE_BYTES as u64),
        Some(Fp8 { rows, .. }) => (inner * hidden * 2 * (1 + WIDE), rows * inner * (1 + WIDE)),
    };
    let row = row_bytes(c, size, on_gpu);
    // A step of answers has few rows, but every one has logits; a prompt is read between two of them.
    let pass = (rows * row + logits).max(answers * (row + logits));
    pass + folded.max(expanded).max(quantized) + besides + attention
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::{KvPrecision, Precision};
    use model::config_json::Family;
    use protocol::error::{ErrorKind, StageName};

    fn footprint(kv: KvPrecision) -> LlmFootprint {
        footprint_of(Family::Gemma2, kv)
    }

    fn footprint_of(family: Family, kv: KvPrecision) -> LlmFootprint {
        let llm = LlmConfig { kv, ..LlmConfig::default() };
        let compute = ComputeConfig { device: "cuda".to_owned(), dtype: Precision::F16, ..ComputeConfig::default() };
        LlmFootprint::new(&ModelConfig::of(family), &llm, &compute).unwrap()
    }

    #[test]
    fn the_9b_model_takes_what_the_specification_says() {
        let footprint = footprint(KvPrecision::Dense);
        // In 16 bit, but for the gains of the 4 x 42 + 1 norms, which are kept in f32.
        assert_eq!(footprint.fixed.weights_bytes, 2 * 9_241_705_984 + 2 * 169 * 3584);
        assert_eq!((footprint.text_token_bytes, footprint.media_token_bytes), (344_064, 344_064));
        assert!(footprint.fixed.activation_bytes < 1 << 30, "{footprint}");
        let check = |gib: u64| footprint.fixed.check(StageName::Llm, Some(gib << 30), HINT);
        assert_eq!(check(17).unwrap_err().kind, ErrorKind::DoesNotFit);
        assert!(check(20).is_ok());
    }

    #[test]
    fn the_7b_model_takes_what_its_geometry_says() {
        let dense = footprint_of(Family::Mistral, KvPrecision::Dense);
        // In 16 bit, but for the gains of the 2 x 32 + 1 norms, which are kept in f32.
        assert_eq!(dense.fixed.weights_bytes, 2 * 7_248_023_552 + 2 * 65 * 4096);
        // 32 layers x 2 x 8 heads of 128, in 16, 8.25 and 4.5 bits.
        assert_eq!((dense.text_token_bytes, dense.media_token_bytes), (131_072, 131_072));
        let [q8, q4] = [KvPrecision::Q8, KvPrecision::Q4].map(|kv| footprint_of(Family::Mistral, kv).media_token_bytes);
        assert_eq!((q8, q4), (67_584, 36_864));
        assert!(dense.fixed.activation_bytes < 1 << 30, "{dense}");
    }

    #[test]
    fn a_step_of_many_answers_is_reserved_for_where_it_takes_more_than_a_pass_of_media() {
        let with = |together: u32, rows: usize| {
            let llm = LlmConfig { together, chunk_rows: rows, max_prompt_tokens: rows, ..LlmConfig::default() };
            let compute = ComputeConfig { device: "cuda".to_owned(), ..ComputeConfig::default() };
            LlmFootprint::new(&ModelConfig::default(), &llm, &compute).unwrap().fixed.activation_bytes
        };
        assert_eq!(with(1, 4096), with(32, 4096));
        // Logits of 256,000 in f32, and three of each.
        assert!(with(256, 256) - with(1, 256) >= 255 * 3 * 256_000 * 4);
    }

    #[test]
    fn quantized_keys_and_values_take_a_half_and_a_quarter_and_the_texts_stay_as_they_are() {
        let [q8, q4] = [KvPrecision::Q8, KvPrecision::Q4].map(footprint);
        assert_eq!((q8.text_token_bytes, q4.text_token_bytes), (344_064, 344_064));
        assert!(q8.media_token_bytes * 16 <= 344_064 * 17 / 2, "{q8}");
        assert!(q4.media_token_bytes * 32 <= 344_064 * 9, "{q4}");
    }
}
