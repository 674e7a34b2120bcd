//! Attention, soft-capped or not, over any number of keys in bounded memory (MODEL.md 7; MODEL-7B.md, "Language model").
//!
//! In reading order: queries, keys and values, and how scores become weights (this file), [`blockwise`] (one softmax,
//! on the CPU), [`segments`] (the three softmaxes of a text token in one operation), [`each`] (a token of each of several
//! texts, the video read once), `cuda` (both on a GPU).

use std::ops::Range;

use candle_core::Tensor;

use crate::language::kv::KvTensor;

pub mod blockwise;
#[cfg(feature = "cuda")]
mod cuda;
pub mod each;
pub mod segments;

/// Most bytes of intermediate results that one launch of the attention kernels keeps in GPU memory; they are freed when
/// the operation ends.
pub const SCRATCH_BYTES: usize = 32 << 20;

/// Scale and soft cap that turn scores into weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scoring {
    /// Factor of the dot product: `query_pre_attn_scalar^-0.5`.
    pub scale: f64,
    /// Soft cap, if any: `cap * tanh(score / cap)`.
    pub cap: Option<f64>,
}

/// Keys that a query sees: always one contiguous range of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visible {
    /// All keys: text to image and audio.
    All,
    /// The query's own key and those before it: text to text.
    Causal {
        /// Position of the first query; key j stands at position j.
        first: usize,
        /// Most keys that a query sees, its own included; none means all (MODEL.md 7, the textbook window).
        window: Option<usize>,
    },
}

impl Visible {
    /// Range of the `keys` keys that query number `query` sees.
    fn to(self, query: usize, keys: usize) -> Range<usize> {
        match self {
            Visible::All => 0..keys,
            Visible::Causal { first, window } => {
                let end = first + query + 1;
                window.map_or(0, |w| end.saturating_sub(w))..end.min(keys)
            }
        }
    }
}

/// Queries of a run of text tokens, `[n, heads * head_dim]`; they may be columns of a wider matrix.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// Queries with rotary positions, for [`Visible::Causal`] segments: their keys are rotated too.
    pub rotated: &'a Tensor,
    /// Queries as projected, for [`Visible::All`] segments: their tokens have no positions (MODEL.md 7).
    pub plain: &'a Tensor,
}

/// Keys and values that share a softmax.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Keys of the layer.
    pub keys: &'a KvTensor,
    /// Values of the layer.
    pub values: &'a KvTensor,
    /// Number of tokens that are written; the rest of the capacity is not read.
    pub len: usize,
    /// Keys that a query sees.
    pub visible: Visible,
}
