//! The SigLIP 2 vision tower as Vidi uses it: the output of the last layer but one (MODEL.md 3).

use candle_core::{DType, Device, Result, Tensor};
use compute::kernels;
use config::MediaProducts;
use model::checkpoint::{CheckpointError, Weights};
use model::config_json::{ModelConfig, VisionConfig};
use model::layers::{EncoderLayer, FeedForward, Gelu, LayerNormWeights, SelfAttention, encode};

/// Colours of a pixel.
const CHANNELS: usize = 3;

/// Pixels to patch embeddings with their positions.
struct Embeddings {
    patch_weight: Tensor,       // [C, 3, 14, 14]
    patch_bias: Tensor,         // [C]
    position_embedding: Tensor, // [729, C]
    patch: usize,
}

impl Embeddings {
    fn new(c: &VisionConfig, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        let (width, patch, side) = (c.hidden_size, c.patch_size, c.side());
        let patch_embedding = w.pp("patch_embedding");
        Ok(Embeddings {
            patch_weight: patch_embedding.get("weight", &[width, CHANNELS, patch, patch])?,
            patch_bias: patch_embedding.get("bias", &[width])?,
            position_embedding: w.pp("position_embedding").get("weight", &[side * side, width])?,
            patch,
        })
    }

    /// Frames `[n, 384, 384, 3]` u8 to rows `[n*729, C]`. A convolution whose stride is its kernel is one matmul row per
    /// patch; the last 6 pixels of each side are in none.
    fn forward(&self, frames: &Tensor) -> Result<Tensor> {
        let patches = kernels::patchify(frames, self.patch, self.patch_weight.dtype())?; // [n*729, 588]
        let x = patches.matmul(&self.patch_weight.flatten_from(1)?.t()?)?; // [n*729, C]
        kernels::add_positions(&x, Some(&self.patch_bias), &self.position_embedding)?;
        Ok(x)
    }
}

fn encoder_layer(
    c: &VisionConfig,
    w: &Weights,
    products: MediaProducts,
) -> std::result::Result<EncoderLayer, CheckpointError> {
    let (width, heads, patches) = (c.hidden_size, c.num_attention_heads, c.side() * c.side());
    Ok(EncoderLayer {
        attention_norm: LayerNormWeights::new(width, c.layer_norm_eps, &w.pp("layer_norm1"))?,
        attention: SelfAttention::new(width, heads, patches, true, &w.pp("self_attn"), products)?,
        feed_forward_norm: LayerNormWeights::new(width, c.layer_norm_eps, &w.pp("layer_norm2"))?,
        feed_forward: FeedForward::new(width, c.intermediate_size, Gelu::Tanh, &w.pp("mlp"), products)?,
    })
}

/// The tower up to the selected hidden state. Layers after it, `post_layernorm` and `head` are not loaded.
pub struct SiglipEncoder {
    embeddings: Embeddings,
    layers: Vec<EncoderLayer>,
    width: usize,
    patches: usize,
    dtype: DType,
    device: Device,
}

impl SiglipEncoder {
    /// Loads `model.mm_vis.vision_model` from weights at the checkpoint's root; its layers multiply as `products` says.
    ///
    /// # Errors
    /// The tensor that is missing or misshapen.
    pub fn new(
        config: &ModelConfig,
        weights: &Weights,
        products: MediaProducts,
    ) -> std::result::Result<Self, CheckpointError> {
        let w = weights.pp("model.mm_vis.vision_model");
        let c = &config.vision;
        let layer = |i: usize| encoder_layer(c, &w.pp("encoder.layers").pp(i), products);
        Ok(SiglipEncoder {
            embeddings: Embeddings::new(c, &w.pp("embeddings"))?,
            layers: (0..config.vision_layers()).map(layer).collect::<std::result::Result<_, _>>()?,
            width: c.hidden_size,
            patches: c.side() * c.side(),
            dtype: w.dtype(),
            device: w.device().clone(),
        })
    }

    /// The type that it computes in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the tower computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Frames `[n, 384, 384, 3]` u8 to patch features `[n, 729, C]`. `observe` sees what every part leaves,
    /// `vision_embed`, `vision_layer0`, `vision_layer1`, ..., each `[n, 729, C]`: look at once, the next part overwrites it.
    ///
    /// # Errors
    /// The device's.
    pub fn forward(&self, frames: &Tensor, observe: &mut dyn FnMut(&str, &Tensor)) -> Result<Tensor> {
        let x = self.embeddings.forward(frames)?; // [n*729, C]
        let seen = x.reshape((frames.dim(0)?, self.patches, self.width))?; // [n, 729, C], the same memory
        observe("vision_embed", &seen);
        encode(&self.layers, &x, None, &mut |i| observe(&format!("vision_layer{i}"), &seen))?;
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_is_the_dot_product_of_its_pixels_with_each_filter() -> Result<()> {
        let draws = compute::random::Draws::default();
        let embeddings = Embeddings {
            patch_weight: draws.normal((5, 3, 14, 14))?,
            patch_bias: draws.normal(5)?,
            position_embedding: draws.normal((729, 5))?,
            patch: 14,
        };
        let frames = draws.bytes((2, 384, 384, 3))?;
        let bytes = frames.flatten_all()?.to_vec1::<u8>()?;
        let pixels = crate::pixels::pixel_values(&bytes, &Device::Cpu)?; // [2, 3, 384, 384]
        let (frame, row, column) = (1, 20, 26);
        let patch = pixels.get(frame)?.narrow(1, row * 14, 14)?.narrow(2, column * 14, 14)?.contiguous()?;
        let want = (embeddings.patch_weight.broadcast_mul(&patch)?.flatten_from(1)?.sum(1)?
            + &embeddings.patch_bias
            + embeddings.position_embedding.get(row * 27 + column)?)?;
        let got = embeddings.forward(&frames)?.get(frame * 729 + row * 27 + column)?;
        let off = (got - want)?.abs()?.max(0)?.to_scalar::<f32>()?;
        // 588 products that sum to about 14, in another order: their roundings, 6e-8 of that each, walk to 2e-5.
        assert!(off < 1e-4, "{off}");
        Ok(())
    }
}
