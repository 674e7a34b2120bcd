//! The checkpoint's `config.json`: geometry of the language model, the towers and the adapters (MODEL.md 1).

pub(crate) mod rope;
mod settings;
pub mod supported;
mod towers;

use serde::{Deserialize, Deserializer, Serialize};

pub use settings::Setting;
pub use towers::{AudioConfig, VisionConfig};

/// Geometry of the whole model. Absent keys have the values of Vidi 1.5 9B.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelConfig {
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
    /// Epsilon of the Gemma norms.
    pub rms_norm_eps: f64,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Soft cap of attention scores; none switches it off.
    pub attn_logit_softcapping: Option<f64>,
    /// Soft cap of the logits; none switches it off.
    pub final_logit_softcapping: Option<f64>,
    /// Scores are scaled by this to the power of -1/2.
    pub query_pre_attn_scalar: f64,
    /// Keys that a text query sees on even layers, itself included.
    pub sliding_window: usize,
    /// Whether the embedding is the output head; then a stray `lm_head.weight` is ignored.
    pub tie_word_embeddings: bool,
    /// Tokens that end an answer by the checkpoint's word; those of the configuration, `llm.end_tokens`, do.
    #[serde(deserialize_with = "one_or_many")]
    pub eos_token_id: Vec<u32>,
    /// Which hidden state of the vision tower counts: -2 is the output of the last layer but one.
    #[serde(deserialize_with = "default_if_null::<SelectLayer, _>")]
    pub mm_vision_select_layer: SelectLayer,
    /// Length to which time positions are stretched.
    #[serde(deserialize_with = "default_if_null::<TimeInterval, _>")]
    pub mm_time_interval: TimeInterval,
    /// `mlp<depth>x_gelu` or `linear`.
    #[serde(deserialize_with = "default_if_null::<Projector, _>")]
    pub mm_projector_type: Projector,
    /// Side of the space-to-depth merge; the wire format knows 2 only.
    #[serde(deserialize_with = "default_if_null::<ImagePool, _>")]
    pub mm_image_pool_size: ImagePool,
    /// Encoder rows per audio token; the wire format knows 5 only.
    #[serde(deserialize_with = "default_if_null::<AudioPool, _>")]
    pub mm_audio_pool_size: AudioPool,
    /// Geometry of the vision tower.
    #[serde(rename = "mm_vision_config", deserialize_with = "default_if_null")]
    pub vision: VisionConfig,
    /// Geometry of the audio tower.
    #[serde(rename = "mm_audio_config", deserialize_with = "default_if_null")]
    pub audio: AudioConfig,
}

macro_rules! defaulted {
    ($name:ident, $type:ty, $value:expr, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $type);
        impl Default for $name {
            fn default() -> Self {
                $name($value)
            }
        }
    };
}
defaulted!(SelectLayer, i64, -2, "Index into the tower's hidden states, from the end if negative.");
defaulted!(TimeInterval, u32, 10_000, "N of the fractional time positions.");
defaulted!(Projector, String, "mlp2x_gelu".to_owned(), "Architecture of the projectors.");
defaulted!(ImagePool, u64, 2, "Side of the space-to-depth merge.");
defaulted!(AudioPool, u64, 5, "Encoder rows per audio token.");

/// A key that is there but `null` means its default (MODEL.md 1, `mm_projector_type`).
fn default_if_null<'de, T, D>(d: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
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
        ModelConfig {
            hidden_size: 3584,
            num_hidden_layers: 42,
            intermediate_size: 14336,
            num_attention_heads: 16,
            num_key_value_heads: 8,
            head_dim: 256,
            rms_norm_eps: 1e-6,
            vocab_size: 256_000,
            rope_theta: 10_000.0,
            attn_logit_softcapping: Some(50.0),
            final_logit_softcapping: Some(30.0),
            query_pre_attn_scalar: 256.0,
            sliding_window: 4096,
            tie_word_embeddings: true,
            eos_token_id: vec![107],
            mm_vision_select_layer: SelectLayer::default(),
            mm_time_interval: TimeInterval::default(),
            mm_projector_type: Projector::default(),
            mm_image_pool_size: ImagePool::default(),
            mm_audio_pool_size: AudioPool::default(),
            vision: VisionConfig::default(),
            audio: AudioConfig::default(),
        }
    }
}

impl ModelConfig {
    /// Vision layers that run: `hidden_states[select_layer]` is the output of the last of them.
    pub fn vision_layers(&self) -> usize {
        let select = self.mm_vision_select_layer.0;
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
            ("sliding_window", self.sliding_window),
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
        need(self.mm_image_pool_size.0 == 2, "mm_image_pool_size must be 2")?;
        need(self.mm_audio_pool_size.0 == 5, "mm_audio_pool_size must be 5")?;
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

    /// What to tell whoever starts this model where it ends answers with tokens that `llm.end_tokens` does not name.
    pub fn end_tokens_warning(&self, end_tokens: &[u32]) -> Option<String> {
        let ids = &self.eos_token_id;
        ids.iter().any(|id| !end_tokens.contains(id)).then(|| {
            format!(
                "end tokens differ: the checkpoint's config.json has eos_token_id = {ids:?}, llm.end_tokens is \
                 {end_tokens:?}, which counts; if answers run on, --set 'llm.end_tokens={ids:?}'"
            )
        })
    }

    /// Linear layers of a projector, with GELU between them: 2 for `mlp2x_gelu`, 1 for `linear`.
    pub fn projector_depth(&self) -> Option<usize> {
        match self.mm_projector_type.0.as_str() {
            "linear" => Some(1),
            other => {
                let depth = other.strip_prefix("mlp")?.strip_suffix("x_gelu")?.parse().ok()?;
                (1..=16).contains(&depth).then_some(depth)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_token_that_the_configuration_does_not_name_is_told_with_both_values() {
        for (json, end_tokens, told) in [
            ("{}", &[107][..], None),
            (r#"{"eos_token_id": 107}"#, &[107], None),
            (r#"{"eos_token_id": 107}"#, &[1, 107], None),
            (r#"{"eos_token_id": null}"#, &[1], None),
            (r#"{"eos_token_id": 107}"#, &[1], Some(["eos_token_id = [107]", "llm.end_tokens is [1]"])),
            (r#"{"eos_token_id": [1, 107]}"#, &[107], Some(["eos_token_id = [1, 107]", "llm.end_tokens is [107]"])),
            ("{}", &[1, 2], Some(["eos_token_id = [107]", "llm.end_tokens is [1, 2]"])),
        ] {
            let config: ModelConfig = serde_json::from_str(json).unwrap();
            let warning = config.end_tokens_warning(end_tokens);
            match told {
                None => assert_eq!(warning, None, "{json}"),
                Some(parts) => {
                    assert!(parts.iter().all(|part| warning.as_ref().unwrap().contains(part)), "{warning:?}")
                }
            }
        }
        let wrong = serde_json::from_str::<ModelConfig>(r#"{"eos_token_id": "<eos>"}"#).unwrap_err();
        assert!(wrong.to_string().contains("eos_token_id is a token id"), "{wrong}");
    }
}
