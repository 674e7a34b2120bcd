//! Gemma 2 with decomposed attention (MODEL.md 7): text attends to text, and separately to all image and all audio
//! tokens; those attend to nothing but themselves.

use candle_core::{DType, Device, Result, Tensor};
use compute::kernels::{self, Rows};
use config::{LlmConfig, MediaProducts, WeightFormat};
use model::checkpoint::{CheckpointError, Weights};
use model::config_json::ModelConfig;
use protocol::message::Modality;

use crate::gemma::attention::segments::{Queries, Segment, attend_segments};
use crate::gemma::attention::{Scoring, Visible};
use crate::gemma::cache::{Geometry, LayerCache, TextCache, VideoCache};
use crate::gemma::choose::soft_cap;
use crate::gemma::fold::fold_heads;
use crate::gemma::observe::{Boundary, Observe};
use crate::gemma::quantized::Linear;
use crate::gemma::rope::RopeTable;
use crate::gemma::weights::{self, LayerMatrices, Loader};
use crate::job::intake::Chunk;

/// `G(x, w) = rms(x) * (1 + w)`, all in f32, one rounding at the end (MODEL.md 7).
struct RmsNorm {
    gain: Tensor, // 1 + w, f32
    eps: f32,
}

impl RmsNorm {
    fn new(c: &ModelConfig, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        let weight = w.in_dtype(DType::F32).get("weight", &[c.hidden_size])?;
        let gain = (weight + 1.0).map_err(CheckpointError::from_device)?;
        Ok(RmsNorm { gain, eps: c.rms_norm_eps as f32 })
    }

    /// Of `x` `[n, D]`, ready to be multiplied.
    fn forward(&self, x: &Tensor, products: MediaProducts) -> Result<Rows> {
        kernels::rms_norm_rows(x, &self.gain, self.eps, products)
    }

    /// `x += G(y)` in place, and what `next` makes of the sum.
    fn add(&self, x: &Tensor, y: &Tensor, next: Option<&RmsNorm>, products: MediaProducts) -> Result<Option<Rows>> {
        kernels::add_rms_norm(x, y, &self.gain, next.map(|n| &n.gain), self.eps, products)
    }
}

/// Positions whose rotations are kept ready; a text with more has its own made.
const READY_POSITIONS: usize = 8192;

struct Attention {
    qkv_proj: Linear, // queries, keys, values
    o_proj: Linear,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scoring: Scoring,
    /// Keys that a text query sees; none on full layers.
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
    fn keys_and_values(&self, x: &Rows, dtype: DType) -> Result<(Tensor, Tensor)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let part = |outputs| self.qkv_proj.times(x, outputs, dtype);
        Ok((part(q..q + kv)?, part(q + kv..q + 2 * kv)?))
    }

    /// Text to text, to image and to audio: three softmaxes. Their sum is taken before the one `o_proj`, which is
    /// linear; the reference sums after it. `x` `[n, D]` is normed and stands at the end of `text`.
    fn forward(&self, x: &Tensor, layer: usize, text: &TextCache, video: &VideoCache) -> Result<Tensor> {
        let (n, at, cache) = (x.dim(0)?, text.len(), text.layer(layer));
        let qkv = self.qkv_proj.forward(x)?; // [n, (heads + 2 kv_heads) * head_dim]
        let rotated = text.rope().rotate_and_write(&qkv, self.heads, at, &cache.k, &cache.v)?;
        let queries = Queries { rotated: &rotated, plain: &qkv.narrow(1, 0, self.heads * self.head_dim)? };
        let causal = Visible::Causal { first: at, window: self.window };
        let mut segments = vec![segment(cache, at + n, causal)];
        segments.extend(video.halves().map(|h| segment(h.layer(layer), h.tokens() as usize, Visible::All)));
        self.o_proj.forward(&attend_segments(queries, &segments, self.scoring)?) // [n, D]
    }

    /// What image or audio tokens with values `[n, kv_heads * head_dim]` make of themselves, `[n, D]`: attention to itself
    /// alone is a token's own value.
    fn diagonal(&self, v: &Tensor, products: MediaProducts) -> Result<Tensor> {
        let weight = self.o_proj.expanded(v.dtype())?; // [D, heads * head_dim]
        let outputs = 0..weight.dim(0)?;
        let folded = Linear::Dense(fold_heads(&weight, self.kv_heads, self.head_dim)?);
        folded.times(&Rows::new(v, products)?, outputs, v.dtype())
    }
}

