//! The Whisper encoder (MODEL.md 5).

use candle_core::{D, DType, Device, Module, Result, Tensor};
use candle_nn::Linear;
use common::checkpoint::{CheckpointError, Weights};
use common::model::{AudioConfig, ModelConfig};

/// Epsilon of every layer norm; not in config.json.
const LAYER_NORM_EPS: f64 = 1e-5;
/// Taps of both convolutions.
const KERNEL: usize = 3;
/// Where activations are cut off in half precision, as transformers does it: the largest f16 less 1000.
const F16_LIMIT: f64 = 64_504.0;
/// Attention scores that exist at a time: 64 MiB of them.
pub(crate) const SCORES: usize = 1 << 24;

/// Layer norm with statistics in f32 and one rounding at the end (MODEL.md 9).
struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    fn new(width: usize, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        Ok(LayerNorm { weight: w.get("weight", &[width])?, bias: w.get("bias", &[width])? })
    }

    /// candle-nn's takes the variance as E[x^2] - E[x]^2, which loses digits where the mean is large.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = x.to_dtype(DType::F32)?;
        let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        centred
            .broadcast_div(&(variance + LAYER_NORM_EPS)?.sqrt()?)?
            .broadcast_mul(&self.weight.to_dtype(DType::F32)?)?
            .broadcast_add(&self.bias.to_dtype(DType::F32)?)?
            .to_dtype(x.dtype())
    }
}

/// Exact GELU. candle evaluates it in the tensor's type: f32 it is.
fn gelu(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)?.gelu_erf()?.to_dtype(x.dtype())
}

fn linear(input: usize, output: usize, w: &Weights) -> std::result::Result<Linear, CheckpointError> {
    Ok(Linear::new(w.get("weight", &[output, input])?, Some(w.get("bias", &[output])?)))
}

/// A convolution of three taps that keeps the length, or halves it with stride 2.
struct Conv1d {
    weight: Tensor, // [C, in, 3]
    bias: Tensor,   // [C]
    stride: usize,
}

