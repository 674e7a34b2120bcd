//! The checkpoint's `config.json`: geometry of the language model, the towers and the adapters (MODEL.md 1, MODEL-7B.md).

pub mod family;
mod file;
pub(crate) mod rope;
mod settings;
pub mod supported;
mod towers;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use family::{Family, ImagePool};
pub use settings::Setting;
pub use towers::{AudioConfig, VisionConfig};

/// Geometry of the whole model. Absent keys have the values of the released model of its [`Family`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
// The derived functions know every key; the traits' (below and in `file`) put those of a file over the family's defaults.
#[serde(remote = "Self")]
pub struct ModelConfig {
    /// Model that the checkpoint is of.
    #[serde(rename = "model_type")]
    pub family: Family,
    /// Width of the language model, D.
    pub hidden_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; each serves `num_attention_heads / num_key_value_heads` query heads in a row.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Epsilon of the language model's norms.
    pub rms_norm_eps: f64,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Soft cap of attention scores; none switches it off.
    pub attn_logit_softcapping: Option<f64>,
    /// Soft cap of the logits; none switches it off.
    pub final_logit_softcapping: Option<f64>,
    /// Scores are scaled by this to the power of -1/2; Mistral's is the width of a head.
    pub query_pre_attn_scalar: f64,
    /// Keys that a text query sees, itself included, on the layers that have a [window](Self::window); none where all
    /// layers are full.
    pub sliding_window: Option<usize>,
    /// Whether the embedding is the output head; then a stray `lm_head.weight` is ignored.
    pub tie_word_embeddings: bool,
    /// Tokens that end an answer by the checkpoint's word; those of the configuration, `llm.end_tokens`, do.
    #[serde(deserialize_with = "one_or_many")]
    pub eos_token_id: Vec<u32>,
    /// Which hidden state of the vision tower counts, from the end if negative: -2 is the output of the last layer but one.
    pub mm_vision_select_layer: i64,
    /// Length to which time positions are stretched.
    pub mm_time_interval: u32,
    /// `mlp<depth>x_gelu` or `linear`.
    pub mm_projector_type: String,
    /// Side of the space-to-depth merge, 2, or cells a side that a frame has after the convolution: see
    /// [`image_pool`](Self::image_pool).
    pub mm_image_pool_size: u64,
    /// Encoder rows per audio token; the wire format knows 5 only.
    pub mm_audio_pool_size: u64,
    /// Geometry of the vision tower.
    #[serde(rename = "mm_vision_config")]
    pub vision: VisionConfig,
    /// Geometry of the audio tower.
    #[serde(rename = "mm_audio_config")]
    pub audio: AudioConfig,
}

impl Serialize for ModelConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ModelConfig::serialize(self, serializer)
    }
}

/// A number, a list of them, or `null` for none.
fn one_or_many<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "eos_token_id is a token id, a list of them, or null")]
    enum Ids {
        One(u32),
        Many(Vec<u32>),
    }
    Ok(match Option::<Ids>::deserialize(d)? {
        None => Vec::new(),
        Some(Ids::One(id)) => vec![id],
        Some(Ids::Many(ids)) => ids,
    })
}

impl Default for ModelConfig {
    fn default() -> Self {
        ModelConfig::of(Family::Gemma2)
    }
}

impl ModelConfig {
    /// Vision layers that run: `hidden_states[select_layer]` is the output of the last of them.
    pub fn vision_layers(&self) -> usize {
        let select = self.mm_vision_select_layer;
        let layers = self.vision.num_hidden_layers as i64;
        let run = if select < 0 { layers + 1 + select } else { select };
        run.clamp(0, layers) as usize
    }

