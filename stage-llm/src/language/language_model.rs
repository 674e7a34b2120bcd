//! Language model with decomposed attention, Gemma 2 (MODEL.md 7) or Mistral (MODEL-7B.md): text attends to text, and
//! separately to all image tokens and to all audio tokens; image and audio tokens attend to themselves alone.

use candle_core::{DType, Device, Result, Tensor};
use config::{LlmConfig, MediaProducts};
use model::checkpoint::{CheckpointError, Weights};
use model::config_json::ModelConfig;
use protocol::message::Modality;

use crate::language::cache::{Geometry, TextCache, VideoCache};
use crate::language::choose::soft_cap;
use crate::language::chunk::{Chunk, runs};
use crate::language::layer::{DecoderLayer, RmsNorm};
use crate::language::observe::{Boundary, Observe};
use crate::language::quantized::WeightMatrix;
use crate::language::rope::RopeTable;
use crate::language::weights::{self, Loader};

/// Number of positions whose rotations are kept ready: a question and an answer as long as the default allows. A longer text has its
/// own table made.
const READY_POSITIONS: usize = 2048;

/// Whether the head is a matrix of its own: see [`ModelConfig::untied`].
pub fn untied(c: &ModelConfig, w: &Weights) -> bool {
    c.untied(w.contains("lm_head.weight"))
}

/// The language model.
pub struct LanguageModel {
    embed_tokens: WeightMatrix, // [vocabulary, D]
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    lm_head: WeightMatrix,
    rope: RopeTable,
    /// Factor of the embedding, and of image and audio tokens: Gemma's sqrt(D), rounded to the model's dtype by the
    /// multiplication itself (MODEL.md 7), or 1.
    embedding_scale: f64,
    final_cap: Option<f64>,
    geometry: Geometry,
    vocabulary: usize,
    hidden_size: usize,
    /// Precision in which image and audio tokens are multiplied.
    products: MediaProducts,
    dtype: DType,
    device: Device,
}

