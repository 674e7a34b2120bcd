//! A decoder layer: norms, attention and the feed-forward part.

use candle_core::{DType, Result, Tensor};
use compute::kernels::{self, Activation, Rows};
use config::{MediaProducts, WeightFormat};
use model::checkpoint::{CheckpointError, Weights};
use model::config_json::ModelConfig;

use crate::gemma::attention::segments::attend_segments;
use crate::gemma::attention::{Queries, Scoring, Segment, Visible};
use crate::gemma::cache::{LayerCache, TextCache, VideoCache};
use crate::gemma::fold::fold_heads;
use crate::gemma::quantized::WeightMatrix;
use crate::gemma::weights::{LayerMatrices, Loader};

/// RMS norm of Gemma: `G(x, w) = rms(x) * (1 + w)`, all in f32, one rounding at the end (MODEL.md 7).
pub(super) struct RmsNorm {
    gain: Tensor, // 1 + w, f32
    eps: f32,
}

impl RmsNorm {
    pub(super) fn new(c: &ModelConfig, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        let weight = w.in_dtype(DType::F32).get("weight", &[c.hidden_size])?;
        let gain = (weight + 1.0).map_err(CheckpointError::from_device)?;
        Ok(RmsNorm { gain, eps: c.rms_norm_eps as f32 })
    }

    /// Norm of `x` `[n, D]`, ready to be multiplied.
    pub(super) fn forward(&self, x: &Tensor, products: MediaProducts) -> Result<Rows> {
        kernels::rms_norm_rows(x, &self.gain, self.eps, products)
    }

    /// `x += G(y)` in place.
    fn add(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        kernels::add_rms_norm(x, y, &self.gain, self.eps)
    }

    /// `x += G(y)` in place, and `next` of the sum, ready to be multiplied.
    fn add_then(&self, x: &Tensor, y: &Tensor, next: &RmsNorm, products: MediaProducts) -> Result<Rows> {
        kernels::add_rms_norm_then(x, y, &self.gain, &next.gain, self.eps, products)
    }
}

/// Attention of a layer, with its projections.
pub(super) struct Attention {
    qkv_proj: WeightMatrix, // queries, keys, values
    o_proj: WeightMatrix,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scoring: Scoring,
    /// Most keys that a text query sees; none on layers with full attention.
    window: Option<usize>,
}

impl Attention {
    fn new(
        layer: usize,
        c: &ModelConfig,
        matrices: &LayerMatrices,
        loader: &Loader<'_>,
    ) -> std::result::Result<Self, CheckpointError> {
        Ok(Attention {
            qkv_proj: loader.load(&matrices.qkv_proj)?,
            o_proj: loader.load(&matrices.o_proj)?,
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            scoring: Scoring { scale: c.query_pre_attn_scalar.powf(-0.5), cap: c.attn_logit_softcapping },
            // The even layers are the sliding ones (MODEL.md 7).
            window: layer.is_multiple_of(2).then_some(c.sliding_window),
        })
    }

    /// Keys and values `[n, kv_heads * head_dim]` of normed rows `[n, D]`, not rotated.
    pub(super) fn keys_and_values(&self, x: &Rows, dtype: DType) -> Result<(Tensor, Tensor)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let part = |outputs| self.qkv_proj.times(x, outputs, dtype);
        Ok((part(q..q + kv)?, part(q + kv..q + 2 * kv)?))
    }

    /// Attention of text to text, to image and to audio: three softmaxes. Their sum is taken before the one `o_proj`,
    /// which is linear; the reference sums after it. `x` `[n, D]` is normed; as many of its rows follow the tokens of each of
    /// `texts`, in their order.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        texts: &[&mut TextCache],
        video: &VideoCache,
    ) -> Result<Tensor> {
        let qkv = self.qkv_proj.forward(x)?; // [n, (heads + 2 kv_heads) * head_dim]
        if let [text] = texts {
            return self.o_proj.forward(&self.attend(&qkv, layer, text, video)?); // [n, D]
        }
        let rows = x.dim(0)? / texts.len().max(1);
        let own =
            |(i, text): (usize, &&mut TextCache)| self.attend(&qkv.narrow(0, i * rows, rows)?, layer, text, video);
        let attended = texts.iter().enumerate().map(own).collect::<Result<Vec<Tensor>>>()?;
        self.o_proj.forward(&Tensor::cat(&attended, 0)?) // [n, D]
    }

    /// Attention of projected rows `[n, (heads + 2 kv_heads) * head_dim]` of one text, `[n, heads * head_dim]`.
    fn attend(&self, qkv: &Tensor, layer: usize, text: &TextCache, video: &VideoCache) -> Result<Tensor> {
        let (n, at, cache) = (qkv.dim(0)?, text.len(), text.layer(layer));
        let rotated = text.rope().rotate_and_write(qkv, self.heads, at, &cache.k, &cache.v)?;
        let queries = Queries { rotated: &rotated, plain: &qkv.narrow(1, 0, self.heads * self.head_dim)? };
        let causal = Visible::Causal { first: at, window: self.window };
        let mut segments = vec![segment(cache, at + n, causal)];
        segments.extend(video.present().map(|h| segment(h.layer(layer), h.tokens() as usize, Visible::All)));
        attend_segments(queries, &segments, self.scoring)
    }

    /// Attention of image or audio tokens with values `[n, kv_heads * head_dim]`, each to itself alone, `[n, D]`: a
    /// token's own value, projected.
    pub(super) fn diagonal(&self, v: &Tensor, products: MediaProducts) -> Result<Tensor> {
        let weight = self.o_proj.expanded(v.dtype())?; // [D, heads * head_dim]
        let outputs = 0..weight.dim(0)?;
        let folded = WeightMatrix::Dense(fold_heads(&weight, self.kv_heads, self.head_dim)?);
        folded.times(&Rows::new(v, products)?, outputs, v.dtype())
    }
}

