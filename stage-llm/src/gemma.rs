//! Gemma 2 with decomposed attention (MODEL.md 7): text attends to text, and separately to all image and all audio
//! tokens; those attend to nothing but themselves.

use candle_core::{DType, Device, Result, Tensor};
use common::checkpoint::{CheckpointError, Weights};
use common::kernels;
use common::message::Modality;
use common::model::ModelConfig;

use crate::attention::{Scoring, Visible, attend};
use crate::cache::{Geometry, TextCache, VideoCache};
use crate::observe::{Boundary, Observe};

/// `x W^T` without a bias, as all of the language model's are.
struct Linear {
    weight: Tensor, // [out, in]
}

impl Linear {
    fn new(input: usize, output: usize, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        Ok(Linear { weight: w.get("weight", &[output, input])? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight.t()?)
    }

    /// Some of the outputs only.
    fn part(&self, first: usize, outputs: usize) -> Result<Linear> {
        Ok(Linear { weight: self.weight.narrow(0, first, outputs)? })
    }
}

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

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernels::rms_norm(x, &self.gain, self.eps)
    }

    /// `x += G(y)` in place, and what `next` makes of the sum.
    fn add(&self, x: &Tensor, y: &Tensor, next: Option<&RmsNorm>) -> Result<Option<Tensor>> {
        kernels::add_rms_norm(x, y, &self.gain, next.map(|n| &n.gain), self.eps)
    }
}

/// Rotary embedding, half-split; tables only for the positions at hand (MODEL.md 7).
struct Rope {
    inv_freq: Vec<f32>, // [head_dim / 2]
}

/// Cosines and sines `[positions, head_dim / 2]` in the model's dtype.
struct RopeTable {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    fn new(c: &ModelConfig) -> Self {
        let exponent = |j: usize| (2 * j) as f32 / c.head_dim as f32;
        let inv_freq = (0..c.head_dim / 2).map(|j| 1.0 / c.rope_theta.powf(f64::from(exponent(j))) as f32).collect();
        Rope { inv_freq }
    }

    fn table(&self, first: usize, n: usize, dtype: DType, device: &Device) -> Result<RopeTable> {
        // The angle is an f32 product; its cosine is taken in f64 so that the table has no error of its own.
        let angles = || (first..first + n).flat_map(|p| self.inv_freq.iter().map(move |f| f64::from(p as f32 * f)));
        let shape = (n, self.inv_freq.len());
        let cos: Vec<f32> = angles().map(|a| a.cos() as f32).collect();
        let sin: Vec<f32> = angles().map(|a| a.sin() as f32).collect();
        Ok(RopeTable {
            cos: Tensor::from_vec(cos, shape, device)?.to_dtype(dtype)?,
            sin: Tensor::from_vec(sin, shape, device)?.to_dtype(dtype)?,
        })
    }
}

impl RopeTable {
    /// Rotates `[heads, n, head_dim]`.
    fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::rotary_emb::rope(&x.unsqueeze(0)?, &self.cos, &self.sin)?.squeeze(0)
    }
}

