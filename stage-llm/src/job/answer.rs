//! A job from start to end: check, plan, have the video's keys and values, answer.

use compute::failure::Failure;
use std::collections::BTreeMap;

use candle_core::Tensor;
use config::{ComputeConfig, KvPrecision, LlmConfig, WeightFormat};
use model::checkpoint::Weights;
use model::config_json::ModelConfig;
use protocol::error::{JobError, StageName};
use protocol::event::{Event, Finish, JobResult, Mode, ModelName};
use protocol::message::JobRequest;
use protocol::stage::{JobPort, Stop};

use crate::gemma::Gemma;
use crate::gemma::cache::{MediaCache, TextCache, VideoCache};
use crate::gemma::footprint::{HINT, LlmFootprint};
use crate::gemma::observe::Observe;
use crate::job::compact::compacted;
use crate::job::fit::{Fit, host_bytes};
use crate::job::generate::{Ending, Pace, generate};
use crate::job::in_flight::{Job, here};
use crate::job::kept::{self, Kept, Video, VideoKey};
use crate::job::prefill::Prefill;
use crate::text::detokenize::{Detokenizer, decode};
use crate::text::prompt::{Prompter, strip};
use crate::text::sample::Sampler;
use crate::text::task::{Task, Tasks};

/// How a worker is run.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The `[llm]` section.
    pub llm: LlmConfig,
    /// The `[compute]` section.
    pub compute: ComputeConfig,
    /// What the stage may hold, weights included; none without a cap.
    pub budget_bytes: Option<u64>,
    /// The checkpoint's name, for results.
    pub name: String,
}

/// The stage: owns the model and answers one job at a time.
pub struct LlmStage {
    model: Gemma,
    prompter: Prompter,
    tasks: Tasks,
    footprint: LlmFootprint,
    settings: Settings,
    kept: Kept,
}

impl LlmStage {
    /// Loads the model, once it is clear that it fits.
    ///
    /// # Errors
    /// `does_not_fit` with the figures, before a byte is read; `model` for a checkpoint that cannot be used.
    pub fn new(
        config: &ModelConfig,
        weights: &Weights,
        prompter: Prompter,
        settings: Settings,
    ) -> Result<Self, JobError> {
        let footprint = LlmFootprint::new(config, &settings.llm, &settings.compute)?;
        tracing::info!(
            text_token_bytes = footprint.text_token_bytes,
            media_token_bytes = footprint.media_token_bytes,
            budget_bytes = settings.budget_bytes,
            "the language model takes {footprint}"
        );
        footprint.fixed.check(StageName::Llm, settings.budget_bytes, HINT)?;
        let model = Gemma::new(config, weights, &settings.llm, settings.compute.media_products)?;
        Ok(LlmStage { model, prompter, tasks: Tasks::builtin(), footprint, settings, kept: Kept::default() })
    }

    /// The model.
    pub fn model(&self) -> &Gemma {
        &self.model
    }

    /// The tokenizer and the template.
    pub fn prompter(&self) -> &Prompter {
        &self.prompter
    }

    /// What the stage holds.
    pub fn footprint(&self) -> &LlmFootprint {
        &self.footprint
    }

    /// Answers a job: from the keys and values of its video if that is the last one answered about, else from its tokens,
    /// which the other stages are asked for. Memory figures of the result are the caller's to add.
    ///
    /// # Errors
    /// [`Stop::Failed`] with the job's error; the port's.
    pub fn answer(&mut self, request: &JobRequest, port: &mut dyn JobPort) -> Result<JobResult, Stop> {
        self.answer_observed(request, port, &mut ())
    }

    /// [`answer`](Self::answer), watched.
    ///
    /// # Errors
    /// As `answer`, and the watcher's.
    pub fn answer_observed(
        &mut self,
        request: &JobRequest,
        port: &mut dyn JobPort,
        observe: &mut dyn Observe,
    ) -> Result<JobResult, Stop> {
        let mut job = Job::new(request, port, observe);
        let outcome = self.answer_job(&mut job);
        job.return_card();
        outcome
    }