impl Conv1d {
    fn new(input: usize, output: usize, stride: usize, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        Ok(Conv1d { weight: w.get("weight", &[output, input, KERNEL])?, bias: w.get("bias", &[output])?, stride })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.conv1d(&self.weight, KERNEL / 2, self.stride, 1, 1)?.broadcast_add(&self.bias.unsqueeze(1)?)
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
    fn new(c: &AudioConfig, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        let square = |name: &str| linear(c.d_model, c.d_model, &w.pp(name));
        Ok(Attention {
            q_proj: square("q_proj")?,
            k_proj: Linear::new(w.pp("k_proj").get("weight", &[c.d_model, c.d_model])?, None),
            v_proj: square("v_proj")?,
            out_proj: square("out_proj")?,
            heads: c.encoder_attention_heads,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (windows, rows, width) = x.dims3()?;
        let head = width / self.heads;
        let split = |y: Tensor| {
            y.reshape((windows, rows, self.heads, head))?.transpose(1, 2)?.contiguous() // [W, heads, 1500, 64]
        };
        let q = split(self.q_proj.forward(x)?)?;
        let k = split(self.k_proj.forward(x)?)?;
        let v = split(self.v_proj.forward(x)?)?;
        let mixed = (0..windows)
            .map(|i| attend(&q.get(i)?, &k.get(i)?, &v.get(i)?, SCORES / (self.heads * rows)))
            .collect::<Result<Vec<_>>>()?;
        let mixed = Tensor::stack(&mixed, 0)?; // [W, heads, 1500, 64]
        self.out_proj.forward(&mixed.transpose(1, 2)?.reshape((windows, rows, width))?)
    }
}

/// Softmax attention without a mask, scores and softmax in f32, `block` queries at a time. All
/// `[heads, rows, head width]`.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor, block: usize) -> Result<Tensor> {
    let (_, rows, head) = q.dims3()?;
    let q = (q.to_dtype(DType::F32)? * (head as f64).powf(-0.5))?;
    let k = k.to_dtype(DType::F32)?.t()?; // [heads, 64, rows]
    let block = block.clamp(1, rows);
    let mut mixed = Vec::new();
    for start in (0..rows).step_by(block) {
        let q = q.narrow(1, start, block.min(rows - start))?.contiguous()?;
        let scores = q.matmul(&k)?; // [heads, block, rows]
        mixed.push(candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(v.dtype())?.matmul(v)?);
    }
    Tensor::cat(&mixed, 1) // [heads, rows, 64]
}

struct EncoderLayer {
    self_attn_layer_norm: LayerNorm,
    self_attn: Attention,
    final_layer_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl EncoderLayer {
    fn new(c: &AudioConfig, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        Ok(EncoderLayer {
            self_attn_layer_norm: LayerNorm::new(c.d_model, &w.pp("self_attn_layer_norm"))?,
            self_attn: Attention::new(c, &w.pp("self_attn"))?,
            final_layer_norm: LayerNorm::new(c.d_model, &w.pp("final_layer_norm"))?,
            fc1: linear(c.d_model, c.encoder_ffn_dim, &w.pp("fc1"))?,
            fc2: linear(c.encoder_ffn_dim, c.d_model, &w.pp("fc2"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = (x + self.self_attn.forward(&self.self_attn_layer_norm.forward(x)?)?)?;
        let h = self.fc1.forward(&self.final_layer_norm.forward(&x)?)?; // [W, 1500, 5120]
        let x = (&x + self.fc2.forward(&gelu(&h)?)?)?;
        if x.dtype() == DType::F16 { x.clamp(-F16_LIMIT, F16_LIMIT) } else { Ok(x) }
    }
}

/// The encoder, from mel features to normalised states.
pub struct WhisperEncoder {
    conv1: Conv1d,
    conv2: Conv1d,
    embed_positions: Tensor, // [1500, C]
    layers: Vec<EncoderLayer>,
    layer_norm: LayerNorm,
    width: usize,
    dtype: DType,
    device: Device,
}

impl WhisperEncoder {
    /// Loads `model.mm_aud.encoder` from weights at the checkpoint's root.
    ///
    /// # Errors
    /// The tensor that is missing or misshapen.
    pub fn new(config: &ModelConfig, weights: &Weights) -> std::result::Result<Self, CheckpointError> {
        let w = weights.pp("model.mm_aud.encoder");
        let c = &config.audio;
        let layer = |i: usize| EncoderLayer::new(c, &w.pp("layers").pp(i));
        Ok(WhisperEncoder {
            conv1: Conv1d::new(c.num_mel_bins, c.d_model, 1, &w.pp("conv1"))?,
            conv2: Conv1d::new(c.d_model, c.d_model, 2, &w.pp("conv2"))?,
            embed_positions: w.pp("embed_positions").get("weight", &[c.max_source_positions, c.d_model])?,
            layers: (0..c.encoder_layers).map(layer).collect::<std::result::Result<_, _>>()?,
            layer_norm: LayerNorm::new(c.d_model, &w.pp("layer_norm"))?,
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

    /// Mel features `[W, mels, 3000]` to states `[W, 1500, C]`. `observe` sees what every part leaves:
    /// `audio_embed`, `audio_layer0`, `audio_layer1`, ...
    ///
    /// # Errors
    /// The device's.
    pub fn forward(&self, mel: &Tensor, observe: &mut dyn FnMut(&str, &Tensor)) -> Result<Tensor> {
        let x = gelu(&self.conv1.forward(&mel.to_dtype(self.dtype)?)?)?; // [W, C, 3000]
        let x = gelu(&self.conv2.forward(&x)?)?; // [W, C, 1500]
        let mut x = x.transpose(1, 2)?.contiguous()?.broadcast_add(&self.embed_positions)?; // [W, 1500, C]
        observe("audio_embed", &x);
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x)?;
            observe(&format!("audio_layer{i}"), &x);
        }
        self.layer_norm.forward(&x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &[usize]) -> Result<Tensor> {
        Tensor::randn(0f32, 1.0, shape, &Device::Cpu)
    }

    #[test]
    fn layer_norm_adds_its_epsilon_to_the_variance() -> Result<()> {
        let norm = LayerNorm {
            weight: Tensor::ones(2, DType::F32, &Device::Cpu)?,
            bias: Tensor::zeros(2, DType::F32, &Device::Cpu)?,
        };
        let y = norm.forward(&Tensor::new(&[[0.002f32, -0.002]], &Device::Cpu)?)?.to_vec2::<f32>()?;
        let want = 0.002 / (4e-6f64 + 1e-5).sqrt();
        assert!((f64::from(y[0][0]) - want).abs() < 1e-6, "{y:?} {want}");
        Ok(())
    }

    #[test]
    fn a_convolution_sees_the_neighbours_and_zeros_beyond_the_ends() -> Result<()> {
        for stride in [1, 2] {
            let conv = Conv1d { weight: random(&[3, 2, 3])?, bias: random(&[3])?, stride };
            let x = random(&[1, 2, 8])?;
            let y = conv.forward(&x)?.get(0)?.to_vec2::<f32>()?;
            let (w, b) = (conv.weight.to_vec3::<f32>()?, conv.bias.to_vec1::<f32>()?);
            let x = x.get(0)?.to_vec2::<f32>()?;
            assert_eq!(y[0].len(), 8 / stride);
            for (out, row) in y.iter().enumerate() {
                for (t, got) in row.iter().enumerate() {
                    let at = |c: usize, k: usize| (t * stride + k).checked_sub(1).and_then(|i| x[c].get(i));
                    let taps = (0..2).flat_map(|c| (0..3).map(move |k| (c, k)));
                    let want = b[out] + taps.map(|(c, k)| w[out][c][k] * at(c, k).unwrap_or(&0.0)).sum::<f32>();
                    assert!((got - want).abs() < 1e-5, "stride {stride}, channel {out}, {t}: {got} {want}");
                }
            }
        }
        Ok(())
    }

    #[test]
    fn attention_mixes_values_by_the_softmax_of_scaled_scores() -> Result<()> {
        let q = Tensor::new(&[[[1f32, 0., 0., 0.], [0., 2., 0., 0.]]], &Device::Cpu)?;
        let k = Tensor::new(&[[[1f32, 1., 0., 0.], [3., -1., 0., 0.]]], &Device::Cpu)?;
        let v = Tensor::new(&[[[10f32, 0., 0., 0.], [0., 1., 0., 0.]]], &Device::Cpu)?;
        let y = attend(&q, &k, &v, 2)?.get(0)?.to_vec2::<f32>()?;
        // Scores (0.5, 1.5) and (1, -1): scaled by 4^-1/2.
        let first = 1.0 / (1.0 + 1f64.exp());
        let second = 1.0 / (1.0 + (-2f64).exp());
        for (row, share) in y.iter().zip([first, second]) {
            assert!((f64::from(row[0]) - 10.0 * share).abs() < 1e-5, "{y:?}");
            assert!((f64::from(row[1]) - (1.0 - share)).abs() < 1e-6, "{y:?}");
        }
        Ok(())
    }

    #[test]
    fn attention_in_blocks_of_queries_is_attention() -> Result<()> {
        let (q, k, v) = (random(&[2, 150, 16])?, random(&[2, 150, 16])?, random(&[2, 150, 16])?);
        let whole = attend(&q, &k, &v, 150)?;
        for block in [0, 1, 64, 149] {
            let off = (attend(&q, &k, &v, block)? - &whole)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
            assert!(off < 1e-6, "blocks of {block}: {off}");
        }
        Ok(())
    }

    #[test]
    fn gelu_is_the_exact_one() -> Result<()> {
        let y = gelu(&Tensor::new(&[-2f32], &Device::Cpu)?)?.to_vec1::<f32>()?;
        // The tanh approximation gives -0.045402.
        assert!((y[0] + 0.045_500_264).abs() < 1e-6, "{y:?}");
        Ok(())
    }
}
