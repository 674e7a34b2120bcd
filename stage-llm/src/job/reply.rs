//! Replies to the questions of a job: prompts read, answers written, as many together as fit beside the video.

use candle_core::Tensor;
use compute::failure::Failure;
use protocol::event::{Event, Finish};
use protocol::plan::MediaPlan;
use protocol::stage::{JobPort, Stop};
use tokenizers::Tokenizer;

use crate::job::compact::compacted;
use crate::job::fit::Fit;
use crate::job::generate::{Ending, Pace, Voice, generate, generate_together};
use crate::job::in_flight::{Job, here};
use crate::job::work::Question;
use crate::language::LanguageModel;
use crate::language::cache::{MediaCache, TextCache, VideoCache};
use crate::text::chat::strip;
use crate::text::detokenize::{Detokenizer, decode};
use crate::text::prompt::Prompter;
use crate::text::sample::Sampler;
use crate::text::task::Generation;

/// Most answers that are written together: a step with more rows is no longer bound by reading the weights.
const MOST_TOGETHER: usize = 16;

/// Answer as the model wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Text without special tokens, stripped.
    pub text: String,
    /// Token ids, the end token included.
    pub token_ids: Vec<u32>,
    /// Reason for which it ended.
    pub finish: Finish,
}

/// Replies about one video.
pub struct Replies<'a> {
    /// Model.
    pub model: &'a LanguageModel,
    /// Tokenizer and chat template.
    pub prompter: &'a Prompter,
    /// Tokens that end an answer.
    pub end_tokens: &'a [u32],
    /// Memory that the job may hold.
    pub fit: Fit,
    /// Plan of the video, settled.
    pub plan: &'a MediaPlan,
    /// Keys and values of the video.
    pub video: &'a VideoCache,
}