/// `[n, heads * width]` to `[heads, n, width]`.
fn split_heads(x: &Tensor, heads: usize) -> Result<Tensor> {
    let n = x.dim(0)?;
    x.reshape((n, heads, ()))?.transpose(0, 1)?.contiguous()
}

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
    fn new(layer: usize, c: &ModelConfig, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        let (q, kv) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let parts = [("q_proj.weight", q), ("k_proj.weight", kv), ("v_proj.weight", kv)];
        Ok(Attention {
            qkv_proj: Linear { weight: w.stack(&parts, c.hidden_size)? },
            o_proj: Linear::new(q, c.hidden_size, &w.pp("o_proj"))?,
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            scoring: Scoring { scale: c.query_pre_attn_scalar.powf(-0.5), cap: c.attn_logit_softcapping },
            // The even layers are the sliding ones (MODEL.md 7).
            window: layer.is_multiple_of(2).then_some(c.sliding_window),
        })
    }

    /// Keys and values `[n, kv_heads * head_dim]` of normed rows `[n, D]`, not rotated.
    fn keys_and_values(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        Ok((self.qkv_proj.part(q, kv)?.forward(x)?, self.qkv_proj.part(q + kv, kv)?.forward(x)?))
    }

    /// Text to text, to image and to audio: three softmaxes. Their sum is taken before the one `o_proj`, which is
    /// linear; the reference sums after it. `x` `[n, D]` is normed and stands at the end of `text`.
    fn forward(
        &self,
        x: &Tensor,
        rope: &RopeTable,
        layer: usize,
        text: &TextCache,
        video: &VideoCache,
    ) -> Result<Tensor> {
        let (n, at) = (x.dim(0)?, text.len());
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let qkv = self.qkv_proj.forward(x)?; // [n, q + 2 kv]
        let part = |first, width, heads| split_heads(&qkv.narrow(1, first, width)?, heads);
        let (q, k, v) = (part(0, q, self.heads)?, part(q, kv, self.kv_heads)?, part(q + kv, kv, self.kv_heads)?);
        text.layer(layer).write(&rope.rotate(&k)?, &v, at)?;
        let (k, v) = text.layer(layer).read(at + n)?;
        let causal = Visible::Causal { first: at, window: self.window };
        let mut mixed = attend(&rope.rotate(&q)?, &k, &v, self.scoring, causal)?;
        for half in video.halves() {
            let (k, v) = half.layer(layer).read(half.tokens() as usize)?;
            mixed = (mixed + attend(&q, &k, &v, self.scoring, Visible::All)?)?;
        }
        let mixed = mixed.transpose(0, 1)?.reshape((n, ()))?; // [n, heads * head_dim]
        self.o_proj.forward(&mixed.to_dtype(x.dtype())?)
    }

    /// What image or audio tokens with values `[n, kv_heads * head_dim]` make of themselves, `[n, D]`. Attention to itself
    /// alone is a token's own value, for every query head of a kv head; the columns of `o_proj` that meet the same value
    /// are added up first, which halves the product.
    fn diagonal(&self, v: &Tensor) -> Result<Tensor> {
        let weight = &self.o_proj.weight;
        let (output, dtype) = (weight.dim(0)?, weight.dtype());
        let group = self.heads / self.kv_heads;
        let by_head = weight.reshape((output, self.kv_heads, group, self.head_dim))?;
        let folded = by_head.to_dtype(DType::F32)?.sum(2)?.to_dtype(dtype)?; // [D, kv_heads, head_dim]
        Linear { weight: folded.flatten_from(1)? }.forward(v)
    }
}

struct Mlp {
    gate_up_proj: Linear, // gates, ups
    down_proj: Linear,
}

