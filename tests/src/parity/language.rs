//! Language model from tokens to an answer, with every boundary compared in the ledger.

use anyhow::anyhow;
use candle_core::{Device, Tensor};
use protocol::event::Finish;
use protocol::message::Modality;
use protocol::stage::Stop;
use stage_llm::LanguageModel;
use stage_llm::job::steps::{Pace, Steps};
use stage_llm::job::voice::{Asked, Taken};
use stage_llm::language::cache::{MediaCache, VideoCache};
use stage_llm::language::observe::{Boundary, Observe};
use stage_llm::text::sample::Sampler;
use stage_llm::text::task::Generation;

use super::ledger::Ledger;
use super::towers::Fused;

/// Number of image or audio tokens per pass through the layers.
const CHUNK_ROWS: usize = 4096;

/// End of an answer: its end tokens and its limit.
#[derive(Clone, Copy, Debug)]
pub struct Ending<'a> {
    /// Tokens that end the answer; they are part of its ids.
    pub end_tokens: &'a [u32],
    /// Most tokens of the answer.
    pub max_new_tokens: usize,
}

/// Generated answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Token ids, the end token included.
    pub ids: Vec<u32>,
    /// Reason of its end.
    pub finish: Finish,
    /// Largest error of each step's logits, if the golden directory has all logits.
    pub errors: Vec<f32>,
}

/// Greedy answer to a prompt about a video.
///
/// # Errors
/// The model's.
pub fn answer(
    model: &LanguageModel,
    fused: &Fused,
    prompt: &[u32],
    ending: Ending<'_>,
    ledger: &mut Ledger<'_>,
) -> anyhow::Result<Answer> {
    let mut watcher = Watcher { ledger, totals: [0, 0], steps: Vec::new() };
    let video = read(model, fused, &mut watcher)?;
    let Ending { end_tokens, max_new_tokens } = ending;
    let mut steps = Steps::new(model, &video, end_tokens, Pace::of(model.device()));
    let greedy = Generation { max_new_tokens, temperature: 0.0, top_p: 1.0, seed: 0 };
    steps.begin(Asked { job: 0, question: 0 }, prompt, greedy, &mut watcher)?;
    let (mut ids, mut ended) = (Vec::new(), None);
    while ended.is_none() {
        for Taken { token, finish, .. } in steps.step(&mut watcher)? {
            ids.push(token.map_err(|e| anyhow!("{e}"))?);
            ended = finish;
        }
    }
    watcher.show_steps()?;
    let finish = ended.expect("the loop ends with it. This is a bug.");
    Ok(Answer { ids, finish, errors: Vec::new() })
}

/// Greedy choices of the model at every step of the given answer `along`, which is fed in their place.
///
/// # Errors
/// The model's.
pub fn follow(
    model: &LanguageModel,
    fused: &Fused,
    prompt: &[u32],
    along: &[u32],
    ending: Ending<'_>,
    ledger: &mut Ledger<'_>,
) -> anyhow::Result<Answer> {
    let golden = ledger.golden();
    let mut watcher = Watcher { ledger, totals: [0, 0], steps: Vec::new() };
    let video = read(model, fused, &mut watcher)?;
    let mut text = model.text_cache(prompt.len() + along.len())?;
    let mut logits = model.prefill(prompt, &mut text, &video, &mut watcher)?;
    let (mut ids, mut errors) = (Vec::new(), Vec::new());
    let mut sampler = Sampler::new(0.0, 1.0, 0);
    for (step, &id) in along.iter().enumerate() {
        watcher.see(Boundary::StepLogits(step), &logits)?;
        let values = logits.to_vec1::<f32>()?;
        ids.push(sampler.next(&values).map_err(|e| anyhow!("{e}"))?);
        if let Some(want) = golden.tensor("step_logits").filter(|s| s.stride == 1) {
            let want = &want.values[step * values.len()..(step + 1) * values.len()];
            errors.push(values.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max));
        }
        if step + 1 < along.len() {
            logits = model.decode(id, &mut text, &video)?;
        }
    }
    watcher.show_steps()?;
    let ended = ids.last().is_some_and(|id| ending.end_tokens.contains(id));
    Ok(Answer { ids, finish: if ended { Finish::Stop } else { Finish::Length }, errors })
}

/// Cache of the video's keys and values.
fn read(model: &LanguageModel, fused: &Fused, watcher: &mut Watcher<'_, '_>) -> anyhow::Result<VideoCache> {
    let mut video = VideoCache::default();
    for (modality, tokens) in [(Modality::Image, &fused.image), (Modality::Audio, &fused.audio)] {
        let Some(tokens) = tokens else { continue };
        // By way of the host, as between stages: the towers' device and the model's are two objects with a stream each, and nothing
        // orders the one after the other.
        let tokens = tokens.to_device(&Device::Cpu)?.to_device(model.device())?;
        let count = tokens.dim(0)?;
        let mut cache = MediaCache::new(model.geometry(), count as u64, model.device())?;
        cache.claim(0..count as u64);
        *match modality {
            Modality::Image => &mut video.image,
            Modality::Audio => &mut video.audio,
        } = Some(cache);
        watcher.totals[modality as usize] = count;
        for offset in (0..count).step_by(CHUNK_ROWS) {
            let rows = tokens.narrow(0, offset, CHUNK_ROWS.min(count - offset))?;
            model.absorb(modality, &rows, offset as u64, &video, watcher)?;
        }
    }
    Ok(video)
}

/// Reason why a stage stopped, as text.
pub fn told(stop: &Stop) -> String {
    match stop {
        Stop::Failed(error) => error.to_string(),
        Stop::Cancelled => "cancelled".to_owned(),
        Stop::Unavailable(why) => why.clone(),
    }
}

struct Watcher<'a, 'g> {
    ledger: &'a mut Ledger<'g>,
    /// Image and audio tokens.
    totals: [usize; 2],
    steps: Vec<Tensor>,
}

impl Watcher<'_, '_> {
    fn show_steps(&mut self) -> anyhow::Result<()> {
        let steps = Tensor::stack(&self.steps, 0)?; // [n, vocabulary]
        self.ledger.see("step_logits", steps.dims(), 0, &steps);
        Ok(())
    }
}

impl Observe for Watcher<'_, '_> {
    fn see(&mut self, at: Boundary, value: &Tensor) -> candle_core::Result<()> {
        let (name, first, rows) = match at {
            Boundary::TextHidden(layer) => (format!("text_hidden.{layer}"), 0, value.dims()[0]),
            Boundary::MediaHidden(modality, layer, first) => {
                (format!("{modality}_hidden.{layer}"), first, self.totals[modality as usize])
            }
            Boundary::TextFinalNorm => ("text_final_norm".to_owned(), 0, value.dims()[0]),
            Boundary::PrefillLogitsAll => ("prefill_logits_all".to_owned(), 0, value.dims()[0]),
            Boundary::StepLogits(step) => {
                if step == 0 {
                    self.ledger.see("prefill_logits", value.dims(), 0, value);
                }
                self.steps.push(value.clone());
                return Ok(());
            }
        };
        let shape = [&[rows], &value.dims()[1..]].concat();
        self.ledger.see(&name, &shape, first, value);
        Ok(())
    }
}
