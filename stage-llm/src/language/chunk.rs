//! Image or audio tokens on their way into the model.

use candle_core::{Result, Tensor};
use protocol::message::Modality;

/// Consecutive image or audio tokens of a video, ready for the model.
#[derive(Debug)]
pub struct Chunk {
    /// Modality of the tokens.
    pub modality: Modality,
    /// Number of the first token.
    pub offset: u64,
    /// Tokens `[n, D]`, on the model's device.
    pub tokens: Tensor,
}

/// Rows that are consecutive in the matmul and in the cache.
pub(super) struct Run {
    pub(super) modality: Modality,
    /// First token, among those of its modality.
    pub(super) offset: u64,
    /// First row in the matmul.
    pub(super) row: usize,
    pub(super) rows: usize,
}

/// Runs of chunks in their order; a chunk that continues where the last one ended belongs to the same run.
pub(super) fn runs(chunks: &[Chunk]) -> Result<Vec<Run>> {
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
