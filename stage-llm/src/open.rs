//! Stage as a process serves it: the language model, loaded onto the configured device.

use std::sync::Arc;

use candle_core::Tensor;
use compute::Compute;
use compute::failure::Failure;
use compute::steps::Steps;
use config::Config;
use model::checkpoint::{Checkpoint, CheckpointError, Weights};
use model::config_json::ModelConfig;
use model::demo_model::tokenizer;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::Modality;
use protocol::stage::{Beside, JobPort, OwnedJob, Owner};

use crate::job::answer::{LlmStage, Settings};
use crate::language::LanguageModel;
use crate::language::cache::{MediaCache, VideoCache};
use crate::language::choose::first_largest;
use crate::language::chunk::Chunk;
use crate::language::footprint::{HINT, LlmFootprint};
use crate::text::chat::ChatTemplate;
use crate::text::prompt::Prompter;

/// Number of tokens of the cache that a model is warmed up with.
const WARM_TOKENS: u64 = 256;

/// Opens the stage that the configuration describes.
///
/// # Errors
/// `does_not_fit` with the figures; `model`, naming the file or tensor that is missing, misshapen or cut short.
pub fn open(config: &Config) -> Result<LlmStage, JobError> {
    let checkpoint = Arc::new(Checkpoint::configured(&config.model)?);
    if let Some(warning) = checkpoint.config().end_tokens_warning(config.llm.end_tokens.as_deref()) {
        tracing::warn!("{warning}");
    }
    let footprint = LlmFootprint::new(checkpoint.config(), &config.llm, &config.compute)?;
    let budget = config.budget(StageName::Llm);
    footprint.fixed.check(StageName::Llm, budget, HINT)?;
    // In phases the stage has the GPU to itself, so the cap is the GPU's; `Fit` keeps it within its budget beside the
    // encoders.
    let compute = Compute::open(&config.compute, config.compute.card_bytes.or(budget))?;
    compute.refuse_if_wrong(crate::language::kernels::check::check)?;
    let mut steps = Steps::default();
    let weights = Weights::new(checkpoint.clone(), compute.dtype, compute.device);
    let parks = config.llm.park_dir.is_some();
    let settings = Settings {
        llm: config.llm.clone(),
        compute: config.compute.clone(),
        budget_bytes: config.budget(StageName::Llm),
        name: config.model.name(),
        pace: None,
        fingerprint: if parks { fingerprint(config.model.fingerprint())? } else { String::new() },
        quantized_fingerprint: match config.llm.quantized.as_deref().filter(|_| parks) {
            Some(file) => fingerprint(config::fingerprint::of_file(file))?,
            None => String::new(),
        },
    };
    let prompter = prompter(config, checkpoint.config())?;
    let stage = LlmStage::new(checkpoint.config(), &weights, prompter, settings)?;
    steps.ended("weights loaded");
    if config.compute.cuda_ordinal().is_some() {
        warm_up(stage.model(), config.llm.chunk_rows).map_err(Failure)?;
        steps.ended("warmed up");
    }
    Ok(stage)
}

/// Fingerprint of what parked videos are of.
fn fingerprint(outcome: Result<String, String>) -> Result<String, JobError> {
    outcome.map_err(|e| JobError::new(ErrorKind::Model, format!("fingerprint of the model, for llm.park_dir: {e}")))
}

/// Prompter with the tokenizer and chat template of the weights: the checkpoint's files, or the demo model's tokenizer and the
/// base model's template where there are none.
fn prompter(config: &Config, model: &ModelConfig) -> Result<Prompter, CheckpointError> {
    let (dir, limit, family) = (&config.model.dir, config.llm.max_prompt_tokens, model.family);
    let prompter = match config.model.weights {
        None => Prompter::open(dir, family, model.vocab_size, limit)?,
        Some(_) => {
            let json = tokenizer::json(family, model.vocab_size as u64);
            let template = ChatTemplate::built_in(family);
            Prompter::parse(&json, "tokenizer.json".as_ref(), template, model.vocab_size, limit)?
        }
    };
    tracing::info!(chat_template = %prompter.template().origin(), model = family.name(), "prompts are made");
    Ok(prompter)
}

/// Warms the model up with a full pass of image tokens that are all zero, and a few steps of text: a GPU then has
/// loaded its kernels, and its memory has grown to that of a pass, before the first question.
fn warm_up(model: &LanguageModel, chunk_rows: usize) -> candle_core::Result<()> {
    let tokens = Tensor::zeros((chunk_rows.max(1), model.hidden_size()), model.dtype(), model.device())?;
    // All rows are written to the same few tokens of a cache.
    let mut image = MediaCache::new(model.geometry(), WARM_TOKENS, model.device())?;
    image.claim(0..WARM_TOKENS);
    let video = VideoCache { image: Some(image), audio: None };
    let chunks: Vec<Chunk> = (0..tokens.dim(0)?)
        .step_by(WARM_TOKENS as usize)
        .map(|first| {
            let rows = (tokens.dim(0)? - first).min(WARM_TOKENS as usize);
            Ok(Chunk { modality: Modality::Image, offset: 0, tokens: tokens.narrow(0, first, rows)? })
        })
        .collect::<candle_core::Result<_>>()?;
    model.absorb_all(&chunks, &video, &mut ())?;
    let mut text = model.text_cache(8)?;
    let logits = model.prefill(&[0, 1, 2], &mut text, &video, &mut ())?;
    let id = first_largest(&logits)?;
    first_largest(&model.decode_from(&id, &mut text, &video)?)?.to_vec1::<u32>()?;
    Ok(())
}

impl Owner for LlmStage {
    fn answer<P: JobPort>(&mut self, job: OwnedJob<P>, beside: &mut dyn Beside<P>) {
        self.answer_with(job, beside);
    }

    fn step_tokens(&self) -> u64 {
        LlmStage::step_tokens(self)
    }

    fn family(&self) -> &str {
        LlmStage::family(self).as_str()
    }

    fn tasks(&self) -> Vec<String> {
        LlmStage::tasks(self).iter().map(|task| task.name.clone()).collect()
    }

    fn kept(&self) -> (usize, usize) {
        LlmStage::kept(self).counts()
    }

    fn token_bytes(&self) -> u64 {
        (self.model().hidden_size() * self.model().dtype().size_in_bytes()) as u64
    }
}