    fn answer_job(&mut self, job: &mut Job<'_>) -> Result<JobResult, Stop> {
        let task = self.tasks.get(&job.request.task).map_err(here)?;
        let prompt = self.prompter.encode(&task.question(&job.request.query).map_err(here)?).map_err(here)?;
        let question = Question { task, prompt };

        // Probed even if it is known: the file may have changed.
        let plan = job.plan()?;
        let key = VideoKey::new(&plan, job.request);
        let fit = Fit {
            footprint: self.footprint,
            budget_bytes: self.settings.budget_bytes,
            gpu_bytes: self.settings.compute.card_bytes,
            host_bytes: host_bytes().map(|free| free + self.kept.bytes()),
            text_tokens: question.text_tokens(job.request) as u64,
        };
        // Known, but too large beside this question's text: then it goes, and the job is planned as any other.
        let known = self.kept.find(key.as_ref()).filter(|video| fit.check(&video.plan, true).is_ok());
        let (mode, plan, cached) = match known {
            Some(video) => (Mode::Streaming, video.plan.clone(), true),
            None => (fit.mode(&plan).map_err(here)?, plan, false),
        };
        // From here on the video is this job's, or it is gone before anything else is allocated, here or in the encoders.
        let known = if cached { self.kept.take() } else { None };
        self.kept.release();
        job.port.event(Event::Planned { plan: plan.clone(), mode, cached })?;
        let video = match known {
            Some(video) => video,
            None => {
                let prompt_tokens = question.prompt.len() as u64;
                let prefill = Prefill { model: &self.model, llm: &self.settings.llm, fit, prompt_tokens };
                let (plan, cache) = prefill.run(plan, mode, job)?;
                Video { key, plan, cache }
            }
        };
        let outcome = self.reply(&question, &video, cached, job);
        // After a job in phases the encoders come back: what does not fit beside them is not theirs to make room for.
        if self.settings.llm.keep_video && kept::is_sound(&outcome) && fit.leaves(video.cache.bytes()) {
            self.kept.put(video);
        }
        outcome
    }

    /// Reads the prompt, and answers it.
    fn reply(
        &self,
        question: &Question<'_>,
        video: &Video,
        cached: bool,
        job: &mut Job<'_>,
    ) -> Result<JobResult, Stop> {
        let room = question.text_tokens(job.request);
        let read = || {
            let mut text = self.model.text_cache(room)?;
            let logits = self.model.prefill(&question.prompt, &mut text, &video.cache, job.observe)?;
            Ok((text, logits))
        };
        let (mut text, logits) = compacted(read).map_err(|e| here(Failure(e).into()))?;
        let media: u64 = video.cache.halves().map(MediaCache::tokens).sum();
        let total = media + question.prompt.len() as u64;
        job.progress.tell(job.port, total, total)?;

        let answer = self.write(logits, &mut text, &video.cache, job)?;
        let whole_text = decode(self.prompter.tokenizer(), &answer.ids).map_err(here)?;
        let whole_text = strip(&whole_text);
        let start_s = job.request.span.map_or(0.0, |[start, _]| start);
        let plan = video.plan.clone();
        Ok(JobResult {
            text: whole_text.to_owned(),
            ranges: question.task.ranges(whole_text, plan.duration_s, start_s),
            timings: job.clock.timings(answer.ids.len()),
            token_ids: answer.ids,
            finish: answer.finish,
            plan,
            cached,
            memory: BTreeMap::new(),
            model: self.model_name(),
        })
    }

    /// Generates the answer and sends its text on as it grows.
    fn write(
        &self,
        logits: Tensor,
        text: &mut TextCache,
        video: &VideoCache,
        job: &mut Job<'_>,
    ) -> Result<Answer, Stop> {
        let Job { request, port, observe, clock, .. } = job;
        let ending = Ending { end_tokens: &self.settings.llm.end_tokens, max_new_tokens: new_tokens(request) };
        let mut sampler = Sampler::new(request.temperature, request.top_p, request.seed);
        let pace = Pace::of(&self.model, &sampler);
        let mut detokenizer = Detokenizer::new(self.prompter.tokenizer());
        let mut ids = Vec::new();
        let finish = generate(&self.model, logits, text, video, &mut sampler, pace, ending, *observe, &mut |id| {
            clock.token();
            ids.push(id);
            let delta = detokenizer.push(id).map_err(here)?;
            send(*port, delta)?;
            if port.cancelled() { Err(Stop::Cancelled) } else { Ok(()) }
        })?;
        send(*port, detokenizer.flush().map_err(here)?)?;
        Ok(Answer { ids, finish })
    }

    fn model_name(&self) -> ModelName {
        let dtype = self.model.dtype().as_str();
        let weights = match self.settings.llm.weights {
            WeightFormat::Q8 => "q8",
            WeightFormat::Q4 => "q4",
            WeightFormat::Dense | WeightFormat::Bf16 | WeightFormat::F16 => dtype,
        };
        let kv = match self.settings.llm.kv {
            KvPrecision::Q8 => "q8",
            KvPrecision::Q4 => "q4",
            KvPrecision::Dense => dtype,
        };
        let [dtype, weights, kv] = [dtype, weights, kv].map(str::to_owned);
        ModelName { name: self.settings.name.clone(), dtype, weights, kv }
    }
}

/// A job's question as the model reads it.
struct Question<'a> {
    task: &'a Task,
    prompt: Vec<u32>,
}

impl Question<'_> {
    /// Prompt and answer, at most.
    fn text_tokens(&self, request: &JobRequest) -> usize {
        self.prompt.len() + new_tokens(request)
    }
}

struct Answer {
    ids: Vec<u32>,
    finish: Finish,
}

/// Tokens of an answer at most.
fn new_tokens(request: &JobRequest) -> usize {
    request.max_new_tokens.max(1) as usize
}

fn send(port: &mut dyn JobPort, delta: String) -> Result<(), Stop> {
    if delta.is_empty() { Ok(()) } else { port.event(Event::Text { delta }) }
}
