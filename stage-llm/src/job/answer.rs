//! Stage that answers a job from start to end: check, plan, obtain the video's keys and values, answer.

use config::{ComputeConfig, KvPrecision, LlmConfig, WeightFormat};
use model::checkpoint::Weights;
use model::config_json::{Family, ModelConfig};
use protocol::error::{JobError, StageName};
use protocol::event::{Answer, Event, JobResult, Mode, ModelName, TimeRange};
use protocol::message::JobRequest;
use protocol::plan::FrameGrid;
use protocol::stage::{JobPort, Stop};

use crate::job::composite::{self, Found, Rule, titled};
use crate::job::fit::{Fit, host_bytes};
use crate::job::in_flight::{Job, here};
use crate::job::kept::{self, Kept, Video, VideoKey};
use crate::job::outcome::{self, Frame};
use crate::job::prefill::Prefill;
use crate::job::reply::Replies;
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
        Ok(LlmStage { model, grid, prompter, tasks, footprint, settings, kept: Kept::default() })
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
        let request = job.request;
        let asked = |duration_s| Work::new(&self.tasks, request, &self.prompter, duration_s).map_err(here);
        // What cannot be asked is refused before the file is looked at.
        let mut work = asked(0.0)?;

        // The video is probed even if it is kept: the file may have changed.
        let plan = job.media_plan(self.grid)?;
        if work.says_duration {
            work = asked(plan.duration_s)?;
        }
        let key = VideoKey::new(&plan, job.request);
        let fit = Fit {
            footprint: self.footprint,
            budget_bytes: self.settings.budget_bytes,
            gpu_bytes: self.settings.compute.card_bytes,
            host_bytes: host_bytes().map(|free| free + self.kept.bytes()),
            text_tokens: work.text_tokens() as u64,
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
                let prompt_tokens = work.prompt_tokens();
                let prefill = Prefill { model: &self.model, llm: &self.settings.llm, fit, prompt_tokens };
                let (plan, cache, pictures) = prefill.run(plan, mode, job)?;
                Video { key, plan, cache, pictures }
            }
        };
        let alone = if mode == Mode::Phases { fit.alone() } else { fit };
        let outcome = self.reply(&work, &video, alone, cached, job);
        // After a job in phases the encoders come back: a video that does not fit beside them is not kept.
        if self.settings.llm.keep_video && kept::is_sound(&outcome) && fit.leaves(video.cache.bytes()) {
            self.kept.put(video);
        }
        outcome
    }

    /// Reads the prompts and answers them.
    fn reply(
        &self,
        work: &Work<'_>,
        video: &Video,
        fit: Fit,
        cached: bool,
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
        let frame = |clock| Frame { request, work, video, cached, clock, model: self.model_name() };
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
