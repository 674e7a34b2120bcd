//! The SigLIP 2 vision tower as Vidi uses it: the output of the last layer but one (MODEL.md 3).

use candle_core::{D, DType, Device, Module, Result, Tensor};
use candle_nn::Linear;
use common::checkpoint::{CheckpointError, Weights};
use common::model::{ModelConfig, VisionConfig};

/// Colours of a pixel.
const CHANNELS: usize = 3;

fn linear(input: usize, output: usize, w: &Weights) -> std::result::Result<Linear, CheckpointError> {
    Ok(Linear::new(w.get("weight", &[output, input])?, Some(w.get("bias", &[output])?)))
}

/// Layer norm with statistics in f32 and one rounding at the end (MODEL.md 9).
struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    fn new(width: usize, eps: f64, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        Ok(LayerNorm { weight: w.get("weight", &[width])?, bias: w.get("bias", &[width])?, eps })
    }

    /// candle-nn's takes the variance as E[x^2] - E[x]^2, which loses digits where the mean is large.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        centred
            .broadcast_div(&(variance + self.eps)?.sqrt()?)?
            .broadcast_mul(&self.weight.to_dtype(DType::F32)?)?
            .broadcast_add(&self.bias.to_dtype(DType::F32)?)?
            .to_dtype(x.dtype())
    }
}

/// Pixels to patch embeddings with their positions.
struct Embeddings {
    patch_weight: Tensor,       // [C, 3, 14, 14]
    patch_bias: Tensor,         // [C]
    position_embedding: Tensor, // [729, C]
    patch: usize,
    side: usize,
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
            side,
        })
    }

    /// A convolution whose stride is its kernel is one product per patch. The last 6 pixels of each side are in none.
    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let (n, patch, side) = (pixels.dim(0)?, self.patch, self.side);
        let patches = pixels
            .narrow(2, 0, side * patch)?
            .narrow(3, 0, side * patch)? // [n, 3, 378, 378]
            .contiguous()?
            .reshape((n, CHANNELS, side, patch, side, patch))?
            .permute((0, 2, 4, 1, 3, 5))? // [n, 27, 27, 3, 14, 14]
            .reshape((n * side * side, CHANNELS * patch * patch))?; // [n*729, 588]
        patches
            .matmul(&self.patch_weight.flatten_from(1)?.t()?)? // [n*729, C]
            .broadcast_add(&self.patch_bias)?
            .reshape((n, side * side, ()))? // [n, 729, C]
            .broadcast_add(&self.position_embedding)
    }
}

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    heads: usize,
}

impl Attention {
    fn new(c: &VisionConfig, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        let square = |name: &str| linear(c.hidden_size, c.hidden_size, &w.pp(name));
        Ok(Attention {
            q_proj: square("q_proj")?,
            k_proj: square("k_proj")?,
            v_proj: square("v_proj")?,
            out_proj: square("out_proj")?,
            heads: c.num_attention_heads,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (n, patches, width) = x.dims3()?;
        let head = width / self.heads;
        let split = |y: Tensor| {
            y.reshape((n, patches, self.heads, head))?.transpose(1, 2)?.contiguous() // [n, heads, 729, 72]
        };
        let q = split(self.q_proj.forward(x)?)?;
        let k = split(self.k_proj.forward(x)?)?;
        let v = split(self.v_proj.forward(x)?)?;
        // One frame at a time: scores of a whole batch would be its largest tensor by far.
        let mixed = (0..n)
            .map(|i| attend(&q.get(i)?, &k.get(i)?, &v.get(i)?, (head as f64).powf(-0.5)))
            .collect::<Result<Vec<_>>>()?;
        let mixed = Tensor::stack(&mixed, 0)?; // [n, heads, 729, 72]
        self.out_proj.forward(&mixed.transpose(1, 2)?.reshape((n, patches, width))?)
    }
}

/// Softmax attention without a mask, scores and softmax in f32. All `[heads, patches, head width]`.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<Tensor> {
    let q = (q.to_dtype(DType::F32)? * scale)?;
    let scores = q.matmul(&k.to_dtype(DType::F32)?.t()?)?; // [heads, 729, 729]
    candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?.matmul(v) // [heads, 729, 72]
}

struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    fn new(c: &VisionConfig, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        Ok(Mlp {
            fc1: linear(c.hidden_size, c.intermediate_size, &w.pp("fc1"))?,
            fc2: linear(c.intermediate_size, c.hidden_size, &w.pp("fc2"))?,
        })
    }

    /// candle's `gelu` is the tanh one, evaluated in the tensor's type: f32 it is.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.fc1.forward(x)?; // [n, 729, 4304]
        self.fc2.forward(&h.to_dtype(DType::F32)?.gelu()?.to_dtype(x.dtype())?)
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

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = (x + self.self_attn.forward(&self.layer_norm1.forward(x)?)?)?;
        &x + self.mlp.forward(&self.layer_norm2.forward(&x)?)?
    }
}