impl Mlp {
    fn new(c: &ModelConfig, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        let parts = ["gate_proj.weight", "up_proj.weight"].map(|part| (part, c.intermediate_size));
        Ok(Mlp {
            gate_up_proj: Linear { weight: w.stack(&parts, c.hidden_size)? },
            down_proj: Linear::new(c.intermediate_size, c.hidden_size, &w.pp("down_proj"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down_proj.forward(&kernels::geglu(&self.gate_up_proj.forward(x)?)?) // [n, D]
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
    fn new(layer: usize, c: &ModelConfig, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        Ok(DecoderLayer {
            self_attn: Attention::new(layer, c, &w.pp("self_attn"))?,
            mlp: Mlp::new(c, &w.pp("mlp"))?,
            input_layernorm: RmsNorm::new(c, &w.pp("input_layernorm"))?,
            post_attention_layernorm: RmsNorm::new(c, &w.pp("post_attention_layernorm"))?,
            pre_feedforward_layernorm: RmsNorm::new(c, &w.pp("pre_feedforward_layernorm"))?,
            post_feedforward_layernorm: RmsNorm::new(c, &w.pp("post_feedforward_layernorm"))?,
        })
    }

    /// Adds the attention's outcome and the feed-forward part to the stream, in place, and gives what `next` makes of it:
    /// the same for all three streams.
    fn residual(&self, x: &Tensor, attended: &Tensor, next: Option<&RmsNorm>) -> Result<Option<Tensor>> {
        let normed = self.post_attention_layernorm.add(x, attended, Some(&self.pre_feedforward_layernorm))?;
        let h = self.mlp.forward(&normed.expect("a norm was asked for. This is a bug."))?;
        self.post_feedforward_layernorm.add(x, &h, next)
    }
}

/// The language model.
pub struct Gemma {
    embed_tokens: Tensor, // [vocabulary, D]
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    lm_head: Linear,
    rope: Rope,
    /// sqrt(D), rounded to the model's dtype by the product itself (MODEL.md 7).
    embedding_scale: f64,
    final_cap: Option<f64>,
    geometry: Geometry,
    device: Device,
}

impl Gemma {
    /// Loads the model; works under [`Weights::survey`].
    ///
    /// # Errors
    /// The tensor that is missing or misshapen.
    pub fn new(c: &ModelConfig, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        let model = w.pp("model");
        let embed_tokens = model.pp("embed_tokens").get("weight", &[c.vocab_size, c.hidden_size])?;
        let layers = model.pp("layers");
        // A configuration that says tied wins over a stray head in the file (MODEL.md 1).
        let untied = !c.tie_word_embeddings && w.contains("lm_head.weight");
        let lm_head = if untied {
            Linear::new(c.hidden_size, c.vocab_size, &w.pp("lm_head"))?
        } else {
            Linear { weight: embed_tokens.clone() }
        };
        Ok(Gemma {
            embed_tokens,
            layers: (0..c.num_hidden_layers)
                .map(|i| DecoderLayer::new(i, c, &layers.pp(i)))
                .collect::<std::result::Result<_, _>>()?,
            norm: RmsNorm::new(c, &model.pp("norm"))?,
            lm_head,
            rope: Rope::new(c),
            embedding_scale: (c.hidden_size as f64).sqrt(),
            final_cap: c.final_logit_softcapping,
            geometry: Geometry::new(c, w.dtype()),
            device: w.device().clone(),
        })
    }

    /// What its keys and values take.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Rows of the embedding: token ids are below.
    pub fn vocabulary(&self) -> usize {
        self.embed_tokens.dims()[0]
    }

    /// Width of a token.
    pub fn hidden_size(&self) -> usize {
        self.embed_tokens.dims()[1]
    }

    /// Type that it computes in.
    pub fn dtype(&self) -> DType {
        self.embed_tokens.dtype()
    }

    /// Takes image or audio tokens `[n, D]` from token `offset` of their half on into the cache, in one go. Rows depend on
    /// nothing but themselves, so any order and any cut give the same cache.
    ///
    /// # Errors
    /// candle's; rows that do not lie in the cache.
    pub fn absorb(
        &self,
        modality: Modality,
        tokens: &Tensor,
        offset: u64,
        video: &VideoCache,
        observe: &mut dyn Observe,
    ) -> Result<()> {
        let Some(cache) = video.half(modality) else { candle_core::bail!("there is no cache for {modality} tokens") };
        let x = (tokens * self.embedding_scale)?; // [n, D]
        let mut normed = self.layers[0].input_layernorm.forward(&x)?;
        for (i, layer) in self.layers.iter().enumerate() {
            observe.see(Boundary::MediaHidden(modality, i, offset), &x)?;
            let (k, v) = layer.self_attn.keys_and_values(&normed)?; // [n, kv_heads * head_dim]
            cache.layer(i).write_rows(&k, &v, offset as usize)?;
            // Nothing looks at the rows after the last layer.
            let Some(next) = self.layers.get(i + 1) else { break };
            let attended = layer.self_attn.diagonal(&v)?;
            let next = layer.residual(&x, &attended, Some(&next.input_layernorm))?;
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
        let x = self.forward(ids, text, video, observe)?; // [n, D]
        observe.see(Boundary::TextHidden(self.layers.len()), &x)?;
        if observe.wants_all_rows() {
            let normed = self.norm.forward(&x)?;
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
        let x = self.forward(&[id], text, video, &mut ())?; // [1, D]
        self.last_logits(&x)
    }

    fn forward(
        &self,
        ids: &[u32],
        text: &mut TextCache,
        video: &VideoCache,
        observe: &mut dyn Observe,
    ) -> Result<Tensor> {
        let n = ids.len();
        let room = text.capacity() - text.len();
        if n == 0 || n > room {
            candle_core::bail!("{n} text tokens for a cache with room for {room}");
        }
        let ids = Tensor::new(ids, &self.device)?;
        let x = (self.embed_tokens.index_select(&ids, 0)? * self.embedding_scale)?; // [n, D]
        let rope = self.rope.table(text.len(), n, x.dtype(), &self.device)?;
        let mut normed = Some(self.layers[0].input_layernorm.forward(&x)?);
        for (i, layer) in self.layers.iter().enumerate() {
            observe.see(Boundary::TextHidden(i), &x)?;
            let input = normed.take().expect("every layer but the last makes the next one's input. This is a bug.");
            let attended = layer.self_attn.forward(&input, &rope, i, text, video)?;
            let next = self.layers.get(i + 1).map(|next| &next.input_layernorm);
            normed = layer.residual(&x, &attended, next)?;
        }
        text.advance(n);
        Ok(x)
    }

    fn last_logits(&self, x: &Tensor) -> Result<Tensor> {
        let last = x.narrow(0, x.dim(0)? - 1, 1)?;
        self.head(&self.norm.forward(&last)?)?.squeeze(0)?.to_dtype(DType::F32)
    }

    /// Normed rows `[n, D]` to logits `[n, vocabulary]`.
    fn head(&self, normed: &Tensor) -> Result<Tensor> {
        let z = self.lm_head.forward(normed)?;
        let Some(cap) = self.final_cap else { return Ok(z) };
        // Computed in f32, with the reference's rounding to the model's dtype after each step (MODEL.md 7).
        let rounded = |x: Tensor| x.to_dtype(z.dtype())?.to_dtype(DType::F32);
        let z32 = rounded((z.to_dtype(DType::F32)? / cap)?)?;
        (rounded(z32.tanh()?)? * cap)?.to_dtype(z.dtype())
    }
}
