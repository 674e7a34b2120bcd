//! Decode steps of two layers of Gemma 2 9B's shape, and of a head of 1,024 rows that takes next to nothing, with the weights in
//! f32, bf16 and blocks; and what a step over a video adds to a layer.

use std::sync::Arc;

use anyhow::Result;
use candle_core::{DType, Device};
use compute::random::Draws;
use config::{LlmConfig, MediaProducts, Size, WeightFormat};
use model::checkpoint::{Checkpoint, Weights};
use model::demo_model::Dims;
use stage_llm::language::LanguageModel;
use stage_llm::language::attention::blockwise::attend;
use stage_llm::language::attention::{Scoring, Visible};
use stage_llm::language::cache::VideoCache;

use super::case::{Case, floats, matmul};

const LAYERS: usize = 2;
/// Tokens before the steps.
const PROMPT: u32 = 64;
/// Tokens that fit behind them: more than there are rounds.
const STEPS: usize = 1000;

/// Image tokens of one minute.
const IMAGE_TOKENS: usize = 12_360;

/// Steps in each format, and one token's attention to a minute of video.
///
/// # Errors
/// The model's, where there is no memory.
pub fn cases() -> Result<Vec<Case>> {
    let formats = [
        ("decoder.f32", DType::F32, WeightFormat::Dense, 4.0),
        ("decoder.bf16", DType::BF16, WeightFormat::Dense, 2.0),
        ("decoder.q8", DType::F32, WeightFormat::Q8, 34.0 / 32.0),
        // Projections to queries, keys and values in 6 bits, the others in 4.
        ("decoder.q4", DType::F32, WeightFormat::Q4, (0.85 * 144.0 + 0.15 * 210.0) / 256.0),
    ];
    let steps = formats.into_iter().map(|(name, dtype, format, bytes)| step(name, dtype, format, bytes));
    steps.chain([over_a_video()]).collect()
}

fn over_a_video() -> Result<Case> {
    let (heads, kv_heads, head_dim) = (16, 8, 256);
    let draws = Draws::default();
    let q = draws.normal(&[heads, 1, head_dim])?;
    let [k, v] =
        [draws.normal(&[kv_heads, IMAGE_TOKENS, head_dim])?, draws.normal(&[kv_heads, IMAGE_TOKENS, head_dim])?];
    let scoring = Scoring { scale: 0.0625, cap: Some(50.0) };
    let operations = 2.0 * matmul(heads, head_dim, IMAGE_TOKENS);
    let bytes = floats(2 * kv_heads * IMAGE_TOKENS * head_dim);
    Ok(Case::single("decoder.video", operations, bytes, move || attend(&q, &k, &v, scoring, Visible::All).map(drop)))
}

fn step(name: &'static str, dtype: DType, format: WeightFormat, bytes: f64) -> Result<Case> {
    let small = Dims::of(Size::Tiny);
    let dims =
        Dims { layers: LAYERS as u64, vocab: 1024, vision: small.vision, audio: small.audio, ..Dims::of(Size::NineB) };
    let checkpoint = Arc::new(Checkpoint::random(&dims, 1)?);
    let c = checkpoint.config().clone();
    let llm = LlmConfig { weights: format, ..LlmConfig::default() };
    let weights = Weights::new(checkpoint, dtype, Device::Cpu);
    let model = LanguageModel::new(&c, &weights, &llm, MediaProducts::Dense)?;
    let video = VideoCache { image: None, audio: None };
    let mut text = model.text_cache(PROMPT as usize + STEPS)?;
    let prompt: Vec<u32> = (10..10 + PROMPT).collect();
    model.prefill(&prompt, &mut text, &video, &mut ())?;
    let heads = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim;
    let out = c.num_attention_heads * c.head_dim;
    let values = c.hidden_size * (heads + out + 3 * c.intermediate_size);
    let operations = LAYERS as f64 * matmul(1, 1, values);
    Ok(Case::single(name, operations, LAYERS as f64 * bytes * values as f64, move || {
        model.decode(100, &mut text, &video).map(drop)
    }))
}
