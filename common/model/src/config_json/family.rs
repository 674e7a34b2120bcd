//! The two models: which one a `config.json` is of, and what differs between their computations, as data.

use std::fmt;
use std::str::FromStr;

use compute::kernels::Activation;
use protocol::plan::FrameGrid;
use serde::{Deserialize, Serialize};

use super::ModelConfig;
use super::towers::{AudioConfig, VisionConfig};

/// Weight of the convolution of [`ImagePool::Convolution`], `[C, C, k, k]`.
pub const POOL_WEIGHT: &str = "model.mm_rand_img_pool.conv.weight";

/// Model that a checkpoint is of, by the `model_type` of its `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// Vidi 1.5 9B, on Gemma 2 (MODEL.md).
    #[serde(rename = "dattn_gemma2")]
    Gemma2,
    /// Vidi 7B, on Mistral (MODEL-7B.md).
    #[serde(rename = "dattn_mistral")]
    Mistral,
}

impl Family {
    /// All of them; the first is that of a `config.json` without `model_type`.
    pub const ALL: [Family; 2] = [Family::Gemma2, Family::Mistral];

    /// The value of `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Gemma2 => "dattn_gemma2",
            Family::Mistral => "dattn_mistral",
        }
    }

    /// The family of a `model_type`.
    pub fn of_model_type(model_type: &str) -> Option<Family> {
        Family::ALL.into_iter().find(|family| family.model_type() == model_type)
    }

    /// Tokens that end an answer where `llm.end_tokens` names none: `<end_of_turn>`, and `</s>`.
    pub fn end_tokens(self) -> &'static [u32] {
        match self {
            Family::Gemma2 => &[107],
            Family::Mistral => &[2],
        }
    }

    /// Its name on command lines: `9b` or `7b`.
    pub fn as_str(self) -> &'static str {
        match self {
            Family::Gemma2 => "9b",
            Family::Mistral => "7b",
        }
    }

    /// The released model's name.
    pub fn name(self) -> &'static str {
        match self {
            Family::Gemma2 => "Vidi 1.5 9B",
            Family::Mistral => "Vidi 7B",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Family {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Family::ALL.map(Family::as_str).join(" or ");
        Family::ALL.into_iter().find(|f| f.as_str() == text).ok_or_else(|| format!("no family {text:?}, only {known}"))
    }
}

/// Way from the patch grid of a frame, `side x side` features of width C, to the cells that the projector takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePool {
    /// Padding to an even side and 2 x 2 space to depth: cells of width 4C, of which a grid that fits the frame budget is
    /// taken (MODEL.md 4).
    Merge,
    /// Convolution without padding, then a bilinear resize with aligned corners: always `side x side` cells of width C
    /// (MODEL-7B.md, "Image adapter").
    Convolution {
        /// Side of the kernel, k; the convolution's output has `grid side + 1 - k` cells a side.
        kernel: usize,
        /// Cells a side after the resize, s.
        side: usize,
    },
}

impl ImagePool {
    /// Rule that the grids of frames follow.
    pub fn grid(self) -> FrameGrid {
        match self {
            ImagePool::Merge => FrameGrid::Budget,
            ImagePool::Convolution { side, .. } => FrameGrid::Fixed(side as u32),
        }
    }
}

impl ModelConfig {
    /// The geometry of a released model; for Vidi 7B with the pool size 5 and the time interval 10,000, which its
    /// `config.json` has to state.
    pub fn of(family: Family) -> Self {
        match family {
            Family::Gemma2 => gemma2(),
            Family::Mistral => mistral(),
        }
    }

    /// What is added to the weight of the language model's norms to have their gain: Gemma's are stored as `gain - 1`.
    pub fn norm_offset(&self) -> f64 {
        match self.family {
            Family::Gemma2 => 1.0,
            Family::Mistral => 0.0,
        }
    }

    /// Activation of the feed-forward part.
    pub fn activation(&self) -> Activation {
        match self.family {
            Family::Gemma2 => Activation::GeluTanh,
            Family::Mistral => Activation::Silu,
        }
    }