    /// Refuses a geometry that no tensor could have, or that the messages cannot carry.
    ///
    /// # Errors
    /// The key, its value and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        let need = |ok: bool, what: &str| if ok { Ok(()) } else { Err(what.to_owned()) };
        for (key, value) in [
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("vocab_size", self.vocab_size),
            ("sliding_window", self.sliding_window.unwrap_or(1)),
            ("mm_vision_config.hidden_size", self.vision.hidden_size),
            ("mm_vision_config.intermediate_size", self.vision.intermediate_size),
            ("mm_vision_config.num_hidden_layers", self.vision.num_hidden_layers),
            ("mm_vision_config.num_attention_heads", self.vision.num_attention_heads),
            ("mm_audio_config.d_model", self.audio.d_model),
            ("mm_audio_config.encoder_ffn_dim", self.audio.encoder_ffn_dim),
            ("mm_audio_config.encoder_layers", self.audio.encoder_layers),
            ("mm_audio_config.encoder_attention_heads", self.audio.encoder_attention_heads),
            ("mm_audio_config.num_mel_bins", self.audio.num_mel_bins),
        ] {
            need((1..=1 << 24).contains(&value), &format!("{key} = {value} is not 1 to 16,777,216"))?;
        }
        need(
            self.num_attention_heads.is_multiple_of(self.num_key_value_heads),
            "num_attention_heads is not a multiple of num_key_value_heads",
        )?;
        need(self.head_dim.is_multiple_of(2), "head_dim is odd: rotary embedding needs pairs")?;
        need(
            self.vision.hidden_size.is_multiple_of(self.vision.num_attention_heads),
            "mm_vision_config.hidden_size is not a multiple of its heads",
        )?;
        need(
            self.audio.d_model.is_multiple_of(self.audio.encoder_attention_heads),
            "mm_audio_config.d_model is not a multiple of its heads",
        )?;
        need(
            self.vision.image_size == 384 && self.vision.side() == 27,
            "mm_vision_config: image_size and patch_size must be 384 pixels in 27 patches a side (MODEL.md 3)",
        )?;
        need(self.audio.max_source_positions == 1500, "mm_audio_config.max_source_positions must be 1500 (30 s)")?;
        self.check_pools()?;
        need(self.vision_layers() > 0, "mm_vision_select_layer selects no encoder layer")?;
        for (key, value) in [
            ("query_pre_attn_scalar", Some(self.query_pre_attn_scalar)),
            ("rope_theta", Some(self.rope_theta)),
            ("rms_norm_eps", Some(self.rms_norm_eps)),
            ("attn_logit_softcapping", self.attn_logit_softcapping),
            ("final_logit_softcapping", self.final_logit_softcapping),
            ("mm_vision_config.layer_norm_eps", Some(self.vision.layer_norm_eps)),
        ] {
            need(value.is_none_or(|value| value > 0.0), &format!("{key} must be over 0"))?;
        }
        need(self.projector_depth().is_some(), "mm_projector_type is not mlp<depth>x_gelu or linear")
    }

    /// Refuses pools that no code computes, and a Gemma 2 without a window.
    fn check_pools(&self) -> Result<(), String> {
        let need = |ok: bool, what: String| if ok { Ok(()) } else { Err(what) };
        let (size, most) = (self.mm_image_pool_size, self.vision.side() as u64);
        match self.family {
            Family::Gemma2 => {
                need(size == 2, format!("mm_image_pool_size = {size} must be 2"))?;
                need(self.sliding_window.is_some(), "sliding_window = null must be a number of tokens".to_owned())?;
            }
            // One cell a side has no positions: they are divided by the side less 1 (MODEL-7B.md, "Image adapter").
            Family::Mistral => {
                need((2..=most).contains(&size), format!("mm_image_pool_size = {size} is not 2 to {most}"))?
            }
        }
        need(self.mm_audio_pool_size == 5, format!("mm_audio_pool_size = {} must be 5", self.mm_audio_pool_size))
    }

    /// What to tell whoever starts this model where it ends answers with tokens that are not in `configured`, the value of
    /// `llm.end_tokens`; without one, that the family's do not name.
    pub fn end_tokens_warning(&self, configured: Option<&[u32]>) -> Option<String> {
        let (ids, end_tokens) = (&self.eos_token_id, configured.unwrap_or(self.family.end_tokens()));
        ids.iter().any(|id| !end_tokens.contains(id)).then(|| {
            format!(
                "end tokens differ: the checkpoint's config.json has eos_token_id = {ids:?}, llm.end_tokens is \
                 {end_tokens:?}, which counts; if answers run on, --set 'llm.end_tokens={ids:?}'"
            )
        })
    }

    /// Linear layers of a projector, with GELU between them: 2 for `mlp2x_gelu`, 1 for `linear`.
    pub fn projector_depth(&self) -> Option<usize> {
        match self.mm_projector_type.as_str() {
            "linear" => Some(1),
            other => {
                let depth = other.strip_prefix("mlp")?.strip_suffix("x_gelu")?.parse().ok()?;
                (1..=16).contains(&depth).then_some(depth)
            }
        }
    }
}

#[cfg(test)]
mod tests;
