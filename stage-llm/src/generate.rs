//! One token after another, until the model or the limit ends it.

use common::error::JobError;
use common::event::Finish;
use common::stage::Stop;

use crate::cache::{TextCache, VideoCache};
use crate::gemma::Gemma;
use crate::observe::{Boundary, Observe};
use crate::sample::Sampler;

/// When an answer ends.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    /// Tokens after which nothing follows; they are part of the answer's ids.
    pub end_tokens: &'a [u32],
    /// Tokens at most.
    pub max_new_tokens: usize,
}

/// Answers a prompt, whose first logits are `logits`; `each` sees every token as soon as it is chosen.
///
/// # Errors
/// `each`'s, or what went wrong in the model.
#[expect(clippy::too_many_arguments, reason = "one answer's state, in use by one call")]
pub fn generate(
    model: &Gemma,
    mut logits: candle_core::Tensor,
    text: &mut TextCache,
    video: &VideoCache,
    sampler: &mut Sampler,
    ending: Ending<'_>,
    observe: &mut dyn Observe,
    each: &mut dyn FnMut(u32) -> Result<(), Stop>,
) -> Result<Finish, Stop> {
    for step in 0.. {
        observe.see(Boundary::StepLogits(step), &logits).map_err(JobError::from)?;
        let id = sampler.next(&logits.to_vec1::<f32>().map_err(JobError::from)?)?;
        each(id)?;
        if ending.end_tokens.contains(&id) {
            return Ok(Finish::Stop);
        }
        if step + 1 >= ending.max_new_tokens {
            break;
        }
        logits = model.decode(id, text, video).map_err(JobError::from)?;
    }
    Ok(Finish::Length)
}
