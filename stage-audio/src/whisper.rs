//! The Whisper encoder (MODEL.md 5).

use candle_core::{D, DType, Device, Result, Tensor};
use compute::kernels;
use config::MediaProducts;
use model::checkpoint::{CheckpointError, Weights};
use model::config_json::{AudioConfig, ModelConfig};
use model::layers::{EncoderLayer, FeedForward, Gelu, LayerNormWeights, SelfAttention, encode_then};

/// Epsilon of every layer norm; not in config.json.
const LAYER_NORM_EPS: f64 = 1e-5;
/// Taps of both convolutions.
const KERNEL: usize = 3;
/// Where activations are cut off in half precision, as transformers does it: the largest f16 less 1000.
const F16_LIMIT: f32 = 64_504.0;

/// A convolution of three taps, padded by one on each side, and its GELU: a matmul over three neighbouring rows.
struct Conv1d {
    weight: Tensor, // [C, 3 * in], tap by tap
    bias: Tensor,   // [C]
}

impl Conv1d {
    fn new(input: usize, output: usize, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        let weight = w.get("weight", &[output, input, KERNEL])?;
        let by_tap = || weight.transpose(1, 2)?.contiguous()?.flatten_from(1);
        Ok(Conv1d { weight: by_tap().map_err(CheckpointError::from_device)?, bias: w.get("bias", &[output])? })
    }

    /// Rows `[W, n, in]` to `[W, n, C]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let n = x.dim(1)?;
        let before = x.narrow(1, 0, n - 1)?.pad_with_zeros(1, 1, 0)?;
        let after = x.narrow(1, 1, n - 1)?.pad_with_zeros(1, 0, 1)?;
        self.apply(&Tensor::cat(&[&before, x, &after], D::Minus1)?)
    }

    /// Rows `[W, n, in]` to `[W, n / 2, C]`: every second one, and its neighbours.
    fn halve(&self, x: &Tensor) -> Result<Tensor> {
        let (windows, n, width) = x.dims3()?;
        let pairs = x.reshape((windows, n / 2, 2 * width))?; // rows 2t and 2t + 1
        let before = pairs.narrow(2, width, width)?.narrow(1, 0, n / 2 - 1)?.pad_with_zeros(1, 1, 0)?; // 2t - 1
        self.apply(&Tensor::cat(&[&before, &pairs], D::Minus1)?)
    }

    fn apply(&self, taps: &Tensor) -> Result<Tensor> {
        let (windows, n, width) = taps.dims3()?;
        let y = taps.reshape((windows * n, width))?.matmul(&self.weight.t()?)?; // [W*n, C]
        kernels::bias_gelu_erf(&y, &self.bias)?;
        y.reshape((windows, n, ()))
    }
}

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
            conv1: Conv1d::new(c.num_mel_bins, c.d_model, &w.pp("conv1"))?,
            conv2: Conv1d::new(c.d_model, c.d_model, &w.pp("conv2"))?,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of both signs in [-2, 2], the same in every run.
    fn varied(shape: &[usize], step: f64) -> Result<Tensor> {
        let values = (1..=shape.iter().product()).map(|i: usize| 2.0 * (i as f64 * step).sin() as f32);
        Tensor::from_vec(values.collect(), shape, &Device::Cpu)
    }

    #[test]
    fn a_convolution_sees_the_neighbours_and_zeros_beyond_the_ends() -> Result<()> {
        let (weight, bias, x) = (varied(&[3, 2, 3], 1.7)?, varied(&[3], 0.9)?, varied(&[2, 8, 2], 2.3)?);
        let by_tap = weight.transpose(1, 2)?.contiguous()?.flatten_from(1)?;
        let conv = Conv1d { weight: by_tap, bias: bias.clone() };
        let exact = |x: f64| 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2));
        for (stride, y) in [(1, conv.forward(&x)?), (2, conv.halve(&x)?)] {
            assert_eq!(y.dims(), [2, 8 / stride, 3]);
            let (y, x) = (y.get(1)?.to_vec2::<f32>()?, x.get(1)?.to_vec2::<f32>()?);
            let (w, b) = (weight.to_vec3::<f32>()?, bias.to_vec1::<f32>()?);
            for (t, row) in y.iter().enumerate() {
                for (out, &got) in row.iter().enumerate() {
                    let at = |c: usize, k: usize| {
                        (t * stride + k).checked_sub(1).and_then(|i| x.get(i)).map_or(0.0, |r| f64::from(r[c]))
                    };
                    let taps = (0..2).flat_map(|c| (0..3).map(move |k| (c, k)));
                    let sum = f64::from(b[out]) + taps.map(|(c, k)| f64::from(w[out][c][k]) * at(c, k)).sum::<f64>();
                    let want = exact(sum);
                    let off = (f64::from(got) - want).abs();
                    assert!(off < 1e-5, "stride {stride}, channel {out}, {t}: {got} {want}");
                }
            }
        }
        Ok(())
    }
}
