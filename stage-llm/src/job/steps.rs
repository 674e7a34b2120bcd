//! Steps in which several answers about one video grow together, a token of each a step.
//!
//! A token is *chosen* from the logits before it, *taken* by whoever asked, and *read* by the model in the next step. Between two
//! steps an answer may begin or go; the others never know.

use candle_core::{Device, Result, Tensor};
use compute::failure::{Failure, is_out_of_memory};
use compute::transfer::Download;
use protocol::error::JobError;
use protocol::event::Finish;

use crate::job::compact::{compacted, halved};
use crate::job::voice::{Asked, Taken, Voice, texts};
use crate::language::LanguageModel;
use crate::language::cache::VideoCache;
use crate::language::choose::first_largest;
use crate::language::observe::{Boundary, Observe};
use crate::text::sample::{Sampler, checked};
use crate::text::task::Generation;

/// Whether the next step begins before the tokens have come to the host. A device then computes without a pause; what a step
/// computes for an answer that had ended is in vain. It requires greedy choices, which the device makes itself: a step with any
/// other goes in step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Next step after the tokens have come.
    InStep,
    /// Next step before the tokens have come.
    Ahead,
}

impl Pace {
    /// Faster pace of a device: a CPU does not wait for another one.
    pub fn of(device: &Device) -> Self {
        if device.is_cuda() { Pace::Ahead } else { Pace::InStep }
    }
}

/// Tokens that were chosen and not taken, one of each of some answers.
struct Chosen {
    of: Vec<Asked>,
    tokens: Tokens,
    /// Logits `[answers, vocabulary]` that they were chosen from, for an observer.
    logits: Option<Tensor>,
}

enum Tokens {
    /// Chosen on the device, `[answers]` in u32, and on their way to the host.
    Coming(Tensor, Download),
    Here(Vec<std::result::Result<u32, JobError>>),
}

/// Answers about one video that grow together.
pub struct Steps<'a> {
    model: &'a LanguageModel,
    video: &'a VideoCache,
    end_tokens: &'a [u32],
    pace: Pace,
    /// Most answers of a step: fewer once there was no memory for more.
    most: usize,
    voices: Vec<Voice>,
    chosen: Vec<Chosen>,
}

impl<'a> Steps<'a> {
    /// No answers yet; each will end with one of `end_tokens`, or at its limit.
    pub fn new(model: &'a LanguageModel, video: &'a VideoCache, end_tokens: &'a [u32], pace: Pace) -> Self {
        Steps { model, video, end_tokens, pace, most: usize::MAX, voices: Vec::new(), chosen: Vec::new() }
    }

    /// Number of answers that grow.
    pub fn len(&self) -> usize {
        self.voices.len()
    }

    /// Whether no answer grows.
    pub fn is_empty(&self) -> bool {
        self.voices.is_empty()
    }

    /// Most answers that there is memory for, as far as is known.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Notes that there is no memory for more answers than there are.
    pub fn note_full(&mut self) {
        self.most = self.voices.len().max(1);
    }

    /// Tokens that the text of each answer may come to, its prompt included.
    pub fn capacities(&self) -> impl Iterator<Item = usize> {
        self.voices.iter().map(|voice| voice.text.capacity())
    }

    /// Jobs whose answers grow.
    pub fn jobs(&self) -> impl Iterator<Item = u64> {
        self.voices.iter().map(|voice| voice.asked.job)
    }

