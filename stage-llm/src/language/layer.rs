//! A decoder layer: norms, attention and the feed-forward part.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};
use compute::kernels::{self, Activation, E4m3Rows, Rows};
use config::{MediaProducts, WeightFormat};
use model::checkpoint::{CheckpointError, Weights};
use model::config_json::ModelConfig;

use crate::language::attention::each::attend_each;
use crate::language::attention::segments::attend_segments;
use crate::language::attention::{Queries, Scoring, Segment, Visible};
use crate::language::cache::{LayerCache, TextCache, VideoCache};
use crate::language::fold::fold_heads;
use crate::language::quantized::WeightMatrix;
use crate::language::rope::each::rotate_and_write_each;
use crate::language::rope::next::Next;
use crate::language::weights::{LayerMatrices, Loader, Matrix};

/// RMS norm: `rms(x) * gain`, all in f32, one rounding at the end. The gain is `1 + w` of Gemma's weights (MODEL.md 7) and `w`
/// of Mistral's (MODEL-7B.md, "Language model").
pub(super) struct RmsNorm {
    gain: Tensor, // f32
    eps: f32,
}

impl RmsNorm {
    pub(super) fn new(c: &ModelConfig, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        let weight = w.in_dtype(DType::F32).get("weight", &[c.hidden_size])?;
        let gain = (weight + c.norm_offset()).map_err(CheckpointError::from_device)?;
        Ok(RmsNorm { gain, eps: c.rms_norm_eps as f32 })
    }

    /// Norm of `x` `[n, D]`, ready to be multiplied.
    pub(super) fn forward(&self, x: &Tensor, products: MediaProducts) -> Result<Rows> {
        kernels::rms_norm_rows(x, &self.gain, self.eps, products)
    }
}

/// Addition of a part's output to the residual stream: through a norm of its own, or as it is.
struct Residual {
    norm: Option<RmsNorm>,
}

impl Residual {
    /// `x += y` in place, y through the norm.
    fn add(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        match &self.norm {
            Some(RmsNorm { gain, eps }) => kernels::add_rms_norm(x, y, gain, *eps),
            None => kernels::residual_add(x, y, None, None),
        }
    }

    /// [`add`](Self::add), and `next` of the sum, ready to be multiplied.
    fn add_then(&self, x: &Tensor, y: &Tensor, next: &RmsNorm, products: MediaProducts) -> Result<Rows> {
        match &self.norm {
            Some(RmsNorm { gain, eps }) => kernels::add_rms_norm_then(x, y, gain, &next.gain, *eps, products),
            None => kernels::add_then_rms_norm(x, y, &next.gain, next.eps, products),
        }
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
    /// Projections of image and audio tokens, where they are kept: to keys, to values, and of values to the output.
    kept: [Option<E4m3Rows>; 3],
}

impl Attention {
    fn new(
        layer: usize,
        c: &ModelConfig,
        matrices: &LayerMatrices,
        loader: &Loader<'_>,
    ) -> std::result::Result<Self, CheckpointError> {
        let mut attention = Attention {
            qkv_proj: loader.load(&matrices.qkv_proj)?,
            o_proj: loader.load(&matrices.o_proj)?,
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            scoring: Scoring { scale: c.query_pre_attn_scalar.powf(-0.5), cap: c.attn_logit_softcapping },
            window: c.window(layer),
            kept: [None, None, None],
        };
        let (qkv, o) = (&matrices.qkv_proj, &matrices.o_proj);
        let kv = c.num_key_value_heads * c.head_dim;
        let projection = |outputs| loader.kept(&qkv.name, [kv, qkv.columns], || attention.qkv_proj.e4m3(outputs));
        let folded = || WeightMatrix::Dense(attention.folded(loader.dtype())?).e4m3(0..o.rows());
        let (keys, values) = attention.projections();
        attention.kept = [projection(keys)?, projection(values)?, loader.kept(&o.name, [o.rows(), kv], folded)?];
        Ok(attention)
    }

    /// Outputs of the projection that are keys, and those that are values.
    fn projections(&self) -> (Range<usize>, Range<usize>) {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        (q..q + kv, q + kv..q + 2 * kv)
    }

