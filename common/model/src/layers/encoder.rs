//! Layers of the vision and the audio encoder: attention and a feed-forward part, each behind a norm.

use candle_core::{Result, Tensor};

use super::linear::{FeedForward, Linear};
use crate::checkpoint::{CheckpointError, Weights};
use compute::kernels::{self, Rows};
use config::MediaProducts;

/// Self-attention of an encoder's layer.
#[derive(Debug)]
pub struct SelfAttention {
    qkv: Linear, // [3C, C]
    /// The last layer, whose bias is added by whatever reads the outcome next.
    pub out_proj: Linear,
    heads: usize,
    rows: usize,
}

impl SelfAttention {
    /// `q_proj`, `k_proj`, `v_proj` and `out_proj` of `w`, for sequences of `rows` rows.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn new(
        width: usize,
        heads: usize,
        rows: usize,
        keys_have_bias: bool,
        w: &Weights,
        products: MediaProducts,
    ) -> std::result::Result<Self, CheckpointError> {
        let biases = [Some("q_proj.bias"), keys_have_bias.then_some("k_proj.bias"), Some("v_proj.bias")];
        let weights = ["q_proj.weight", "k_proj.weight", "v_proj.weight"];
        Ok(SelfAttention {
            qkv: Linear::load(
                &weights.map(|part| (part, width)),
                w.concat(&biases.map(|part| (part, width)))?,
                width,
                w,
                products,
            )?,
            out_proj: Linear::new(width, width, &w.pp("out_proj"), products)?,
            heads,
            rows,
        })
    }

    /// Rows of whole sequences, `[n*rows, C]`, to the outcome of `out_proj`, `[n*rows, C]`, without its bias.
    ///
    /// # Errors
    /// The device's.
    pub fn forward(&self, x: &Rows) -> Result<Tensor> {
        let qkv = self.qkv.forward(x)?; // [n*rows, 3C]
        let (rows, width) = (qkv.dim(0)?, qkv.dim(1)? / 3);
        let qkv = qkv.reshape((rows / self.rows, self.rows, 3 * width))?;
        let scale = ((width / self.heads) as f64).powf(-0.5);
        let mixed = kernels::attention(&qkv, self.heads, scale as f32)?; // [n, rows, C]
        self.out_proj.matmul(&Rows::new(&mixed.reshape((rows, width))?, self.out_proj.products())?)
    }
}

/// Parameters of a layer norm; [`kernel`](Self::kernel) applies them.
#[derive(Debug)]
pub struct LayerNormWeights {
    weight: Tensor, // [C]
    bias: Tensor,   // [C]
    eps: f32,
}

impl LayerNormWeights {
    /// `weight` and `bias` of `w`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn new(width: usize, eps: f64, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        Ok(LayerNormWeights { weight: w.get("weight", &[width])?, bias: w.get("bias", &[width])?, eps: eps as f32 })
    }

    /// The kernel with these parameters, its outcome ready for such matmuls.
    pub fn kernel(&self, products: MediaProducts) -> kernels::LayerNorm<'_> {
        kernels::LayerNorm { weight: &self.weight, bias: &self.bias, eps: self.eps, products }
    }
}

/// Layer of an encoder, normed before each of its two parts.
#[derive(Debug)]
pub struct EncoderLayer {
    /// Norm before attention.
    pub attention_norm: LayerNormWeights,
    /// Attention of the rows to each other.
    pub attention: SelfAttention,
    /// Norm before the feed-forward part.
    pub feed_forward_norm: LayerNormWeights,
    /// Feed-forward part, each row by itself.
    pub feed_forward: FeedForward,
}

impl EncoderLayer {
    fn products(&self) -> MediaProducts {
        self.feed_forward.fc1.products()
    }

    /// What this layer is going to add to the stream `x` `[n, C]` in the end, once its attention has been added in place:
    /// `[n, C]`, without [`last_bias`](Self::last_bias). `normed` is what its first norm has made of the stream.
    fn last_sum(&self, x: &Tensor, normed: &Rows) -> Result<Tensor> {
        let attended = self.attention.forward(normed)?;
        let bias = Some(self.attention.out_proj.bias());
        let norm = self.feed_forward_norm.kernel(self.products());
        self.feed_forward.forward(&norm.after_adding(x, &attended, bias, None)?)
    }

    /// What is added with [`last_sum`](Self::last_sum).
    fn last_bias(&self) -> Option<&Tensor> {
        Some(self.feed_forward.fc2.bias())
    }
}

/// Moves the stream `x` `[n, C]` on by all layers, in place, held within `limit` after each. `after` hears of each layer:
/// look at the stream at once, the next one overwrites it.
///
/// # Errors
/// The device's.
pub fn encode(layers: &[EncoderLayer], x: &Tensor, limit: Option<f32>, after: &mut dyn FnMut(usize)) -> Result<()> {
    let Some((last, y)) = up_to_last_sum(layers, x, limit, after)? else { return Ok(()) };
    kernels::residual_add(x, &y, last.last_bias(), limit)?;
    after(layers.len() - 1);
    Ok(())
}

/// [`encode`], and `norm` of what the stream has become, in the model's type.
///
/// # Errors
/// The device's.
pub fn encode_then(
    layers: &[EncoderLayer],
    x: &Tensor,
    limit: Option<f32>,
    norm: &LayerNormWeights,
    after: &mut dyn FnMut(usize),
) -> Result<Tensor> {
    let norm = norm.kernel(MediaProducts::Dense);
    let Some((last, y)) = up_to_last_sum(layers, x, limit, after)? else { return norm.forward(x).map(Rows::dense) };
    let normed = norm.after_adding(x, &y, last.last_bias(), limit)?;
    after(layers.len() - 1);
    Ok(normed.dense())
}

/// All layers but for the last one's last sum, which is given with it: whatever comes next is done in the same pass over the
/// stream. None without layers.
fn up_to_last_sum<'a>(
    layers: &'a [EncoderLayer],
    x: &Tensor,
    limit: Option<f32>,
    after: &mut dyn FnMut(usize),
) -> Result<Option<(&'a EncoderLayer, Tensor)>> {
    let Some((last, others)) = layers.split_last() else { return Ok(None) };
    let first_norm = |layer: &'a EncoderLayer| layer.attention_norm.kernel(layer.products());
    let mut normed = first_norm(&layers[0]).forward(x)?;
    for (i, (layer, next)) in others.iter().zip(&layers[1..]).enumerate() {
        let y = layer.last_sum(x, &normed)?;
        normed = first_norm(next).after_adding(x, &y, layer.last_bias(), limit)?;
        after(i);
    }
    Ok(Some((last, last.last_sum(x, &normed)?)))
}
