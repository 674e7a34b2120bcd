//! Stage that answers a job from start to end: check, plan, obtain the video's keys and values, answer.

use config::{ComputeConfig, KvPrecision, LlmConfig, WeightFormat};
use model::checkpoint::Weights;
use model::config_json::{Family, ModelConfig};
use protocol::error::{JobError, StageName};
use protocol::event::{Answer, Cached, JobResult, ModelName, TimeRange};
use protocol::message::JobRequest;
use protocol::plan::FrameGrid;
use protocol::stage::{JobPort, Stop};

use crate::job::composite::{self, Found, Rule, titled};
use crate::job::fit::{Fit, free_bytes};
use crate::job::in_flight::{Job, here};
use crate::job::kept::{self, Kept};
use crate::job::obtain::{Obtain, Obtained};
use crate::job::outcome::{self, Frame};
use crate::job::parked::{self, format::Identity};
use crate::job::reply::Replies;
use crate::job::video::Video;
use crate::job::work::{self, Work};
use crate::language::LanguageModel;
use crate::language::footprint::{HINT, LlmFootprint};
use crate::language::observe::Observe;
use crate::text::prompt::Prompter;
use crate::text::reading::Watched;
use crate::text::registry::Tasks;
use crate::text::task::RangeSource;

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
    /// [Fingerprint](config::ModelSource::fingerprint) of the checkpoint; without one no video is parked.
    pub fingerprint: String,
    /// [Fingerprint](config::fingerprint::of_file) of the file with quantized weights; empty without one.
    pub quantized_fingerprint: String,
}

/// Stage that owns the model and answers one job at a time.
pub struct LlmStage {
    model: LanguageModel,
    grid: FrameGrid,
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
    /// `does_not_fit` with the figures, before a byte is read; `bad_request` for a file of tasks that is wrong; `model` for
    /// a checkpoint that cannot be used.
    pub fn new(
        config: &ModelConfig,
        weights: &Weights,
        prompter: Prompter,
        mut settings: Settings,
    ) -> Result<Self, JobError> {
        settings.llm.end_tokens.get_or_insert_with(|| config.family.end_tokens().to_vec());
        let footprint = LlmFootprint::new(config, &settings.llm, &settings.compute)?;
        tracing::info!(
            text_token_bytes = footprint.text_token_bytes,
            media_token_bytes = footprint.media_token_bytes,
            budget_bytes = settings.budget_bytes,
            "loading the language model: {footprint}"
        );
        footprint.fixed.check(StageName::Llm, settings.budget_bytes, HINT)?;
        let tasks = Tasks::with_file(settings.llm.tasks_file.as_deref(), config.family)?;
        let model = LanguageModel::new(config, weights, &settings.llm, settings.compute.media_products)?;
        let grid = config.image_pool().grid();
        let name = model_name(&model, &settings);
        let kept = Kept::new(&settings.llm, parked_model(&model, &settings, name));
        Ok(LlmStage { model, grid, prompter, tasks, footprint, settings, kept })
    }

    /// Tokens that pass the layers together at most.
    pub fn step_tokens(&self) -> u64 {
        let llm = &self.settings.llm;
        llm.chunk_rows.max(llm.max_prompt_tokens) as u64
    }

    /// Language model of the stage.
    pub fn model(&self) -> &LanguageModel {
        &self.model
    }

    /// Tokenizer and chat template of the stage.
    pub fn prompter(&self) -> &Prompter {
        &self.prompter
    }

    /// Family of the model.
    pub fn family(&self) -> Family {
        self.tasks.family()
    }

    /// Videos that are kept for the next question.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Memory that the stage takes.
    pub fn footprint(&self) -> &LlmFootprint {
        &self.footprint
    }

    /// Answers a job: from the kept keys and values if its video is one that was answered about, else from its tokens, which
    /// the other stages are asked for. The caller adds the memory figures of the result.
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
        let request = job.request;
        let asked = |duration_s| Work::new(&self.tasks, request, &self.prompter, duration_s).map_err(here);
        // What cannot be asked is refused before the file is looked at.
        let mut work = asked(0.0)?;

