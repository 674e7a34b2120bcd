//! Rotation of one token of each of several texts, each at its own position and into its own cache.

use candle_core::{Result, Tensor};

use super::next::Next;

/// [`RopeTable::rotate_and_write`](super::RopeTable::rotate_and_write) of row i of a fused projection `qkv` `[n, (heads + 2 * kv_heads) * head_dim]` for `next[i]`:
/// rotated queries `[n, heads * head_dim]`. No two of the texts share a cache.
///
/// # Errors
/// As `rotate_and_write`; another number of rows than of texts.
pub fn rotate_and_write_each(qkv: &Tensor, heads: usize, next: &[Next<'_>]) -> Result<Tensor> {
    if qkv.dim(0)? != next.len() {
        candle_core::bail!("rotation refused: {} rows for {} texts", qkv.dim(0)?, next.len());
    }
    #[cfg(feature = "cuda")]
    if qkv.device().is_cuda() {
        return super::cuda::rotate_and_write_each(qkv, heads, next);
    }
    let one = |(i, next): (usize, &Next<'_>)| {
        next.table.rotate_and_write(&qkv.narrow(0, i, 1)?, heads, next.at, &next.cache.k, &next.cache.v)
    };
    Tensor::cat(&next.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?, 0)
}
