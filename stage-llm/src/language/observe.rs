//! Values of the model at the boundaries that the oracle records, shown to an observer that compares the two.

use candle_core::{Result, Tensor};
use protocol::message::Modality;

/// Boundary in the model whose value the oracle records (tests/oracle/README.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary {
    /// `text_hidden.{layer}` `[L, D]`: the prompt at the input of a layer; the number of layers means after the last.
    TextHidden(usize),
    /// `image_hidden.{layer}` or `audio_hidden.{layer}` `[n, D]`, from token `offset` on, for each run of each pass.
    MediaHidden(Modality, usize, u64),
    /// `text_final_norm` `[L, D]`.
    TextFinalNorm,
    /// `prefill_logits_all` `[L, vocabulary]`.
    PrefillLogitsAll,
    /// Row k of `step_logits` `[vocabulary]`: the logits that token k of the answer is chosen from; row 0 is
    /// `prefill_logits`.
    StepLogits(usize),
}

/// Observer of the model. `()` observes nothing, and costs nothing.
pub trait Observe {
    /// Takes the value at a boundary.
    ///
    /// # Errors
    /// Errors of the observer; they end the job.
    fn see(&mut self, at: Boundary, value: &Tensor) -> Result<()>;

    /// Whether to compute the boundaries that only an observer needs: norm and logits of every prompt position.
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
