//! One token after another, until the model or the limit ends it.

use candle_core::Tensor;
use compute::failure::Failure;
use compute::transfer::Download;
use protocol::event::Finish;
use protocol::stage::Stop;

use crate::gemma::Gemma;
use crate::gemma::cache::{TextCache, VideoCache};
use crate::gemma::choose::first_largest;
use crate::gemma::observe::{Boundary, Observe};
use crate::text::sample::{Sampler, checked};

/// When an answer ends.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    /// Tokens after which nothing follows; they are part of the answer's ids.
    pub end_tokens: &'a [u32],
    /// Tokens at most.
    pub max_new_tokens: usize,
}

/// Whether the next step begins before a token has come to the host. A device then computes without a pause; what it
/// computes after the last token is thrown away. It takes a greedy choice, which the device makes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The token first.
    InStep,
    /// One step ahead.
    Ahead,
}

impl Pace {
    /// The faster one: a CPU has no other side to wait for.
    pub fn of(model: &Gemma, sampler: &Sampler) -> Self {
        if sampler.is_greedy() && model.device().is_cuda() { Pace::Ahead } else { Pace::InStep }
    }
}

/// Answers a prompt, whose first logits are `logits`; `each` sees every token as soon as it is chosen.
///
/// # Errors
/// `each`'s, or what went wrong in the model.
#[expect(clippy::too_many_arguments, reason = "one answer's state, in use by one call")]
pub fn generate(
    model: &Gemma,
    mut logits: Tensor,
    text: &mut TextCache,
    video: &VideoCache,
    sampler: &mut Sampler,
    pace: Pace,
    ending: Ending<'_>,
    observe: &mut dyn Observe,
    each: &mut dyn FnMut(u32) -> Result<(), Stop>,
) -> Result<Finish, Stop> {
    for step in 0.. {
        observe.see(Boundary::StepLogits(step), &logits).map_err(Failure)?;
        let last = step + 1 >= ending.max_new_tokens;
        let (id, next) = match pace {
            Pace::InStep => (sampler.next(&logits.to_vec1::<f32>().map_err(Failure)?)?, None),
            Pace::Ahead => ahead(model, &logits, text, video, last).map_err(Failure)?,
        };
        let id = checked(id)?;
        each(id)?;
        if ending.end_tokens.contains(&id) {
            return Ok(Finish::Stop);
        }
        if last {
            break;
        }
        logits = match next {
            Some(next) => next,
            None => model.decode(id, text, video).map_err(Failure)?,
        };
    }
    Ok(Finish::Length)
}

/// The largest logit's token, and the logits after it, begun before the token has come to the host.
fn ahead(
    model: &Gemma,
    logits: &Tensor,
    text: &mut TextCache,
    video: &VideoCache,
    last: bool,
) -> candle_core::Result<(u32, Option<Tensor>)> {
    let chosen = first_largest(logits)?; // [1]
    let id = Download::start(&chosen)?;
    let next = if last { None } else { Some(model.decode_from(&chosen, text, video)?) };
    Ok((id.wait_index()?, next))
}