    /// Output projection of image and audio tokens, `[D, kv_heads * head_dim]`.
    fn folded(&self, dtype: DType) -> Result<Tensor> {
        fold_heads(&self.o_proj.expanded(dtype)?, self.kv_heads, self.head_dim)
    }

    /// Keys and values `[n, kv_heads * head_dim]` of normed rows `[n, D]`, not rotated.
    pub(super) fn keys_and_values(&self, x: &Rows, dtype: DType) -> Result<(Tensor, Tensor)> {
        let (keys, values) = self.projections();
        let [kept_keys, kept_values, _] = &self.kept;
        Ok((
            self.qkv_proj.times(x, kept_keys.as_ref(), keys, dtype)?,
            self.qkv_proj.times(x, kept_values.as_ref(), values, dtype)?,
        ))
    }

    /// Attention of text to text, to image and to audio: three softmaxes. Their sum is taken before the one `o_proj`,
    /// which is linear; the reference sums after it. `x` `[n, D]` is normed; its rows follow the tokens of one text, or there
    /// is one row for each of several `texts`, in their order.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        texts: &[&mut TextCache],
        video: &VideoCache,
    ) -> Result<Tensor> {
        let qkv = self.qkv_proj.forward(x)?; // [n, (heads + 2 kv_heads) * head_dim]
        let attended = match texts {
            [text] => self.attend(&qkv, layer, text, video)?,
            _ => self.attend_each(&qkv, layer, texts, video)?,
        };
        self.o_proj.forward(&attended) // [n, D]
    }

    /// Attention of projected rows `[n, (heads + 2 kv_heads) * head_dim]` of one text, `[n, heads * head_dim]`.
    fn attend(&self, qkv: &Tensor, layer: usize, text: &TextCache, video: &VideoCache) -> Result<Tensor> {
        let (n, at, cache) = (qkv.dim(0)?, text.len(), text.layer(layer));
        let rotated = text.rope().rotate_and_write(qkv, self.heads, at, &cache.k, &cache.v)?;
        let queries = Queries { rotated: &rotated, plain: &qkv.narrow(1, 0, self.heads * self.head_dim)? };
        let mut segments = vec![self.of_text(cache, at, n)];
        segments.extend(of_video(video, layer));
        attend_segments(queries, &segments, self.scoring)
    }

    /// [`attend`](Self::attend) of one projected row of each of several texts: the video is read once for all.
    fn attend_each(&self, qkv: &Tensor, layer: usize, texts: &[&mut TextCache], video: &VideoCache) -> Result<Tensor> {
        let next: Vec<Next<'_>> =
            texts.iter().map(|text| Next { table: text.rope(), at: text.len(), cache: text.layer(layer) }).collect();
        let rotated = rotate_and_write_each(qkv, self.heads, &next)?;
        let queries = Queries { rotated: &rotated, plain: &qkv.narrow(1, 0, self.heads * self.head_dim)? };
        let own: Vec<Segment<'_>> = next.iter().map(|next| self.of_text(next.cache, next.at, 1)).collect();
        let shared: Vec<Segment<'_>> = of_video(video, layer).collect();
        attend_each(queries, &own, &shared, self.scoring)
    }

    /// Keys and values of a text up to `n` rows from position `at` on.
    fn of_text<'a>(&self, cache: &'a LayerCache, at: usize, n: usize) -> Segment<'a> {
        segment(cache, at + n, Visible::Causal { first: at, window: self.window })
    }

    /// Attention of image or audio tokens with values `[n, kv_heads * head_dim]`, each to itself alone, `[n, D]`: a
    /// token's own value, projected.
    pub(super) fn diagonal(&self, v: &Tensor, products: MediaProducts) -> Result<Tensor> {
        let rows = Rows::new(v, products)?;
        if let (Rows::E4m3(rows), [_, _, Some(kept)]) = (&rows, &self.kept) {
            return rows.matmul(kept, None, v.dtype());
        }
        let folded = self.folded(v.dtype())?;
        let outputs = 0..folded.dim(0)?;
        WeightMatrix::Dense(folded).times(&rows, None, outputs, v.dtype())
    }
}

