//! Keys and values, allocated once and written in place: of a prompt and its answer, and of a video.
//!
//! A video's depend on nothing but the video (DESIGN.md, second consequence), so they live apart from the text's and
//! may outlive one question.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use common::message::Modality;
use common::model::ModelConfig;
use common::rows::RowSet;

/// What one token's keys and values take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Decoder layers.
    pub layers: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Type they are kept in.
    pub dtype: DType,
}

impl Geometry {
    /// The geometry of a model whose keys and values are kept in `dtype`.
    pub fn new(config: &ModelConfig, dtype: DType) -> Self {
        Geometry {
            layers: config.num_hidden_layers,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            dtype,
        }
    }

    /// Bytes of one token in all layers: 344,064 for Vidi 1.5 9B in 16 bit.
    pub fn token_bytes(&self) -> u64 {
        (2 * self.layers * self.kv_heads * self.head_dim * self.dtype.size_in_bytes()) as u64
    }
}

/// What a job's caches will take, known before anything is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachePlan {
    /// Bytes of one token.
    pub token_bytes: u64,
    /// Prompt and answer.
    pub text_tokens: u64,
    /// Image tokens.
    pub image_tokens: u64,
    /// Audio tokens.
    pub audio_tokens: u64,
}

impl CachePlan {
    /// Bytes of all caches together.
    pub fn bytes(&self) -> u64 {
        let tokens = self.text_tokens.saturating_add(self.image_tokens).saturating_add(self.audio_tokens);
        tokens.saturating_mul(self.token_bytes)
    }
}

/// Keys and values of one layer: both `[kv_heads, capacity, head_dim]`, so that a head's tokens lie in a row.
#[derive(Debug)]
pub struct LayerCache {
    k: Tensor,
    v: Tensor,
}

impl LayerCache {
    /// Writes `[kv_heads, n, head_dim]` at token `at`, in place.
    ///
    /// # Errors
    /// candle's, when they do not fit.
    pub fn write(&self, k: &Tensor, v: &Tensor, at: usize) -> Result<()> {
        self.k.slice_set(k, 1, at)?;
        self.v.slice_set(v, 1, at)
    }

    /// Writes `[n, kv_heads * head_dim]` at token `at`, in place.
    ///
    /// # Errors
    /// candle's, when they do not fit.
    pub fn write_rows(&self, k: &Tensor, v: &Tensor, at: usize) -> Result<()> {
        let heads = self.k.dim(0)?;
        let by_head = |rows: &Tensor| rows.reshape((rows.dim(0)?, heads, ()))?.transpose(0, 1)?.contiguous();
        self.write(&by_head(k)?, &by_head(v)?, at)
    }

    /// The first `tokens` keys and values, as views: `[kv_heads, tokens, head_dim]`.
    ///
    /// # Errors
    /// candle's, when there are not so many.
    pub fn read(&self, tokens: usize) -> Result<(Tensor, Tensor)> {
        Ok((self.k.narrow(1, 0, tokens)?, self.v.narrow(1, 0, tokens)?))
    }
}

fn allocate(g: &Geometry, tokens: usize, device: &Device) -> Result<Vec<LayerCache>> {
    let zeros = || Tensor::zeros((g.kv_heads, tokens, g.head_dim), g.dtype, device);
    (0..g.layers).map(|_| Ok(LayerCache { k: zeros()?, v: zeros()? })).collect()
}

/// Keys and values of a prompt and the answer that grows after it.
#[derive(Debug)]
pub struct TextCache {
    layers: Vec<LayerCache>,
    len: usize,
    capacity: usize,
}

impl TextCache {
    /// Room for `capacity` tokens.
    ///
    /// # Errors
    /// candle's, when there is no memory.
    pub fn new(geometry: &Geometry, capacity: usize, device: &Device) -> Result<Self> {
        Ok(TextCache { layers: allocate(geometry, capacity, device)?, len: 0, capacity })
    }

    /// Tokens held: the position of the next one.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// One layer.
    pub(crate) fn layer(&self, i: usize) -> &LayerCache {
        &self.layers[i]
    }

    /// Counts `n` tokens that all layers have been given.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
    }
}

/// Keys and values of one half of a video, and which of its tokens are there.
#[derive(Debug)]
pub struct MediaCache {
    layers: Vec<LayerCache>,
    held: RowSet,
    tokens: u64,
}

impl MediaCache {
    /// Room for exactly `tokens` tokens.
    ///
    /// # Errors
    /// candle's, when there is no memory.
    pub fn new(geometry: &Geometry, tokens: u64, device: &Device) -> Result<Self> {
        Ok(MediaCache { layers: allocate(geometry, tokens as usize, device)?, held: RowSet::new(), tokens })
    }

    /// Tokens that it is for.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Tokens that are there.
    pub fn held(&self) -> u64 {
        self.held.len()
    }

    /// The first tokens that are missing.
    pub fn first_gap(&self) -> Option<Range<u64>> {
        self.held.first_gap(self.tokens)
    }

    /// One layer.
    pub(crate) fn layer(&self, i: usize) -> &LayerCache {
        &self.layers[i]
    }

    /// Claims rows for writing and returns those that nobody has claimed before. Whoever claims must write them with
    /// [`Gemma::absorb`](crate::gemma::Gemma::absorb).
    pub fn claim(&mut self, rows: Range<u64>) -> Vec<Range<u64>> {
        self.held.insert(rows)
    }
}

/// Keys and values of a video. A half that is absent takes no part in attention.
#[derive(Debug, Default)]
pub struct VideoCache {
    /// Picture.
    pub image: Option<MediaCache>,
    /// Sound.
    pub audio: Option<MediaCache>,
}

impl VideoCache {
    /// The half of a modality.
    pub fn half(&self, modality: Modality) -> Option<&MediaCache> {
        match modality {
            Modality::Image => self.image.as_ref(),
            Modality::Audio => self.audio.as_ref(),
        }
    }

    /// The half of a modality, to fill it.
    pub fn half_mut(&mut self, modality: Modality) -> Option<&mut MediaCache> {
        match modality {
            Modality::Image => self.image.as_mut(),
            Modality::Audio => self.audio.as_mut(),
        }
    }

    /// The halves that are there: picture, then sound.
    pub fn halves(&self) -> impl Iterator<Item = &MediaCache> {
        self.image.iter().chain(&self.audio)
    }

    /// The first gap of any half.
    pub fn first_gap(&self) -> Option<(Modality, Range<u64>)> {
        [Modality::Image, Modality::Audio].into_iter().find_map(|m| Some((m, self.half(m)?.first_gap()?)))
    }
}