fn segment(cache: &LayerCache, len: usize, visible: Visible) -> Segment<'_> {
    Segment { keys: &cache.k, values: &cache.v, len, visible }
}

struct Mlp {
    gate_up_proj: Linear, // gates, ups
    down_proj: Linear,
}

impl Mlp {
    fn new(matrices: &LayerMatrices, loader: &Loader<'_>) -> std::result::Result<Self, CheckpointError> {
        Ok(Mlp { gate_up_proj: loader.load(&matrices.gate_up_proj)?, down_proj: loader.load(&matrices.down_proj)? })
    }

    fn forward(&self, x: &Rows, products: MediaProducts, dtype: DType) -> Result<Tensor> {
        let whole = |layer: &Linear, x: &Rows| layer.times(x, 0..layer.dims()?.0, dtype);
        let gate_up = whole(&self.gate_up_proj, x)?;
        whole(&self.down_proj, &Rows::geglu(&gate_up, products)?) // [n, D]
    }
}

struct DecoderLayer {
    self_attn: Attention,
    mlp: Mlp,
    input_layernorm: RmsNorm,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    post_feedforward_layernorm: RmsNorm,
}

impl DecoderLayer {
    fn new(
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

    /// Adds the attention's outcome and the feed-forward part to the stream, in place, and gives what `next` makes of it:
    /// the same for all three streams, but for how they are multiplied.
    fn residual(
        &self,
        x: &Tensor,
        attended: &Tensor,
        next: Option<&RmsNorm>,
        products: MediaProducts,
    ) -> Result<Option<Rows>> {
        let normed = self.post_attention_layernorm.add(x, attended, Some(&self.pre_feedforward_layernorm), products)?;
        let h = self.mlp.forward(&normed.expect("a norm was asked for. This is a bug."), products, x.dtype())?;
        self.post_feedforward_layernorm.add(x, &h, next, products)
    }
}

/// Rows that lie together, in the product and in the cache.
struct Run {
    modality: Modality,
    /// First token of its half.
    offset: u64,
    /// First row of the product.
    row: usize,
    rows: usize,
}

/// Chunks as they follow each other; one that goes on where the last one ended is the same run.
fn runs(chunks: &[Chunk]) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    let mut row = 0;
    for chunk in chunks {
        let rows = chunk.tokens.dim(0)?;
        match runs.last_mut() {
            Some(run) if run.modality == chunk.modality && run.offset + run.rows as u64 == chunk.offset => {
                run.rows += rows;
            }
            _ => runs.push(Run { modality: chunk.modality, offset: chunk.offset, row, rows }),
        }
        row += rows;
    }
    Ok(runs)
}

/// Whether the head is a matrix of its own: a configuration that says tied wins over a stray head in the file (MODEL.md 1).
pub fn untied(c: &ModelConfig, w: &Weights) -> bool {
    !c.tie_word_embeddings && w.contains("lm_head.weight")
}

/// The language model.
pub struct Gemma {
    embed_tokens: Linear, // [vocabulary, D]
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    lm_head: Linear,
    rope: RopeTable,
    /// sqrt(D), rounded to the model's dtype by the product itself (MODEL.md 7).
    embedding_scale: f64,
    final_cap: Option<f64>,
    geometry: Geometry,
    vocabulary: usize,
    hidden_size: usize,
    /// How image and audio tokens are multiplied.
    products: MediaProducts,
    dtype: DType,
    device: Device,
}

