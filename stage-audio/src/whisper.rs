//! The Whisper encoder (MODEL.md 5).

use candle_core::{DType, Device, Result, Tensor};
use compute::kernels;
use config::MediaProducts;
use model::checkpoint::{CheckpointError, Weights};
use model::config_json::{AudioConfig, ModelConfig};
use model::layers::{EncoderLayer, FeedForward, Gelu, LayerNormWeights, SelfAttention, encode_then};

use crate::conv::Conv1d;

/// Epsilon of every layer norm; not in config.json.
const LAYER_NORM_EPS: f64 = 1e-5;
/// Where activations are cut off in half precision, as transformers does it: the largest f16 less 1000.
const F16_LIMIT: f32 = 64_504.0;

fn encoder_layer(
    c: &AudioConfig,
    w: &Weights,
    products: MediaProducts,
) -> std::result::Result<EncoderLayer, CheckpointError> {
    let (width, heads, rows) = (c.d_model, c.encoder_attention_heads, c.max_source_positions);
    Ok(EncoderLayer {
        attention_norm: LayerNormWeights::new(width, LAYER_NORM_EPS, &w.pp("self_attn_layer_norm"))?,
        attention: SelfAttention::new(width, heads, rows, false, &w.pp("self_attn"), products)?,
        feed_forward_norm: LayerNormWeights::new(width, LAYER_NORM_EPS, &w.pp("final_layer_norm"))?,
        feed_forward: FeedForward::new(width, c.encoder_ffn_dim, Gelu::Exact, w, products)?,
    })
}

/// The encoder, from mel features to normalised states.
pub struct WhisperEncoder {
    conv1: Conv1d,
    conv2: Conv1d,
    embed_positions: Tensor, // [1500, C]
    layers: Vec<EncoderLayer>,
    layer_norm: LayerNormWeights,
    width: usize,
    dtype: DType,
    device: Device,
}

impl WhisperEncoder {
    /// Loads `model.mm_aud.encoder` from weights at the checkpoint's root; its layers multiply as `products` says.
    ///
    /// # Errors
    /// The tensor that is missing or misshapen.
    pub fn new(
        config: &ModelConfig,
        weights: &Weights,
        products: MediaProducts,
    ) -> std::result::Result<Self, CheckpointError> {
        let w = weights.pp("model.mm_aud.encoder");
        let c = &config.audio;
        let layer = |i: usize| encoder_layer(c, &w.pp("layers").pp(i), products);
        Ok(WhisperEncoder {
            conv1: Conv1d::load(c.num_mel_bins, c.d_model, &w.pp("conv1"))?,
            conv2: Conv1d::load(c.d_model, c.d_model, &w.pp("conv2"))?,
            embed_positions: w.pp("embed_positions").get("weight", &[c.max_source_positions, c.d_model])?,
            layers: (0..c.encoder_layers).map(layer).collect::<std::result::Result<_, _>>()?,
            layer_norm: LayerNormWeights::new(c.d_model, LAYER_NORM_EPS, &w.pp("layer_norm"))?,
            width: c.d_model,
            dtype: w.dtype(),
            device: w.device().clone(),
        })
    }

    /// Channels of a state, C.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Where the encoder computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The type that it computes in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Mel features `[W, mels, 3000]` to states `[W, 1500, C]`. `observe` sees what every part leaves, `audio_embed`,
    /// `audio_layer0`, `audio_layer1`, ..., each `[W, 1500, C]`: look at once, the next part overwrites it.
    ///
    /// # Errors
    /// The device's.
    pub fn forward(&self, mel: &Tensor, observe: &mut dyn FnMut(&str, &Tensor)) -> Result<Tensor> {
        let mel = mel.to_dtype(self.dtype)?.transpose(1, 2)?.contiguous()?; // [W, 3000, mels]
        let seen = self.conv2.halve(&self.conv1.forward(&mel)?)?; // [W, 1500, C]
        let x = seen.flatten_to(1)?; // [W*1500, C], the same memory
        kernels::add_positions(&x, None, &self.embed_positions)?;
        observe("audio_embed", &seen);
        let limit = (self.dtype == DType::F16).then_some(F16_LIMIT);
        let mut after = |i| observe(&format!("audio_layer{i}"), &seen);
        encode_then(&self.layers, &x, limit, &self.layer_norm, &mut after)?.reshape(seen.shape())
    }
}
