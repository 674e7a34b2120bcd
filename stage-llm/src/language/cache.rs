//! KV caches, allocated once and written in place: one for a prompt and its answer, one for a video.
//!
//! Keys and values of a video depend on nothing but the video (ARCHITECTURE.md), so they live apart from those of the
//! text and may outlive one question.

use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use config::KvPrecision;
use model::config_json::ModelConfig;
use protocol::coverage::Coverage;
use protocol::message::Modality;

use crate::language::kv::{KvFormat, KvTensor};
use crate::language::rope::RopeTable;

/// Shape and formats of the KV cache of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Number of decoder layers.
    pub layers: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Type of the keys and values of text, and of those of media that are not quantized.
    pub dtype: DType,
    /// Format of the keys and values of image and audio tokens.
    pub media: KvFormat,
}

impl Geometry {
    /// Geometry of a model that computes in `dtype`.
    pub fn new(config: &ModelConfig, dtype: DType, media: KvPrecision) -> Self {
        Geometry {
            layers: config.num_hidden_layers,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            dtype,
            media: match media {
                KvPrecision::Dense => KvFormat::Dense(dtype),
                KvPrecision::Q8 => KvFormat::Q8,
                KvPrecision::Q4 => KvFormat::Q4,
            },
        }
    }

    /// Bytes of one text token in all layers: 344,064 for Vidi 1.5 9B in 16 bit.
    pub fn text_token_bytes(&self) -> u64 {
        self.token_bytes(KvFormat::Dense(self.dtype))
    }

    /// Bytes of one image or audio token in all layers.
    pub fn media_token_bytes(&self) -> u64 {
        self.token_bytes(self.media)
    }

    fn token_bytes(&self, format: KvFormat) -> u64 {
        self.layers as u64 * format.bytes_per_token(self.kv_heads, self.head_dim)
    }
}

/// Memory that a job's caches will take, known before anything is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    /// Bytes of one text token.
    pub text_token_bytes: u64,
    /// Bytes of one image or audio token.
    pub media_token_bytes: u64,
    /// Tokens of prompt and answer.
    pub text_tokens: u64,
    /// Number of image tokens.
    pub image_tokens: u64,
    /// Number of audio tokens.
    pub audio_tokens: u64,
    /// Unit of allocation: each cache is one piece of memory, a multiple of it.
    pub chunk_bytes: u64,
}

impl CacheSize {
    /// Bytes of all caches together.
    pub fn bytes(&self) -> u64 {
        let pieces = [
            self.image_tokens.saturating_mul(self.media_token_bytes),
            self.audio_tokens.saturating_mul(self.media_token_bytes),
            self.text_tokens.saturating_mul(self.text_token_bytes),
        ];
        let whole = |bytes: u64| bytes.checked_next_multiple_of(self.chunk_bytes.max(1)).unwrap_or(u64::MAX);
        pieces.into_iter().map(whole).fold(0, u64::saturating_add)
    }
}

/// Keys and values of one layer.
#[derive(Debug)]
pub struct LayerCache {
    /// Keys of every token.
    pub k: KvTensor,
    /// Values of every token.
    pub v: KvTensor,
}

impl LayerCache {
    /// Writes rows `[n, kv_heads * head_dim]` from token `at` on, in place; they may be columns of a wider matrix.
    ///
    /// # Errors
    /// Errors of candle, when they do not fit.
    pub fn write(&self, k: &Tensor, v: &Tensor, at: usize) -> Result<()> {
        self.k.write(k, at)?;
        self.v.write(v, at)
    }
}

/// Keys and values of every layer, in one piece of memory.
fn allocate(g: &Geometry, format: KvFormat, tokens: usize, device: &Device) -> Result<Vec<LayerCache>> {
    let mut all = KvTensor::several(2 * g.layers, format, g.kv_heads, tokens, g.head_dim, device)?.into_iter();
    Ok(std::iter::from_fn(|| Some(LayerCache { k: all.next()?, v: all.next()? })).collect())
}

/// Keys and values of a prompt and the answer that grows after it.
#[derive(Debug)]
pub struct TextCache {
    layers: Vec<LayerCache>,
    rope: RopeTable,
    len: usize,
    capacity: usize,
}