    /// Whether attention's output and the feed-forward part's pass a norm before they are added to the residual. Then a
    /// layer has four norms, and `post_attention_layernorm` is the one after attention; otherwise it has two, and the norm
    /// of that name is the one before the feed-forward part.
    pub fn post_norms(&self) -> bool {
        self.family == Family::Gemma2
    }

    /// Factor of the embeddings, sqrt(D); none where they enter as they are.
    pub fn embedding_scale(&self) -> Option<f64> {
        (self.family == Family::Gemma2).then(|| (self.hidden_size as f64).sqrt())
    }

    /// Keys that a text query of layer `layer` sees, itself included; none on a layer with full attention. Gemma's even
    /// layers are the sliding ones; Mistral's are all alike.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.family == Family::Mistral || layer.is_multiple_of(2))
    }

    /// Whether the output head is a matrix of its own, `lm_head.weight`; `stored` says whether the checkpoint has one. A Gemma
    /// that has none has the embedding, whatever its configuration says (MODEL.md 1); of a Mistral it would be missing.
    pub fn untied(&self, stored: bool) -> bool {
        !self.tie_word_embeddings && (stored || self.family == Family::Mistral)
    }

    /// Way from a frame's patch grid to the cells that the projector takes.
    pub fn image_pool(&self) -> ImagePool {
        let side = self.mm_image_pool_size as usize;
        match self.family {
            Family::Gemma2 => ImagePool::Merge,
            Family::Mistral => ImagePool::Convolution { kernel: self.vision.side().div_ceil(side.max(1)), side },
        }
    }

    /// Refuses a checkpoint whose convolution has another kernel than `mm_image_pool_size` asks for; `stored` is the shape of
    /// [`POOL_WEIGHT`].
    ///
    /// # Errors
    /// Both kernels, and what to do.
    pub fn check_pool(&self, stored: &[usize]) -> Result<(), String> {
        let ImagePool::Convolution { kernel, side } = self.image_pool() else { return Ok(()) };
        match stored {
            // Other widths are the loader's to refuse.
            &[_, _, height, width] if [height, width] != [kernel; 2] => {
                let grid = self.vision.side();
                Err(format!(
                    "{POOL_WEIGHT} has a kernel of {height} x {width}, and mm_image_pool_size = {side} needs \
                     ceil({grid} / {side}) = {kernel}: take config.json and weights from one checkpoint"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Width of a cell that the image projector takes: 4C of a merge, C of a convolution.
    pub fn image_cell_width(&self) -> usize {
        match self.image_pool() {
            ImagePool::Merge => 4 * self.vision.hidden_size,
            ImagePool::Convolution { .. } => self.vision.hidden_size,
        }
    }

    /// Width of a row after the audio pool, which is what the audio projector takes: D, or the encoder's own A.
    pub fn audio_pool_width(&self) -> usize {
        match self.family {
            Family::Gemma2 => self.hidden_size,
            Family::Mistral => self.audio.d_model,
        }
    }
}

fn gemma2() -> ModelConfig {
    ModelConfig {
        family: Family::Gemma2,
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
        sliding_window: Some(4096),
        tie_word_embeddings: true,
        eos_token_id: vec![107],
        mm_vision_select_layer: -2,
        mm_time_interval: 10_000,
        mm_projector_type: "mlp2x_gelu".to_owned(),
        mm_image_pool_size: 2,
        mm_audio_pool_size: 5,
        vision: VisionConfig::default(),
        audio: AudioConfig::default(),
    }
}

fn mistral() -> ModelConfig {
    ModelConfig {
        family: Family::Mistral,
        hidden_size: 4096,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        head_dim: 128,
        rms_norm_eps: 1e-5,
        vocab_size: 32_768,
        rope_theta: 1e6,
        attn_logit_softcapping: None,
        final_logit_softcapping: None,
        query_pre_attn_scalar: 128.0,
        sliding_window: None,
        tie_word_embeddings: false,
        eos_token_id: vec![2],
        mm_image_pool_size: 5,
        ..gemma2()
    }
}