impl Replies<'_> {
    /// Answers to questions, in their order. `first` is the number of the first one in events, none for a job with one
    /// question; `before` are the tokens of the prompts that were read before these, for its progress.
    ///
    /// # Errors
    /// `out_of_memory`; errors of the model and of the port.
    pub fn write(
        &self,
        questions: &[Question],
        first: Option<u32>,
        before: u64,
        job: &mut Job<'_>,
    ) -> Result<Vec<Written>, Stop> {
        let before = before + self.video.present().map(MediaCache::tokens).sum::<u64>();
        let total = before + questions.iter().map(|question| question.prompt.len() as u64).sum::<u64>();
        let mut read = before;
        let mut written = Vec::new();
        let mut rest = questions;
        while !rest.is_empty() {
            let (group, others) = rest.split_at(self.together(rest));
            let number = first.map(|first| first + written.len() as u32);
            if let [question] = group {
                let (text, logits) = self.read(question, question.text_tokens(), job)?;
                read += question.prompt.len() as u64;
                job.progress.tell(job.port, read, total)?;
                written.push(self.alone(question, logits, text, number, job)?);
            } else {
                let mut voices = Vec::new();
                for question in group {
                    if job.port.cancelled() {
                        return Err(Stop::Cancelled);
                    }
                    let (text, logits) = self.read(question, question.text_tokens(), job)?;
                    let Generation { temperature, top_p, seed, max_new_tokens } = question.generation;
                    voices.push(Voice {
                        logits,
                        text,
                        sampler: Sampler::new(temperature, top_p, seed),
                        max_new_tokens,
                    });
                    read += question.prompt.len() as u64;
                    job.progress.tell(job.port, read, total)?;
                }
                written.extend(self.group(voices, number.unwrap_or(0), job)?);
            }
            rest = others;
        }
        Ok(written)
    }

    /// Number of the first questions that may be answered together: the largest half of a half of them that fits.
    fn together(&self, questions: &[Question]) -> usize {
        let mut count = questions.len().min(MOST_TOGETHER);
        while count > 1
            && self.fit.texts(questions[..count].iter().map(Question::text_tokens)).check(self.plan, true).is_err()
        {
            count = count.div_ceil(2);
        }
        count
    }

    /// Reads a prompt; its text cache has a capacity of `capacity` tokens.
    fn read(&self, question: &Question, capacity: usize, job: &mut Job<'_>) -> Result<(TextCache, Tensor), Stop> {
        let read = || {
            let mut text = self.model.text_cache(capacity)?;
            let logits = self.model.prefill(&question.prompt, &mut text, self.video, job.observe)?;
            Ok((text, logits))
        };
        compacted(read).map_err(|e| here(Failure(e).into()))
    }

    /// Generates one answer and sends its text as it grows.
    fn alone(
        &self,
        question: &Question,
        logits: Tensor,
        mut text: TextCache,
        number: Option<u32>,
        job: &mut Job<'_>,
    ) -> Result<Written, Stop> {
        let Job { port, observe, clock, .. } = job;
        let Generation { temperature, top_p, seed, max_new_tokens } = question.generation;
        let ending = Ending { end_tokens: self.end_tokens, max_new_tokens };
        let mut sampler = Sampler::new(temperature, top_p, seed);
        let pace = Pace::of(self.model, &sampler);
        let mut told = Told::new(self.prompter.tokenizer(), number);
        let mut each = |id| {
            clock.token();
            told.token(*port, id)
        };
        let finish =
            generate(self.model, logits, &mut text, self.video, &mut sampler, pace, ending, *observe, &mut each)?;
        told.end(*port, finish)
    }

    /// Generates several answers together and sends their texts as they grow; `first` is the number of the first.
    fn group(&self, voices: Vec<Voice>, first: u32, job: &mut Job<'_>) -> Result<Vec<Written>, Stop> {
        let Job { port, clock, .. } = job;
        let tokenizer = self.prompter.tokenizer();
        let mut told: Vec<Told<'_>> =
            (0..voices.len() as u32).map(|at| Told::new(tokenizer, Some(first + at))).collect();
        let finishes = generate_together(self.model, voices, self.video, self.end_tokens, &mut |at, id| {
            clock.token();
            told[at].token(*port, id)
        })?;
        told.into_iter().zip(finishes).map(|(told, finish)| told.end(*port, finish)).collect()
    }
}

/// Answer that its client is told while it grows.
struct Told<'a> {
    tokenizer: &'a Tokenizer,
    detokenizer: Detokenizer<'a>,
    question: Option<u32>,
    ids: Vec<u32>,
    bytes: u64,
}

impl<'a> Told<'a> {
    fn new(tokenizer: &'a Tokenizer, question: Option<u32>) -> Self {
        Told { tokenizer, detokenizer: Detokenizer::new(tokenizer), question, ids: Vec::new(), bytes: 0 }
    }

    /// Takes the next token, and tells the text that it completes.
    fn token(&mut self, port: &mut dyn JobPort, id: u32) -> Result<(), Stop> {
        self.ids.push(id);
        let delta = self.detokenizer.push(id).map_err(here)?;
        self.tell(port, delta)?;
        if port.cancelled() { Err(Stop::Cancelled) } else { Ok(()) }
    }

    /// Tells the text that is left, and gives the whole.
    fn end(mut self, port: &mut dyn JobPort, finish: Finish) -> Result<Written, Stop> {
        let delta = self.detokenizer.flush().map_err(here)?;
        self.tell(port, delta)?;
        let text = decode(self.tokenizer, &self.ids).map_err(here)?;
        Ok(Written { text: strip(&text).to_owned(), token_ids: self.ids, finish })
    }

    /// Tells the client the next piece, and where in the answer it stands.
    fn tell(&mut self, port: &mut dyn JobPort, delta: String) -> Result<(), Stop> {
        if delta.is_empty() {
            return Ok(());
        }
        let (at, question) = (self.bytes, self.question);
        self.bytes += delta.len() as u64;
        port.event(Event::Text { delta, at, question })
    }
}