impl TextCache {
    /// Empty cache with a capacity of `capacity` tokens, and the rotations of as many positions.
    ///
    /// # Errors
    /// Errors of candle, when there is no memory.
    pub fn new(geometry: &Geometry, rope: RopeTable, capacity: usize, device: &Device) -> Result<Self> {
        let layers = allocate(geometry, KvFormat::Dense(geometry.dtype), capacity, device)?;
        Ok(TextCache { layers, rope, len: 0, capacity })
    }

    /// Number of tokens held: the position of the next one.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Most tokens that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Keys and values of layer `i`.
    pub(crate) fn layer(&self, i: usize) -> &LayerCache {
        &self.layers[i]
    }

    /// Rotations of the cache's positions.
    pub(crate) fn rope(&self) -> &RopeTable {
        &self.rope
    }

    /// Counts `n` more tokens, whose keys and values are written in all layers.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
    }
}

/// Keys and values of one modality of a video, and which of its tokens are written.
#[derive(Debug)]
pub struct MediaCache {
    layers: Vec<LayerCache>,
    coverage: Coverage,
}

impl MediaCache {
    /// Empty cache for exactly `tokens` tokens.
    ///
    /// # Errors
    /// Errors of candle, when there is no memory.
    pub fn new(geometry: &Geometry, tokens: u64, device: &Device) -> Result<Self> {
        let layers = allocate(geometry, geometry.media, tokens as usize, device)?;
        Ok(MediaCache { layers, coverage: Coverage::of(tokens) })
    }

    /// Bytes of the allocation, filled or not.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.k.bytes() + layer.v.bytes()).sum()
    }

    /// Number of tokens that the cache is for.
    pub fn tokens(&self) -> u64 {
        self.coverage.total().expect("a cache is made for a known number of tokens. This is a bug.")
    }

    /// Number of tokens that are claimed for writing.
    pub fn held(&self) -> u64 {
        self.coverage.len()
    }

    /// First range of tokens that is missing.
    pub fn first_gap(&self) -> Option<Range<u64>> {
        self.coverage.first_gap()
    }

    /// Keys and values of layer `i`.
    pub(crate) fn layer(&self, i: usize) -> &LayerCache {
        &self.layers[i]
    }

    /// Buffers of all layers: keys and values of the first, then of the next.
    pub fn buffers(&self) -> impl Iterator<Item = &Tensor> {
        self.layers.iter().flat_map(|layer| [layer.k.data(), layer.v.data()])
    }

    /// Claims rows for writing and returns those that were not claimed before. The caller must write them with
    /// [`LanguageModel::absorb`](crate::language::LanguageModel::absorb).
    pub fn claim(&mut self, rows: Range<u64>) -> Vec<Range<u64>> {
        self.coverage.insert(rows)
    }
}

/// Keys and values of a video. A modality that is absent takes no part in attention.
#[derive(Debug, Default)]
pub struct VideoCache {
    /// Image tokens.
    pub image: Option<MediaCache>,
    /// Audio tokens.
    pub audio: Option<MediaCache>,
}

impl VideoCache {
    /// Cache of a modality.
    pub fn of(&self, modality: Modality) -> Option<&MediaCache> {
        match modality {
            Modality::Image => self.image.as_ref(),
            Modality::Audio => self.audio.as_ref(),
        }
    }

    /// Cache of a modality, to fill it.
    pub fn of_mut(&mut self, modality: Modality) -> Option<&mut MediaCache> {
        match modality {
            Modality::Image => self.image.as_mut(),
            Modality::Audio => self.audio.as_mut(),
        }
    }

    /// Caches of the modalities that are present: image, then audio.
    pub fn present(&self) -> impl Iterator<Item = &MediaCache> {
        self.image.iter().chain(&self.audio)
    }

    /// Bytes of all allocations.
    pub fn bytes(&self) -> u64 {
        self.present().map(MediaCache::bytes).sum()
    }

    /// First range of tokens that is missing in either modality.
    pub fn first_gap(&self) -> Option<(Modality, Range<u64>)> {
        [Modality::Image, Modality::Audio].into_iter().find_map(|m| Some((m, self.of(m)?.first_gap()?)))
    }
}