impl LanguageModel {
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
        let loader = Loader::new(w, llm, products)?;
        let model = w.pp("model");
        let [embedding, head] = weights::embedding(c, llm.weights);
        let embed_tokens = loader.load(&embedding)?;
        let layers = model.pp("layers");
        let layer = |i| DecoderLayer::new(i, c, &layers.pp(i), &loader, llm.weights);
        let rope = RopeTable::new(c.rope_theta, c.head_dim, READY_POSITIONS, w.dtype(), w.device())
            .map_err(CheckpointError::from_device)?;
        Ok(LanguageModel {
            lm_head: if untied(c, w) { loader.load(&head)? } else { embed_tokens.clone() },
            embed_tokens,
            layers: (0..c.num_hidden_layers).map(layer).collect::<std::result::Result<_, _>>()?,
            norm: RmsNorm::new(c, &model.pp("norm"))?,
            rope,
            embedding_scale: c.embedding_scale().unwrap_or(1.0),
            final_cap: c.final_logit_softcapping,
            geometry: Geometry::new(c, w.dtype(), llm.kv),
            vocabulary: c.vocab_size,
            hidden_size: c.hidden_size,
            products,
            dtype: w.dtype(),
            device: w.device().clone(),
        })
    }

    /// Geometry of the model's keys and values.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Empty cache for a prompt and its answer of `capacity` tokens together.
    ///
    /// # Errors
    /// Errors of candle, when there is no memory.
    pub fn text_cache(&self, capacity: usize) -> Result<TextCache> {
        let rope = if capacity <= self.rope.positions() { self.rope.clone() } else { self.rope.longer(capacity)? };
        TextCache::new(&self.geometry, rope, capacity, &self.device)
    }

    /// Device of the model.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number of rows of the embedding: token ids are below.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Width of a token.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// Type in which the model computes.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Takes image or audio tokens `[n, D]`, from token `offset` of their modality on, into the cache in one pass.
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

    /// Takes image and audio tokens, wherever they belong, into the cache in one pass through the layers: the more rows
    /// a matmul has, the better it uses a GPU. Rows depend on nothing but themselves, so any order and any cut give the
    /// same cache.
    ///
    /// # Errors
    /// Errors of candle; rows beyond the cache.
    pub fn absorb_all(&self, chunks: &[Chunk], video: &VideoCache, observe: &mut dyn Observe) -> Result<()> {
        let runs = runs(chunks)?;
        let Some(first) = chunks.first() else { return Ok(()) };
        // Two objects of one GPU have a stream each: what one frees the other may still read.
        if let Some(chunk) = chunks.iter().find(|chunk| !chunk.tokens.device().same_device(&self.device)) {
            candle_core::bail!(
                "prefill refused: {} tokens are on another device object than the model; copy them to `device()` first",
                chunk.modality
            );
        }
        let rows: Vec<&Tensor> = chunks.iter().map(|chunk| &chunk.tokens).collect();
        let tokens = if rows.len() == 1 { first.tokens.clone() } else { Tensor::cat(&rows, 0)? };
        // The layers overwrite it, so that it is a copy in any case.
        let x = (tokens * self.embedding_scale)?; // [n, D]
        let mut normed = self.layers[0].input_layernorm.forward(&x, self.products)?;
        for (i, layer) in self.layers.iter().enumerate() {
            for run in &runs {
                observe.see(Boundary::MediaHidden(run.modality, i, run.offset), &x.narrow(0, run.row, run.rows)?)?;
            }
            let (k, v) = layer.self_attn.keys_and_values(&normed, x.dtype())?; // [n, kv_heads * head_dim]
            for run in &runs {
                let Some(cache) = video.of(run.modality) else {
                    candle_core::bail!("prefill refused: there is no cache for {} tokens", run.modality)
                };
                let part = |x: &Tensor| x.narrow(0, run.row, run.rows);
                cache.layer(i).write(&part(&k)?, &part(&v)?, run.offset as usize)?;
            }
            // Nothing reads the rows after the last layer.
            let Some(next) = self.layers.get(i + 1) else { break };
            let attended = layer.self_attn.diagonal(&v, self.products)?;
            normed = layer.residual_then(&x, &attended, next, self.products)?;
        }
        Ok(())
    }

    /// Reads a prompt, or the next part of one, and returns the logits `[vocabulary]` in f32 after its last token.
    ///
    /// # Errors
    /// Errors of candle; a text cache without capacity, an incomplete video.
    pub fn prefill(
        &self,
        ids: &[u32],
        text: &mut TextCache,
        video: &VideoCache,
        observe: &mut dyn Observe,
    ) -> Result<Tensor> {
        if let Some((modality, gap)) = video.first_gap() {
            candle_core::bail!(
                "prefill refused: {modality} tokens {} to {} are missing from the cache",
                gap.start,
                gap.end
            );
        }
        let x = self.forward(&Tensor::new(ids, &self.device)?, &mut [text], video, observe)?; // [n, D]
        observe.see(Boundary::TextHidden(self.layers.len()), &x)?;
        if observe.wants_all_rows() {
            let normed = self.norm.forward(&x, MediaProducts::Dense)?.dense();
            observe.see(Boundary::TextFinalNorm, &normed)?;
            observe.see(Boundary::PrefillLogitsAll, &self.head(&normed)?)?;
        }
        self.last_logits(&x)
    }

    /// Reads one generated token and returns the logits `[vocabulary]` in f32 after it.
    ///
    /// # Errors
    /// Errors of candle; a text cache without capacity.
    pub fn decode(&self, id: u32, text: &mut TextCache, video: &VideoCache) -> Result<Tensor> {
        self.decode_from(&Tensor::new(&[id], &self.device)?, text, video)
    }

    /// [`decode`](Self::decode) of a token `[1]` in u32 that is on the device and may not have been computed yet.
    ///
    /// # Errors
    /// As `decode`.
    pub fn decode_from(&self, id: &Tensor, text: &mut TextCache, video: &VideoCache) -> Result<Tensor> {
        let x = self.forward(id, &mut [text], video, &mut ())?; // [1, D]
        self.last_logits(&x)
    }

    /// Reads one generated token of each of several texts about one video, and returns the logits `[texts, vocabulary]` in f32
    /// after them. The weights and the video's keys and values are read once for all: a step of several texts takes little
    /// longer than one of one.
    ///
    /// # Errors
    /// As [`decode`](Self::decode); another number of tokens than of texts.
    pub fn decode_each(&self, ids: &[u32], texts: &mut [&mut TextCache], video: &VideoCache) -> Result<Tensor> {
        self.decode_each_from(&Tensor::new(ids, &self.device)?, texts, video)
    }

    /// [`decode_each`](Self::decode_each) of tokens `[texts]` in u32 that are on the device and may not have been computed yet.
    ///
    /// # Errors
    /// As `decode_each`.
    pub fn decode_each_from(&self, ids: &Tensor, texts: &mut [&mut TextCache], video: &VideoCache) -> Result<Tensor> {
        if ids.dims1()? != texts.len() {
            candle_core::bail!("forward pass refused: {} tokens for {} texts", ids.dims1()?, texts.len());
        }
        let x = self.forward(ids, texts, video, &mut ())?; // [texts, D]
        self.head(&self.norm.forward(&x, MediaProducts::Dense)?.dense())
    }

    /// Rows after the last layer, `[n, D]`, of `n` tokens: as many for each of `texts`, in their order.
    fn forward(
        &self,
        ids: &Tensor,
        texts: &mut [&mut TextCache],
        video: &VideoCache,
        observe: &mut dyn Observe,
    ) -> Result<Tensor> {
        let n = ids.dims1()?;
        let each = n / texts.len().max(1);
        let free = texts.iter().map(|text| text.capacity() - text.len()).min().unwrap_or(0);
        if each == 0 || each > free {
            candle_core::bail!("forward pass refused: {each} text tokens for a cache with a free capacity of {free}");
        }
        let x = self.embed_tokens.gather(ids, self.dtype, self.embedding_scale)?; // [n, D]
        let mut normed = self.layers[0].input_layernorm.forward(&x, MediaProducts::Dense)?;
        for (i, layer) in self.layers.iter().enumerate() {
            observe.see(Boundary::TextHidden(i), &x)?;
            let attended = layer.self_attn.forward(&normed.dense(), i, texts, video)?;
            let Some(next) = self.layers.get(i + 1) else {
                layer.residual(&x, &attended, MediaProducts::Dense)?;
                break;
            };
            normed = layer.residual_then(&x, &attended, next, MediaProducts::Dense)?;
        }
        texts.iter_mut().for_each(|text| text.advance(each));
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