        // The video is probed even if it is kept: the file may have changed.
        let plan = job.media_plan(self.grid)?;
        if work.says_duration {
            work = asked(plan.duration_s)?;
        }
        let fit = Fit {
            footprint: self.footprint,
            budget_bytes: self.settings.budget_bytes,
            gpu_bytes: self.settings.compute.card_bytes,
            host_bytes: free_bytes().map(|free| free + self.kept.bytes()),
            kept_bytes: 0,
            text_tokens: work.text_tokens() as u64,
        };
        let (llm, prompt_tokens) = (&self.settings.llm, work.prompt_tokens());
        let mut obtain = Obtain { model: &self.model, llm, kept: &mut self.kept, fit, prompt_tokens };
        let Obtained { video, cached, fit: beside } = obtain.run(plan, job)?;
        let outcome = self.reply(&work, &video, beside, cached, job);
        self.kept.put_back(video, fit, kept::is_sound(&outcome));
        outcome
    }

    /// Reads the prompts and answers them.
    fn reply(
        &self,
        work: &Work<'_>,
        video: &Video,
        fit: Fit,
        cached: Cached,
        job: &mut Job<'_>,
    ) -> Result<JobResult, Stop> {
        let replies = Replies {
            model: &self.model,
            prompter: &self.prompter,
            end_tokens: self.settings.llm.end_tokens.as_deref().unwrap_or_default(),
            fit,
            plan: &video.plan,
            video: &video.cache,
        };
        let watched = outcome::watched(job.request, video);
        let written = replies.write(&work.questions, work.several.then_some(0), 0, job)?;
        let mut answers: Vec<Answer> =
            work.questions.iter().zip(written).map(|(question, text)| outcome::read(question, text, watched)).collect();
        let request = job.request;
        let frame =
            |clock| Frame { request, work, video, cached, clock, model: model_name(&self.model, &self.settings) };
        let Some(source) = &work.task.ranges else { return Ok(frame(&job.clock).of_answers(answers)) };
        let (mut found, join_s) = ranges_of(source, &answers, video, watched, request);
        let ask = |r: &TimeRange| {
            let within = [r.start_s - watched.start_s, r.end_s - watched.start_s];
            work::title(work.task, within, request, &self.prompter).map_err(here)
        };
        let with_title = found.ranges.iter().filter(|_| work.task.has_titles());
        let questions = with_title.map(ask).collect::<Result<Vec<_>, Stop>>()?;
        let written = replies.write(&questions, Some(answers.len() as u32), work.prompt_tokens(), job)?;
        found.ranges = titled(found.ranges, written.iter().map(|title| title.text.as_str()));
        answers.extend(questions.iter().zip(written).map(|(question, text)| outcome::read(question, text, watched)));
        Ok(frame(&job.clock).of_ranges(found, answers, join_s))
    }
}

fn model_name(model: &LanguageModel, settings: &Settings) -> ModelName {
    let dtype = model.dtype().as_str();
    let weights = match settings.llm.weights {
        WeightFormat::Q8 => "q8",
        WeightFormat::Q4 => "q4",
        WeightFormat::Dense | WeightFormat::Bf16 | WeightFormat::F16 => dtype,
    };
    let kv = match settings.llm.kv {
        KvPrecision::Q8 => "q8",
        KvPrecision::Q4 => "q4",
        KvPrecision::Dense => dtype,
    };
    let [dtype, weights, kv] = [dtype, weights, kv].map(str::to_owned);
    ModelName { name: settings.name.clone(), dtype, weights, kv }
}

/// What the keys and values that are parked are of: all settings that change their numbers.
fn parked_model(model: &LanguageModel, settings: &Settings, name: ModelName) -> parked::Model {
    let identity = Identity {
        fingerprint: settings.fingerprint.clone(),
        quantized: settings.quantized_fingerprint.clone(),
        dtype: name.dtype.clone(),
        weights: name.weights.clone(),
        kv: name.kv.clone(),
        media_products: format!("{:?}", settings.compute.media_products).to_lowercase(),
        device: if model.device().is_cpu() { "cpu" } else { "cuda" }.to_owned(),
    };
    parked::Model { identity, name, geometry: *model.geometry(), device: model.device().clone() }
}

/// Ranges of a composite task, and the seconds that they could be apart to become one.
fn ranges_of(
    source: &RangeSource,
    answers: &[Answer],
    video: &Video,
    watched: Watched,
    request: &JobRequest,
) -> (Found, f64) {
    match source {
        RangeSource::Queries { join_s, largest_share, most, .. } => {
            let join_s = if request.join_s > 0.0 { request.join_s } else { *join_s };
            let rule = Rule { join_s, largest_share: *largest_share, most: *most };
            (composite::of_answers(answers, rule, watched), join_s)
        }
        RangeSource::Shots { min_s, most } => {
            let frames = video.plan.image.as_ref().map_or(0, |image| image.frames);
            (composite::of_pictures(&video.pictures, frames, *min_s, *most, watched), 0.0)
        }
    }
}
