//! Watching the model at the boundaries that the oracle records, to compare the two.

use candle_core::{Result, Tensor};
use protocol::message::Modality;

/// A place in the model whose value the oracle knows (oracle/README.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary {
    /// `text_hidden.{layer}` `[L, D]`: the prompt entering a layer; the number of layers stands for after the last.
    TextHidden(usize),
    /// `image_hidden.{layer}` or `audio_hidden.{layer}` `[n, D]`, from token `offset` on, as each chunk comes by.
    MediaHidden(Modality, usize, u64),
    /// `text_final_norm` `[L, D]`.
    TextFinalNorm,
    /// `prefill_logits_all` `[L, vocabulary]`.
    PrefillLogitsAll,
    /// Row k of `step_logits` `[vocabulary]`: what token k of the answer is chosen from; row 0 is `prefill_logits`.
    StepLogits(usize),
}

/// Someone who watches. `()` does not, and costs nothing.
pub trait Observe {
    /// Shows a value.
    ///
    /// # Errors
    /// The watcher's; it ends the job.
    fn see(&mut self, at: Boundary, value: &Tensor) -> Result<()>;

    /// Whether to compute the boundaries that only a watcher needs: norm and logits of every prompt position.
    fn wants_all_rows(&self) -> bool {
        true
    }
}

impl Observe for () {
    fn see(&mut self, _: Boundary, _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn wants_all_rows(&self) -> bool {
        false
    }
}