impl Gemma {
    /// Loads the model, its matrices and its keys and values kept as `llm` says, image and audio tokens multiplied as
    /// `products` says; works under [`Weights::survey`].
    ///
    /// # Errors
    /// The tensor that is missing or misshapen.
    pub fn new(
        c: &ModelConfig,
        w: &Weights,
        llm: &LlmConfig,
        products: MediaProducts,
    ) -> std::result::Result<Self, CheckpointError> {
        let loader = Loader::new(w, llm)?;
        let model = w.pp("model");
        let [embedding, head] = weights::embedding(c, llm.weights);
        let embed_tokens = loader.load(&embedding)?;
        let layers = model.pp("layers");
        let layer = |i| DecoderLayer::new(i, c, &layers.pp(i), &loader, llm.weights);
        let rope = RopeTable::new(c.rope_theta, c.head_dim, READY_POSITIONS, w.dtype(), w.device())
            .map_err(CheckpointError::from_device)?;
        Ok(Gemma {
            lm_head: if untied(c, w) { loader.load(&head)? } else { embed_tokens.clone() },
            embed_tokens,
            layers: (0..c.num_hidden_layers).map(layer).collect::<std::result::Result<_, _>>()?,
            norm: RmsNorm::new(c, &model.pp("norm"))?,
            rope,
            embedding_scale: (c.hidden_size as f64).sqrt(),
            final_cap: c.final_logit_softcapping,
            geometry: Geometry::new(c, w.dtype(), llm.kv),
            vocabulary: c.vocab_size,
            hidden_size: c.hidden_size,
            products,
            dtype: w.dtype(),
            device: w.device().clone(),
        })
    }

