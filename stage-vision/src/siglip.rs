//! The SigLIP 2 vision tower as Vidi uses it: the output of the last layer but one (MODEL.md 3).

use candle_core::{DType, Device, Result, Tensor};
use common::checkpoint::{CheckpointError, Weights};
use common::kernels;
use common::layers::{LayerNorm, Linear};
use common::model::{ModelConfig, VisionConfig};

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

    /// Frames `[n, 384, 384, 3]` u8 to rows `[n*729, C]`. A convolution whose stride is its kernel is one product per
    /// patch; the last 6 pixels of each side are in none.
    fn forward(&self, frames: &Tensor) -> Result<Tensor> {
        let patches = kernels::patchify(frames, self.patch, self.patch_weight.dtype())?; // [n*729, 588]
        let x = patches.matmul(&self.patch_weight.flatten_from(1)?.t()?)?; // [n*729, C]
        kernels::add_positions(&x, Some(&self.patch_bias), &self.position_embedding)?;
        Ok(x)
    }
}

struct Attention {
    qkv_weight: Tensor, // [3C, C]
    qkv_bias: Tensor,   // [3C]
    out_proj: Linear,
    heads: usize,
    patches: usize,
}

impl Attention {
    fn new(c: &VisionConfig, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        let width = c.hidden_size;
        let part = |part: &'static str| (part, width);
        Ok(Attention {
            qkv_weight: w.stack(&["q_proj.weight", "k_proj.weight", "v_proj.weight"].map(part), width)?,
            qkv_bias: w.concat(&["q_proj.bias", "k_proj.bias", "v_proj.bias"].map(|b| (Some(b), width)))?,
            out_proj: Linear::new(width, width, &w.pp("out_proj"))?,
            heads: c.num_attention_heads,
            patches: c.side() * c.side(),
        })
    }

    /// Rows `[n*729, C]` to the product of `out_proj`, `[n*729, C]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let qkv = x.matmul(&self.qkv_weight.t()?)?; // [n*729, 3C]
        kernels::bias_add(&qkv, &self.qkv_bias)?;
        let qkv = qkv.reshape((rows / self.patches, self.patches, 3 * width))?;
        let scale = ((width / self.heads) as f64).powf(-0.5);
        let mixed = kernels::attention(&qkv, self.heads, scale as f32)?; // [n, 729, C]
        self.out_proj.product(&mixed.reshape((rows, width))?)
    }
}

struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    fn new(c: &VisionConfig, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        Ok(Mlp {
            fc1: Linear::new(c.hidden_size, c.intermediate_size, &w.pp("fc1"))?,
            fc2: Linear::new(c.intermediate_size, c.hidden_size, &w.pp("fc2"))?,
        })
    }

    /// Rows to the product of `fc2`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.fc1.product(x)?; // [n*729, 4304]
        kernels::bias_gelu_tanh(&h, &self.fc1.bias)?;
        self.fc2.product(&h)
    }
}

struct EncoderLayer {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
}

impl EncoderLayer {
    fn new(c: &VisionConfig, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        Ok(EncoderLayer {
            layer_norm1: LayerNorm::new(c.hidden_size, c.layer_norm_eps, &w.pp("layer_norm1"))?,
            self_attn: Attention::new(c, &w.pp("self_attn"))?,
            layer_norm2: LayerNorm::new(c.hidden_size, c.layer_norm_eps, &w.pp("layer_norm2"))?,
            mlp: Mlp::new(c, &w.pp("mlp"))?,
        })
    }

    /// Moves the stream `x` `[n*729, C]` on by this layer, in place.
    fn forward(&self, x: &Tensor) -> Result<()> {
        let attended = self.self_attn.forward(&self.layer_norm1.kernel().forward(x)?)?;
        let normed = self.layer_norm2.kernel().after_adding(x, &attended, Some(&self.self_attn.out_proj.bias), None)?;
        kernels::residual_add(x, &self.mlp.forward(&normed)?, Some(&self.mlp.fc2.bias), None)
    }
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
    /// Loads `model.mm_vis.vision_model` from weights at the checkpoint's root.
    ///
    /// # Errors
    /// The tensor that is missing or misshapen.
    pub fn new(config: &ModelConfig, weights: &Weights) -> std::result::Result<Self, CheckpointError> {
        let w = weights.pp("model.mm_vis.vision_model");
        let c = &config.vision;
        let layer = |i: usize| EncoderLayer::new(c, &w.pp("encoder.layers").pp(i));
        Ok(SiglipEncoder {
            embeddings: Embeddings::new(c, &w.pp("embeddings"))?,
            layers: (0..config.vision_layers()).map(layer).collect::<std::result::Result<_, _>>()?,
            width: c.hidden_size,
            patches: c.side() * c.side(),
            dtype: w.dtype(),
            device: w.device().clone(),
        })
    }

    /// Channels of a patch, C.
    pub fn width(&self) -> usize {
        self.width
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
        for (i, layer) in self.layers.iter().enumerate() {
            layer.forward(&x)?;
            observe(&format!("vision_layer{i}"), &seen);
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_is_the_dot_product_of_its_pixels_with_each_filter() -> Result<()> {
        let draws = common::random::Draws::default();
        let embeddings = Embeddings {
            patch_weight: draws.normal((5, 3, 14, 14))?,
            patch_bias: draws.normal(5)?,
            position_embedding: draws.normal((729, 5))?,
            patch: 14,
        };
        let frames: Vec<u8> = (0..2 * 384 * 384 * 3u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let pixels = crate::pixels::pixel_values(&frames, &Device::Cpu)?; // [2, 3, 384, 384]
        let frames = Tensor::from_vec(frames, (2, 384, 384, 3), &Device::Cpu)?;
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

    #[test]
    fn the_feed_forward_part_uses_the_tanh_gelu_between_its_products() -> Result<()> {
        let linear = |weight: f32, bias: f32| -> Result<Linear> {
            Ok(Linear { weight: Tensor::new(&[[weight]], &Device::Cpu)?, bias: Tensor::new(&[bias], &Device::Cpu)? })
        };
        let mlp = Mlp { fc1: linear(1.0, -1.0)?, fc2: linear(3.0, 100.0)? };
        let y = mlp.forward(&Tensor::new(&[[-1f32]], &Device::Cpu)?)?.to_vec2::<f32>()?[0][0];
        // gelu(-1 - 1) = -0.045402; the exact GELU gives -0.045500. The second bias comes later.
        assert!((y + 3.0 * 0.045_402_3).abs() < 1e-6, "{y}");
        Ok(())
    }
}