/// The tower up to the selected hidden state. Layers after it, `post_layernorm` and `head` are not loaded.
pub struct SiglipEncoder {
    embeddings: Embeddings,
    layers: Vec<EncoderLayer>,
    width: usize,
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
            dtype: w.dtype(),
            device: w.device().clone(),
        })
    }

    /// Channels of a patch, C.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Where the tower computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Pixels `[n, 3, 384, 384]` to patch features `[n, 729, C]`. `observe` sees what every part leaves:
    /// `vision_embed`, `vision_layer0`, `vision_layer1`, ...
    ///
    /// # Errors
    /// The device's.
    pub fn forward(&self, pixels: &Tensor, observe: &mut dyn FnMut(&str, &Tensor)) -> Result<Tensor> {
        let mut x = self.embeddings.forward(&pixels.to_dtype(self.dtype)?)?; // [n, 729, C]
        observe("vision_embed", &x);
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x)?;
            observe(&format!("vision_layer{i}"), &x);
        }
        Ok(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &[usize]) -> Result<Tensor> {
        Tensor::randn(0f32, 1.0, shape, &Device::Cpu)
    }

    #[test]
    fn layer_norm_keeps_its_digits_where_the_mean_is_large() -> Result<()> {
        let norm = LayerNorm {
            weight: Tensor::new(&[1f32, 2.0, 3.0, 4.0], &Device::Cpu)?,
            bias: Tensor::new(&[0.5f32, 0.0, 0.0, -0.5], &Device::Cpu)?,
            eps: 1e-6,
        };
        let x = [1000.0f64, 1001.0, 1002.0, 1005.0];
        let y = norm.forward(&Tensor::new(&[x.map(|v| v as f32)], &Device::Cpu)?)?.to_vec2::<f32>()?;
        let deviation = (3.5f64 + 1e-6).sqrt();
        let want = [-2.0 / deviation + 0.5, -2.0 / deviation, 0.0, 12.0 / deviation - 0.5];
        for (got, want) in y[0].iter().zip(want) {
            assert!((f64::from(*got) - want).abs() < 2e-6, "{y:?} {want}");
        }
        Ok(())
    }

    #[test]
    fn layer_norm_adds_its_epsilon_to_the_variance() -> Result<()> {
        let norm = LayerNorm {
            weight: Tensor::ones(2, DType::F32, &Device::Cpu)?,
            bias: Tensor::zeros(2, DType::F32, &Device::Cpu)?,
            eps: 1e-6,
        };
        let y = norm.forward(&Tensor::new(&[[0.002f32, -0.002]], &Device::Cpu)?)?.to_vec2::<f32>()?;
        let want = 0.002 / (4e-6f64 + 1e-6).sqrt();
        assert!((f64::from(y[0][0]) - want).abs() < 1e-6, "{y:?} {want}");
        Ok(())
    }

    #[test]
    fn a_patch_is_the_dot_product_of_its_pixels_with_each_filter() -> Result<()> {
        let embeddings = Embeddings {
            patch_weight: random(&[5, 3, 14, 14])?,
            patch_bias: random(&[5])?,
            position_embedding: random(&[729, 5])?,
            patch: 14,
            side: 27,
        };
        let pixels = random(&[2, 3, 384, 384])?;
        let (frame, row, column) = (1, 20, 26);
        let patch = pixels.get(frame)?.narrow(1, row * 14, 14)?.narrow(2, column * 14, 14)?.contiguous()?;
        let want = (embeddings.patch_weight.broadcast_mul(&patch)?.flatten_from(1)?.sum(1)?
            + &embeddings.patch_bias
            + embeddings.position_embedding.get(row * 27 + column)?)?;
        let got = embeddings.forward(&pixels)?.get(frame)?.get(row * 27 + column)?;
        let off = (got - want)?.abs()?.max(0)?.to_scalar::<f32>()?;
        assert!(off < 1e-4, "{off}");
        Ok(())
    }

    #[test]
    fn attention_mixes_values_by_the_softmax_of_scaled_scores() -> Result<()> {
        let q = Tensor::new(&[[[1f32, 0.0], [0.0, 2.0]]], &Device::Cpu)?;
        let k = Tensor::new(&[[[1f32, 1.0], [3.0, -1.0]]], &Device::Cpu)?;
        let v = Tensor::new(&[[[10f32, 0.0], [0.0, 1.0]]], &Device::Cpu)?;
        let y = attend(&q, &k, &v, 0.5)?.get(0)?.to_vec2::<f32>()?;
        // Scores (0.5, 1.5) and (1, -1).
        let first = 1.0 / (1.0 + 1f64.exp());
        let second = 1.0 / (1.0 + (-2f64).exp());
        for (row, share) in y.iter().zip([first, second]) {
            assert!((f64::from(row[0]) - 10.0 * share).abs() < 1e-5, "{y:?}");
            assert!((f64::from(row[1]) - (1.0 - share)).abs() < 1e-6, "{y:?}");
        }
        Ok(())
    }

    #[test]
    fn the_feed_forward_part_uses_the_tanh_gelu() -> Result<()> {
        let one = || Tensor::new(&[[1f32]], &Device::Cpu);
        let mlp = Mlp { fc1: Linear::new(one()?, None), fc2: Linear::new(one()?, None) };
        let y = mlp.forward(&Tensor::new(&[[-2f32]], &Device::Cpu)?)?.to_vec2::<f32>()?[0][0];
        // The exact GELU gives -0.045500.
        assert!((y + 0.045_402_3).abs() < 1e-6, "{y}");
        Ok(())
    }
}