fn segment(cache: &LayerCache, len: usize, visible: Visible) -> Segment<'_> {
    Segment { keys: &cache.k, values: &cache.v, len, visible }
}

/// Feed-forward part of a layer.
struct Mlp {
    gate_up_proj: WeightMatrix, // gates, ups
    down_proj: WeightMatrix,
}

impl Mlp {
    fn new(matrices: &LayerMatrices, loader: &Loader<'_>) -> std::result::Result<Self, CheckpointError> {
        Ok(Mlp { gate_up_proj: loader.load(&matrices.gate_up_proj)?, down_proj: loader.load(&matrices.down_proj)? })
    }

    fn forward(&self, x: &Rows, products: MediaProducts, dtype: DType) -> Result<Tensor> {
        let whole = |layer: &WeightMatrix, x: &Rows| layer.times(x, 0..layer.dims()?.0, dtype);
        let gate_up = whole(&self.gate_up_proj, x)?;
        whole(&self.down_proj, &Rows::glu(&gate_up, Activation::GeluTanh, products)?) // [n, D]
    }
}

/// Decoder layer of the model.
pub(super) struct DecoderLayer {
    pub(super) self_attn: Attention,
    mlp: Mlp,
    pub(super) input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    post_feedforward_layernorm: RmsNorm,
}

impl DecoderLayer {
    pub(super) fn new(
        layer: usize,
        c: &ModelConfig,
        w: &Weights,
        loader: &Loader<'_>,
        weights: WeightFormat,
    ) -> std::result::Result<Self, CheckpointError> {
        let matrices = LayerMatrices::new(c, layer, weights);
        Ok(DecoderLayer {
            self_attn: Attention::new(layer, c, &matrices, loader)?,
            mlp: Mlp::new(&matrices, loader)?,
            input_layernorm: RmsNorm::new(c, &w.pp("input_layernorm"))?,
            post_attention_layernorm: RmsNorm::new(c, &w.pp("post_attention_layernorm"))?,
            pre_feedforward_layernorm: RmsNorm::new(c, &w.pp("pre_feedforward_layernorm"))?,
            post_feedforward_layernorm: RmsNorm::new(c, &w.pp("post_feedforward_layernorm"))?,
        })
    }

    /// Adds attention's output and then the feed-forward part to the stream `x`, in place.
    pub(super) fn residual(&self, x: &Tensor, attended: &Tensor, products: MediaProducts) -> Result<()> {
        let h = self.feed_forward(x, attended, products)?;
        self.post_feedforward_layernorm.add(x, &h)
    }

    /// [`residual`](Self::residual), and the input of the layer `next`. Text, image and audio differ only in how they
    /// are multiplied.
    pub(super) fn residual_then(
        &self,
        x: &Tensor,
        attended: &Tensor,
        next: &DecoderLayer,
        products: MediaProducts,
    ) -> Result<Rows> {
        let h = self.feed_forward(x, attended, products)?;
        self.post_feedforward_layernorm.add_then(x, &h, &next.input_layernorm, products)
    }

    /// Output of the feed-forward part, once attention's output is added to the stream `x`, in place.
    fn feed_forward(&self, x: &Tensor, attended: &Tensor, products: MediaProducts) -> Result<Tensor> {
        let pre = &self.pre_feedforward_layernorm;
        let normed = self.post_attention_layernorm.add_then(x, attended, pre, products)?;
        self.mlp.forward(&normed, products, x.dtype())
    }
}