    /// What its keys and values take.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Room for a prompt and its answer of `capacity` tokens together.
    ///
    /// # Errors
    /// candle's, when there is no memory.
    pub fn text_cache(&self, capacity: usize) -> Result<TextCache> {
        let rope = if capacity <= self.rope.positions() { self.rope.clone() } else { self.rope.longer(capacity)? };
        TextCache::new(&self.geometry, rope, capacity, &self.device)
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Rows of the embedding: token ids are below.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Width of a token.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// Type that it computes in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Takes image or audio tokens `[n, D]` from token `offset` of their half on into the cache, in one go.
    ///
    /// # Errors
    /// As [`absorb_all`](Self::absorb_all).
    pub fn absorb(
        &self,
        modality: Modality,
        tokens: &Tensor,
        offset: u64,
        video: &VideoCache,
        observe: &mut dyn Observe,
    ) -> Result<()> {
        self.absorb_all(&[Chunk { modality, offset, tokens: tokens.clone() }], video, observe)
    }

    /// Takes rows of either half, wherever they belong, into the cache, all in one go: the more rows a product has, the
    /// better it uses a card. Rows depend on nothing but themselves, so any order and any cut give the same cache.
    ///
    /// # Errors
    /// candle's; rows that do not lie in the cache.
    pub fn absorb_all(&self, chunks: &[Chunk], video: &VideoCache, observe: &mut dyn Observe) -> Result<()> {
        let runs = runs(chunks)?;
        let Some(first) = chunks.first() else { return Ok(()) };
        let rows: Vec<&Tensor> = chunks.iter().map(|chunk| &chunk.tokens).collect();
        let tokens = if rows.len() == 1 { first.tokens.clone() } else { Tensor::cat(&rows, 0)? };
        let x = (tokens * self.embedding_scale)?; // [n, D]
        let mut normed = self.layers[0].input_layernorm.forward(&x, self.products)?;
        for (i, layer) in self.layers.iter().enumerate() {
            for run in &runs {
                observe.see(Boundary::MediaHidden(run.modality, i, run.offset), &x.narrow(0, run.row, run.rows)?)?;
            }
            let (k, v) = layer.self_attn.keys_and_values(&normed, x.dtype())?; // [n, kv_heads * head_dim]
            for run in &runs {
                let Some(cache) = video.half(run.modality) else {
                    candle_core::bail!("there is no cache for {} tokens", run.modality)
                };
                let part = |x: &Tensor| x.narrow(0, run.row, run.rows);
                cache.layer(i).write(&part(&k)?, &part(&v)?, run.offset as usize)?;
            }
            // Nothing looks at the rows after the last layer.
            let Some(next) = self.layers.get(i + 1) else { break };
            let attended = layer.self_attn.diagonal(&v, self.products)?;
            let next = layer.residual(&x, &attended, Some(&next.input_layernorm), self.products)?;
            normed = next.expect("a norm was asked for. This is a bug.");
        }
        Ok(())
    }

    /// Reads a prompt, or the next part of one, and gives the logits `[vocabulary]` in f32 after its last token.
    ///
    /// # Errors
    /// candle's; a text cache without room, an incomplete video.
    pub fn prefill(
        &self,
        ids: &[u32],
        text: &mut TextCache,
        video: &VideoCache,
        observe: &mut dyn Observe,
    ) -> Result<Tensor> {
        if let Some((modality, gap)) = video.first_gap() {
            candle_core::bail!("{modality} tokens {} to {} are missing from the cache", gap.start, gap.end);
        }
        let x = self.forward(&Tensor::new(ids, &self.device)?, text, video, observe)?; // [n, D]
        observe.see(Boundary::TextHidden(self.layers.len()), &x)?;
        if observe.wants_all_rows() {
            let normed = self.norm.forward(&x, MediaProducts::Dense)?.dense();
            observe.see(Boundary::TextFinalNorm, &normed)?;
            observe.see(Boundary::PrefillLogitsAll, &self.head(&normed)?)?;
        }
        self.last_logits(&x)
    }

    /// Feeds one generated token and gives the logits `[vocabulary]` in f32 after it.
    ///
    /// # Errors
    /// candle's; a text cache without room.
    pub fn decode(&self, id: u32, text: &mut TextCache, video: &VideoCache) -> Result<Tensor> {
        self.decode_from(&Tensor::new(&[id], &self.device)?, text, video)
    }

    /// [`decode`](Self::decode) of a token `[1]` in u32 that is on the device and may not have been computed yet.
    ///
    /// # Errors
    /// As `decode`.
    pub fn decode_from(&self, id: &Tensor, text: &mut TextCache, video: &VideoCache) -> Result<Tensor> {
        let x = self.forward(id, text, video, &mut ())?; // [1, D]
        self.last_logits(&x)
    }

    fn forward(
        &self,
        ids: &Tensor,
        text: &mut TextCache,
        video: &VideoCache,
        observe: &mut dyn Observe,
    ) -> Result<Tensor> {
        let n = ids.dims1()?;
        let room = text.capacity() - text.len();
        if n == 0 || n > room {
            candle_core::bail!("{n} text tokens for a cache with room for {room}");
        }
        let x = self.embed_tokens.gather(ids, self.dtype, self.embedding_scale)?; // [n, D]
        let mut normed = Some(self.layers[0].input_layernorm.forward(&x, MediaProducts::Dense)?);
        for (i, layer) in self.layers.iter().enumerate() {
            observe.see(Boundary::TextHidden(i), &x)?;
            let input = normed.take().expect("every layer but the last makes the next one's input. This is a bug.");
            let attended = layer.self_attn.forward(&input.dense(), i, text, video)?;
            let next = self.layers.get(i + 1).map(|next| &next.input_layernorm);
            normed = layer.residual(&x, &attended, next, MediaProducts::Dense)?;
        }
        text.advance(n);
        Ok(x)
    }

    fn last_logits(&self, x: &Tensor) -> Result<Tensor> {
        let last = x.narrow(0, x.dim(0)? - 1, 1)?;
        self.head(&self.norm.forward(&last, MediaProducts::Dense)?.dense())?.squeeze(0)
    }

    /// Normed rows `[n, D]` to logits `[n, vocabulary]` in f32.
    fn head(&self, normed: &Tensor) -> Result<Tensor> {
        soft_cap(&self.lm_head.forward(normed)?, self.final_cap)
    }
}