/// Keys and values of image and audio in a layer.
fn of_video(video: &VideoCache, layer: usize) -> impl Iterator<Item = Segment<'_>> {
    video.present().map(move |h| segment(h.layer(layer), h.tokens() as usize, Visible::All))
}

fn segment(cache: &LayerCache, len: usize, visible: Visible) -> Segment<'_> {
    Segment { keys: &cache.k, values: &cache.v, len, visible }
}

/// Feed-forward part of a layer.
struct Mlp {
    gate_up_proj: WeightMatrix, // gates, ups
    down_proj: WeightMatrix,
    activation: Activation,
    /// The same matrices for image and audio tokens, where they are kept.
    kept: [Option<E4m3Rows>; 2],
}

impl Mlp {
    fn new(
        c: &ModelConfig,
        matrices: &LayerMatrices,
        loader: &Loader<'_>,
    ) -> std::result::Result<Self, CheckpointError> {
        let load = |matrix: &Matrix| -> std::result::Result<_, CheckpointError> {
            let (loaded, shape) = (loader.load(matrix)?, [matrix.rows(), matrix.columns]);
            let kept = loader.kept(&matrix.name, shape, || loaded.e4m3(0..matrix.rows()))?;
            Ok((loaded, kept))
        };
        let (gate_up_proj, kept_gate_up) = load(&matrices.gate_up_proj)?;
        let (down_proj, kept_down) = load(&matrices.down_proj)?;
        Ok(Mlp { gate_up_proj, down_proj, activation: c.activation(), kept: [kept_gate_up, kept_down] })
    }

    fn forward(&self, x: &Rows, dtype: DType) -> Result<Tensor> {
        let [kept_gate_up, kept_down] = &self.kept;
        let activated = match x {
            Rows::Dense(x) => Rows::Dense(kernels::glu(&self.gate_up_proj.forward(x)?, self.activation)?),
            Rows::E4m3(x) => {
                let weight = self.gate_up_proj.kept_or_e4m3(kept_gate_up.as_ref())?;
                Rows::E4m3(E4m3Rows::glu(x.product(&weight, None, dtype)?, self.activation)?)
            }
        };
        let outputs = 0..self.down_proj.dims()?.0;
        self.down_proj.times(&activated, kept_down.as_ref(), outputs, dtype) // [n, D]
    }
}

/// Decoder layer of the model.
pub(super) struct DecoderLayer {
    pub(super) self_attn: Attention,
    mlp: Mlp,
    pub(super) input_layernorm: RmsNorm,
    after_attention: Residual,
    feed_forward_norm: RmsNorm,
    after_feed_forward: Residual,
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
        let norm = |name: &str| RmsNorm::new(c, &w.pp(name));
        // `post_attention_layernorm` is the norm before the feed-forward part where no norm follows attention.
        let (after_attention, before, after_feed_forward) = if c.post_norms() {
            let [attention, before, feed_forward] =
                ["post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"].map(norm);
            (Some(attention?), before?, Some(feed_forward?))
        } else {
            (None, norm("post_attention_layernorm")?, None)
        };
        Ok(DecoderLayer {
            self_attn: Attention::new(layer, c, &matrices, loader)?,
            mlp: Mlp::new(c, &matrices, loader)?,
            input_layernorm: norm("input_layernorm")?,
            after_attention: Residual { norm: after_attention },
            feed_forward_norm: before,
            after_feed_forward: Residual { norm: after_feed_forward },
        })
    }

    /// Adds attention's output and then the feed-forward part to the stream `x`, in place.
    pub(super) fn residual(&self, x: &Tensor, attended: &Tensor, products: MediaProducts) -> Result<()> {
        let h = self.feed_forward(x, attended, products)?;
        self.after_feed_forward.add(x, &h)
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
        self.after_feed_forward.add_then(x, &h, &next.input_layernorm, products)
    }

    /// Output of the feed-forward part, once attention's output is added to the stream `x`, in place.
    fn feed_forward(&self, x: &Tensor, attended: &Tensor, products: MediaProducts) -> Result<Tensor> {
        let normed = self.after_attention.add_then(x, attended, &self.feed_forward_norm, products)?;
        self.mlp.forward(&normed, x.dtype())
    }
}
