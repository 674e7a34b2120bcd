//! Geometry of the two encoders, which the real `config.json` leaves to its defaults.

use serde::{Deserialize, Serialize};

/// Geometry of the vision encoder: SigLIP 2 so400m/14-384 unless config.json says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VisionConfig {
    /// Width V.
    pub hidden_size: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Layers in the checkpoint; the selected hidden state decides how many run.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Picture side in pixels.
    pub image_size: usize,
    /// Patch side in pixels.
    pub patch_size: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        VisionConfig {
            hidden_size: 1152,
            intermediate_size: 4304,
            num_hidden_layers: 27,
            num_attention_heads: 16,
            image_size: 384,
            patch_size: 14,
            layer_norm_eps: 1e-6,
        }
    }
}

impl VisionConfig {
    /// Patches per side: 27.
    pub fn side(&self) -> usize {
        self.image_size / self.patch_size
    }
}

/// Geometry of the audio encoder: Whisper large-v3's unless config.json says otherwise. Its layer norms use 1e-5.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AudioConfig {
    /// Width A.
    pub d_model: usize,
    /// Layers.
    pub encoder_layers: usize,
    /// Attention heads.
    pub encoder_attention_heads: usize,
    /// Width of the feed-forward part.
    pub encoder_ffn_dim: usize,
    /// Mel filters.
    pub num_mel_bins: usize,
    /// Rows of one window.
    pub max_source_positions: usize,
}

impl Default for AudioConfig {
    fn default() -> Self {
        AudioConfig {
            d_model: 1280,
            encoder_layers: 32,
            encoder_attention_heads: 20,
            encoder_ffn_dim: 5120,
            num_mel_bins: 128,
            max_source_positions: 1500,
        }
    }
}
