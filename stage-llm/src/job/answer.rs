//! Stage that answers a job from start to end: check, plan, obtain the video's keys and values, answer.

use std::collections::BTreeMap;

use candle_core::Tensor;
use compute::failure::Failure;
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

/// Settings of a worker.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Section `[llm]` of the configuration.
    pub llm: LlmConfig,
    /// Section `[compute]` of the configuration.
    pub compute: ComputeConfig,
    /// Most bytes that the stage may hold, weights included; none without a cap.
    pub budget_bytes: Option<u64>,
    /// Name of the checkpoint, for results.
    pub name: String,
}

/// Stage that owns the model and answers one job at a time.
pub struct LlmStage {
    model: Gemma,
    prompter: Prompter,
    tasks: Tasks,
    footprint: LlmFootprint,
    settings: Settings,
    kept: Kept,
}

impl LlmStage {
    /// Stage with its model loaded, once it is clear that it fits.
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
            "loading the language model: {footprint}"
        );
        footprint.fixed.check(StageName::Llm, settings.budget_bytes, HINT)?;
        let model = Gemma::new(config, weights, &settings.llm, settings.compute.media_products)?;
        Ok(LlmStage { model, prompter, tasks: Tasks::builtin(), footprint, settings, kept: Kept::default() })
    }

    /// Tokens that pass the layers together at most.
    pub fn step_tokens(&self) -> u64 {
        let llm = &self.settings.llm;
        llm.chunk_rows.max(llm.max_prompt_tokens) as u64
    }

    /// Language model of the stage.
    pub fn model(&self) -> &Gemma {
        &self.model
    }

    /// Tokenizer and chat template of the stage.
    pub fn prompter(&self) -> &Prompter {
        &self.prompter
    }

    /// Memory that the stage takes.
    pub fn footprint(&self) -> &LlmFootprint {
        &self.footprint
    }

    /// Answers a job: from the kept keys and values if its video is the last one that was answered about, else from its
    /// tokens, which the other stages are asked for. The caller adds the memory figures of the result.
    ///
    /// # Errors
    /// [`Stop::Failed`] with the job's error; errors of the port.
    pub fn answer(&mut self, request: &JobRequest, port: &mut dyn JobPort) -> Result<JobResult, Stop> {
        self.answer_observed(request, port, &mut ())
    }

    /// [`answer`](Self::answer) with an observer of the model.
    ///
    /// # Errors
    /// As `answer`, and errors of the observer.
    pub fn answer_observed(
        &mut self,
        request: &JobRequest,
        port: &mut dyn JobPort,
        observe: &mut dyn Observe,
    ) -> Result<JobResult, Stop> {
        let mut job = Job::new(request, port, observe);
        let outcome = self.answer_job(&mut job);
        job.return_gpu();
        outcome
    }

    fn answer_job(&mut self, job: &mut Job<'_>) -> Result<JobResult, Stop> {
        let task = self.tasks.get(&job.request.task).map_err(here)?;
        let prompt = self.prompter.encode(&task.question(&job.request.query).map_err(here)?).map_err(here)?;
        let question = Question { task, prompt };

        // The video is probed even if it is kept: the file may have changed.
        let plan = job.media_plan()?;
        let key = VideoKey::new(&plan, job.request);
        let fit = Fit {
            footprint: self.footprint,
            budget_bytes: self.settings.budget_bytes,
            gpu_bytes: self.settings.compute.card_bytes,
            host_bytes: host_bytes().map(|free| free + self.kept.bytes()),
            text_tokens: question.text_tokens(job.request) as u64,
        };
        // A kept video that is too large beside this question's text is released, and the job is planned as any other.
        let known = self.kept.find(key.as_ref()).filter(|video| fit.check(&video.plan, true).is_ok());
        let (mode, plan, cached) = match known {
            Some(video) => (Mode::Streaming, video.plan.clone(), true),
            None => (fit.mode(&plan).map_err(here)?, plan, false),
        };
        // From here on the kept video is this job's, or it is released before anything else is allocated, here or in
        // the encoders.
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
        // After a job in phases the encoders come back: a video that does not fit beside them is not kept.
        if self.settings.llm.keep_video && kept::is_sound(&outcome) && fit.leaves(video.cache.bytes()) {
            self.kept.put(video);
        }
        outcome
    }

    /// Reads the prompt and answers it.
    fn reply(
        &self,
        question: &Question<'_>,
        video: &Video,
        cached: bool,
        job: &mut Job<'_>,
    ) -> Result<JobResult, Stop> {
        let capacity = question.text_tokens(job.request);
        let read = || {
            let mut text = self.model.text_cache(capacity)?;
            let logits = self.model.prefill(&question.prompt, &mut text, &video.cache, job.observe)?;
            Ok((text, logits))
        };
        let (mut text, logits) = compacted(read).map_err(|e| here(Failure(e).into()))?;
        let media: u64 = video.cache.present().map(MediaCache::tokens).sum();
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

    /// Generates the answer and sends its text as it grows.
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
        let mut told = Told::default();
        let finish = generate(&self.model, logits, text, video, &mut sampler, pace, ending, *observe, &mut |id| {
            clock.token();
            ids.push(id);
            let delta = detokenizer.push(id).map_err(here)?;
            told.tell(*port, delta)?;
            if port.cancelled() { Err(Stop::Cancelled) } else { Ok(()) }
        })?;
        told.tell(*port, detokenizer.flush().map_err(here)?)?;
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

/// Question of a job, as the model reads it.
struct Question<'a> {
    task: &'a Task,
    prompt: Vec<u32>,
}

impl Question<'_> {
    /// Most tokens of prompt and answer.
    fn text_tokens(&self, request: &JobRequest) -> usize {
        self.prompt.len() + new_tokens(request)
    }
}

struct Answer {
    ids: Vec<u32>,
    finish: Finish,
}

/// Most tokens of an answer.
fn new_tokens(request: &JobRequest) -> usize {
    request.max_new_tokens.max(1) as usize
}

/// The text of an answer that its client has been told.
#[derive(Default)]
struct Told {
    bytes: u64,
}

impl Told {
    /// Tells the client the next piece, and where in the answer it stands.
    fn tell(&mut self, port: &mut dyn JobPort, delta: String) -> Result<(), Stop> {
        if delta.is_empty() {
            return Ok(());
        }
        let at = self.bytes;
        self.bytes += delta.len() as u64;
        port.event(Event::Text { delta, at })
    }
}
