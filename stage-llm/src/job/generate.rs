//! Generation of an answer, one token after another, until the model or the limit ends it.

use candle_core::Tensor;
use compute::failure::Failure;
use compute::transfer::Download;
use protocol::event::Finish;
use protocol::stage::Stop;

use crate::language::LanguageModel;
use crate::language::cache::{TextCache, VideoCache};
use crate::language::choose::first_largest;
use crate::language::observe::{Boundary, Observe};
use crate::text::sample::{Sampler, checked};

/// End of an answer: its end tokens and its limit.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    /// Tokens that end the answer; they are part of its ids.
    pub end_tokens: &'a [u32],
    /// Most tokens of the answer.
    pub max_new_tokens: usize,
}

/// Whether the next step begins before a token has come to the host. A device then computes without a pause; the step
/// after the last token is computed in vain. It requires a greedy choice, which the device makes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Next step after the token has come.
    InStep,
    /// Next step before the token has come.
    Ahead,
}

impl Pace {
    /// Faster pace for a model and a sampler: a CPU does not wait for another device.
    pub fn of(model: &LanguageModel, sampler: &Sampler) -> Self {
        if sampler.is_greedy() && model.device().is_cuda() { Pace::Ahead } else { Pace::InStep }
    }
}

/// Generates the answer to a prompt whose first logits are `logits`; `each` is called with every token as soon as it is
/// chosen.
///
/// # Errors
/// Errors of `each` and of the model.
#[expect(clippy::too_many_arguments, reason = "one answer's state, in use by one call")]
pub fn generate(
    model: &LanguageModel,
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

/// Answer that grows beside others about the same video.
pub struct Voice {
    /// Logits `[vocabulary]` after the prompt or the last token.
    pub logits: Tensor,
    /// Keys and values of prompt and answer.
    pub text: TextCache,
    /// Sampler of its tokens.
    pub sampler: Sampler,
    /// Most tokens of the answer.
    pub max_new_tokens: usize,
}

/// Generates several answers together, a token of each a step; an answer that has ended leaves, and its memory is free.
/// `each` is called with an answer's number and every token as soon as it is chosen.
///
/// # Errors
/// Errors of `each` and of the model.
pub fn generate_together(
    model: &LanguageModel,
    voices: Vec<Voice>,
    video: &VideoCache,
    end_tokens: &[u32],
    each: &mut dyn FnMut(usize, u32) -> Result<(), Stop>,
) -> Result<Vec<Finish>, Stop> {
    let mut finishes = vec![Finish::Length; voices.len()];
    let mut live: Vec<(usize, Voice)> = voices.into_iter().enumerate().collect();
    for written in 1.. {
        let mut ids = Vec::new();
        let mut next = Vec::new();
        for (at, mut voice) in live {
            let id = choice(&mut voice)?;
            each(at, id)?;
            if end_tokens.contains(&id) {
                finishes[at] = Finish::Stop;
            } else if written < voice.max_new_tokens {
                ids.push(id);
                next.push((at, voice));
            }
        }
        live = next;
        if live.is_empty() {
            break;
        }
        let mut texts: Vec<&mut TextCache> = live.iter_mut().map(|(_, voice)| &mut voice.text).collect();
        let logits = model.decode_each(&ids, &mut texts, video).map_err(Failure)?; // [live, vocabulary]
        for (row, (_, voice)) in live.iter_mut().enumerate() {
            voice.logits = logits.get(row).map_err(Failure)?;
        }
    }
    Ok(finishes)
}

/// Next token of an answer; a greedy one is chosen on the device.
fn choice(voice: &mut Voice) -> Result<u32, Stop> {
    if voice.sampler.is_greedy() {
        let id = first_largest(&voice.logits).and_then(|id| id.to_vec1::<u32>()).map_err(Failure)?;
        return Ok(checked(id[0])?);
    }
    Ok(voice.sampler.next(&voice.logits.to_vec1::<f32>().map_err(Failure)?)?)
}

/// Token of the largest logit, and the logits after it, whose computation begins before the token has come to the host.
fn ahead(
    model: &LanguageModel,
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