    /// Reads a prompt. The first token of its answer comes with the next step.
    ///
    /// # Errors
    /// The model's; then nothing has begun.
    pub fn begin(
        &mut self,
        asked: Asked,
        prompt: &[u32],
        generation: Generation,
        observe: &mut dyn Observe,
    ) -> Result<()> {
        let Generation { temperature, top_p, seed, max_new_tokens } = generation;
        let read = || {
            let mut text = self.model.text_cache(prompt.len() + max_new_tokens)?;
            let logits = self.model.prefill(prompt, &mut text, self.video, observe)?;
            Ok((text, logits))
        };
        let (text, logits) = compacted(read)?;
        let sampler = Sampler::new(temperature, top_p, seed);
        self.voices.push(Voice { asked, text, sampler, taken: 0, most: max_new_tokens, due: None });
        match self.choose(vec![asked], &logits.unsqueeze(0)?, observe.wants_all_rows()) {
            Ok(chosen) => self.chosen.push(chosen),
            Err(error) => {
                self.voices.pop();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Lets go of a job's answers. What was chosen for them is forgotten.
    pub fn leave(&mut self, job: u64) {
        self.voices.retain(|voice| voice.asked.job != job);
    }

    /// Next token of each answer; an answer that has ended is gone, and its memory is free. Where there is no memory for all of
    /// them, some have no token this time: they go on when others have ended. An answer for which there is none alone ends.
    ///
    /// # Errors
    /// The model's, of a step of all; the observer's.
    pub fn step(&mut self, observe: &mut dyn Observe) -> Result<Vec<Taken>> {
        let keep = observe.wants_all_rows();
        let mut all = self.read(keep)?;
        let next = self.run_ahead(keep)?;
        let ahead = next.is_some();
        for Chosen { of, tokens, logits } in std::mem::replace(&mut self.chosen, Vec::from_iter(next)) {
            for (row, (asked, token)) in of.into_iter().zip(tokens.wait()?).enumerate() {
                // It may have ended with the token before, or gone.
                let Some(at) = self.voices.iter().position(|voice| voice.asked == asked) else { continue };
                if let Some(logits) = &logits {
                    observe.see(Boundary::StepLogits(self.voices[at].taken), &logits.get(row)?)?;
                }
                all.push(self.take(at, token, ahead));
            }
        }
        Ok(all)
    }

    /// Takes the token of voice `at`, which the step that began `ahead` has read already.
    fn take(&mut self, at: usize, token: std::result::Result<u32, JobError>, ahead: bool) -> Taken {
        let voice = &mut self.voices[at];
        let finish = match &token {
            Ok(id) if self.end_tokens.contains(id) => Some(Finish::Stop),
            Ok(_) if !voice.goes_on() => Some(Finish::Length),
            _ => None,
        };
        voice.taken += 1;
        voice.due = token.as_ref().ok().copied().filter(|_| !ahead);
        let asked = voice.asked;
        if finish.is_some() || token.is_err() {
            self.voices.remove(at);
        }
        Taken { asked, token, finish }
    }

    /// Reads the tokens that were taken, of as many answers as there is memory for, and chooses those after them. Returns the
    /// end of an answer for which there was none alone.
    fn read(&mut self, keep: bool) -> Result<Vec<Taken>> {
        let due: Vec<(Asked, u32)> = self.voices.iter().filter_map(|v| Some((v.asked, v.due?))).collect();
        let Some(&(first, _)) = due.first() else { return Ok(Vec::new()) };
        let all = due.len().min(self.most);
        let step = |n: usize| -> Result<(Vec<Asked>, Tensor)> {
            let (of, ids): (Vec<Asked>, Vec<u32>) = due[..n].iter().copied().unzip();
            let mut texts = texts(&mut self.voices, &of);
            let logits = compacted(|| self.model.decode_each(&ids, &mut texts, self.video))?; // [n, vocabulary]
            Ok((of, logits))
        };
        let (of, logits) = match halved(all, step) {
            Ok(read) => read,
            Err(error) if is_out_of_memory(&error) => {
                self.voices.retain(|voice| voice.asked != first);
                return Ok(vec![Taken { asked: first, token: Err(Failure(error).into()), finish: None }]);
            }
            Err(error) => return Err(error),
        };
        if of.len() < all {
            tracing::warn!(answers = all, fewer = of.len(), "out of memory: fewer answers at once, the rest later");
            self.most = of.len();
        }
        self.voices.iter_mut().filter(|voice| of.contains(&voice.asked)).for_each(|voice| voice.due = None);
        let chosen = self.choose(of, &logits, keep)?;
        self.chosen.push(chosen);
        Ok(Vec::new())
    }

    /// Begins the step after the tokens that are on their way, if they are all that it takes.
    fn run_ahead(&mut self, keep: bool) -> Result<Option<Chosen>> {
        let ready = |voice: &Voice| voice.sampler.is_greedy() && voice.due.is_none();
        if self.pace == Pace::InStep || self.voices.len() > self.most || !self.voices.iter().all(ready) {
            return Ok(None);
        }
        let (mut of, mut ids) = (Vec::new(), Vec::new());
        for Chosen { of: these, tokens, .. } in &self.chosen {
            let Tokens::Coming(chosen, _) = tokens else { return Ok(None) };
            let going = |asked: &Asked| self.voices.iter().any(|voice| voice.asked == *asked && voice.goes_on());
            for (row, asked) in these.iter().enumerate().filter(|(_, asked)| going(asked)) {
                of.push(*asked);
                ids.push((chosen, row));
            }
        }
        let Some(ids) = rows(&ids)? else { return Ok(None) };
        let mut texts = texts(&mut self.voices, &of);
        match compacted(|| self.model.decode_each_from(&ids, &mut texts, self.video)) {
            Ok(logits) => self.choose(of, &logits, keep).map(Some),
            // Once the tokens are here, the step is tried with fewer answers.
            Err(error) if is_out_of_memory(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Chooses a token of each of some answers from its row of logits `[answers, vocabulary]`.
    fn choose(&mut self, of: Vec<Asked>, logits: &Tensor, keep: bool) -> Result<Chosen> {
        let greedy = |asked: &Asked| self.voices.iter().any(|v| v.asked == *asked && v.sampler.is_greedy());
        let kept = keep.then(|| logits.clone());
        let largest = if of.iter().any(greedy) { Some(first_largest(logits)?) } else { None };
        if let Some(ids) = largest.as_ref().filter(|_| self.pace == Pace::Ahead && of.iter().all(greedy)) {
            let coming = Download::start(ids)?;
            return Ok(Chosen { of, tokens: Tokens::Coming(ids.clone(), coming), logits: kept });
        }
        let largest = largest.map(|ids| ids.to_vec1::<u32>()).transpose()?.unwrap_or_default();
        let mut tokens = Vec::new();
        for (row, asked) in of.iter().enumerate() {
            let voice = self.voices.iter_mut().find(|voice| voice.asked == *asked);
            let sampler = &mut voice.expect("a token is chosen for an answer that grows. This is a bug.").sampler;
            tokens.push(match largest.get(row) {
                Some(&id) if sampler.is_greedy() => checked(id),
                _ => sampler.next(&logits.get(row)?.to_vec1::<f32>()?),
            });
        }
        Ok(Chosen { of, tokens: Tokens::Here(tokens), logits: kept })
    }
}

impl Tokens {
    /// Tokens on the host, once they are there.
    fn wait(self) -> Result<Vec<std::result::Result<u32, JobError>>> {
        match self {
            Tokens::Coming(_, download) => Ok(download.wait_indices()?.into_iter().map(checked).collect()),
            Tokens::Here(tokens) => Ok(tokens),
        }
    }
}

/// Elements of vectors, as one vector in their order; none of no elements.
fn rows(picked: &[(&Tensor, usize)]) -> Result<Option<Tensor>> {
    let Some(&(first, _)) = picked.first() else { return Ok(None) };
    let is_whole = |(n, (tensor, row)): (usize, &(&Tensor, usize))| tensor.id() == first.id() && *row == n;
    if picked.len() == first.dim(0)? && picked.iter().enumerate().all(is_whole) {
        return Ok(Some(first.clone()));
    }
    let one = picked.iter().map(|(tensor, row)| tensor.narrow(0, *row, 1)).collect::<Result<Vec<Tensor>>>()?;
    Ok(Some(Tensor::cat(&one, 0)?))
}
