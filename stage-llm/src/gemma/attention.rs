//! Soft-capped attention over any number of keys in bounded memory (MODEL.md 7).
//!
//! In reading order: queries, keys and values, and how scores become weights (this file), [`blockwise`] (one softmax,
//! on the CPU), [`segments`] (the three softmaxes of a text token in one operation), `cuda` (the same on a GPU).

use std::ops::Range;

use candle_core::Tensor;

use crate::gemma::kv::KvTensor;

pub mod blockwise;
#[cfg(feature = "cuda")]
mod cuda;
pub mod segments;

/// Bytes of a launch's intermediate outcomes on a card, at most; nothing of it outlives the operation.
pub const SCRATCH_BYTES: usize = 32 << 20;

/// How scores become weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scoring {
    /// Factor of the dot product: `query_pre_attn_scalar^-0.5`.
    pub scale: f64,
    /// Soft cap, if any: `cap * tanh(score / cap)`.
    pub cap: Option<f64>,
}

/// Which keys a query sees: always one run of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visible {
    /// All: text to image and audio.
    All,
    /// Itself and what came before: text to text.
    Causal {
        /// Position of the first query; key j stands at position j.
        first: usize,
        /// Keys seen at most, the query's own included; none means all (MODEL.md 7, the textbook window).
        window: Option<usize>,
    },
}

impl Visible {
    /// The keys that a query sees, out of `keys`.
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
    /// Turned by their positions: for [`Visible::Causal`] segments, whose keys are.
    pub rotated: &'a Tensor,
    /// As projected: for [`Visible::All`] segments, whose tokens have no positions (MODEL.md 7).
    pub plain: &'a Tensor,
}

/// Keys and values that share a softmax.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Keys of the layer.
    pub keys: &'a KvTensor,
    /// Values of the layer.
    pub values: &'a KvTensor,
    /// Tokens that are there: the first so many.
    pub len: usize,
    /// Which of them a query sees.
    pub visible: Visible,
}
