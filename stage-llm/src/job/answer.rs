//! Stage that answers jobs from start to end: check, plan, obtain the video's keys and values, answer.

use model::checkpoint::Weights;
use model::config_json::{Family, ModelConfig};
use protocol::error::{JobError, StageName};
use protocol::event::JobResult;
use protocol::message::JobRequest;
use protocol::stage::{Beside, JobPort, KeptVideo, OwnedJob, Stop};

use crate::job::batch::{Batch, Last};
use crate::job::clock::{Clock, Progress};
use crate::job::fit::{Fit, free_bytes};
use crate::job::in_flight::{Job, here};
use crate::job::kept::Kept;
use crate::job::member::Member;
use crate::job::obtain::{Obtain, Obtained};
use crate::job::owned::{Jobs, Owned};
use crate::job::parts::Parts;
use crate::job::video::Video;
use crate::language::LanguageModel;
use crate::language::footprint::{HINT, LlmFootprint};
use crate::text::prompt::Prompter;
use crate::text::registry::Tasks;

pub use crate::job::parts::Settings;

/// Stage that owns the model and answers jobs: one at a time, and beside it those about the same video.
pub struct LlmStage {
    parts: Parts,
    kept: Kept,
    /// Videos that were said to be kept.
    told: Vec<KeptVideo>,
}

/// Job whose video is there.
struct Begun<'a> {
    member: Member<'a>,
    video: Video,
    /// Memory that the job may hold, what is kept included.
    fit: Fit,
    /// Memory that answers may take beside what is still kept.
    beside: Fit,
}

/// A job without others beside it.
#[derive(Default)]
struct Alone(Option<Result<JobResult, Stop>>);

impl<P> Beside<P> for Alone {
    fn next(&mut self, _: &JobRequest) -> Option<OwnedJob<P>> {
        None
    }

    fn decline(&mut self, _: OwnedJob<P>) {}

    fn end(&mut self, _: OwnedJob<P>, outcome: Result<JobResult, Stop>) {
        self.0 = Some(outcome);
    }

    fn keeps(&mut self, _: Vec<KeptVideo>) {}
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
        let parts = Parts { model, grid, prompter, tasks, footprint, settings };
        let kept = Kept::new(&parts.settings.llm, parts.parked_model());
        Ok(LlmStage { parts, kept, told: Vec::new() })
    }

    /// Tokens that pass the layers together at most.
    pub fn step_tokens(&self) -> u64 {
        let llm = &self.parts.settings.llm;
        (llm.max_prompt_tokens as u64).max(self.parts.footprint.passes.most())
    }

    /// Language model of the stage.
    pub fn model(&self) -> &LanguageModel {
        &self.parts.model
    }

    /// Tokenizer and chat template of the stage.
    pub fn prompter(&self) -> &Prompter {
        &self.parts.prompter
    }

    /// Family of the model.
    pub fn family(&self) -> Family {
        self.parts.tasks.family()
    }

    /// Tasks that it answers.
    pub fn tasks(&self) -> &Tasks {
        &self.parts.tasks
    }

    /// Videos that are kept for the next question.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Memory that the stage takes.
    pub fn footprint(&self) -> &LlmFootprint {
        &self.parts.footprint
    }

    /// Answers a job that nothing comes beside, as [`answer_with`](Self::answer_with) does.
    ///
    /// # Errors
    /// [`Stop::Failed`] with the job's error; errors of the port.
    pub fn answer(&mut self, request: &JobRequest, port: &mut dyn JobPort) -> Result<JobResult, Stop> {
        let mut alone = Alone::default();
        self.answer_with(OwnedJob { request: request.clone(), port }, &mut alone);
        alone.0.expect("every job that is handed over ends. This is a bug.")
    }

    /// Answers a job: from the kept keys and values if its video is one that was answered about, else from its tokens, which the
    /// other stages are asked for; and beside it the jobs about the same video that come meanwhile. Every one of them was ended
    /// or declined when this returns. Whoever hears of a result adds its memory figures.
    pub fn answer_with<P: JobPort>(&mut self, first: OwnedJob<P>, beside: &mut dyn Beside<P>) {
        self.serve(Owned::<P>::FIRST, &mut Owned::new(first, beside));
    }

    fn serve(&mut self, first: u64, jobs: &mut dyn Jobs) {
        let mut has_gpu = false;
        let (last, outcome) = match self.parts.begin(first, jobs, &mut self.kept, &mut has_gpu) {
            Err(stop) => (first, Err(stop)),
            Ok(Begun { member, video, fit, beside }) => {
                // It is nobody else's meanwhile, and yet the one to come here for.
                let mut names = self.kept.names();
                if self.parts.settings.llm.keep_video {
                    names.retain(|name| *name != video.asked);
                    names.insert(0, video.asked.clone());
                }
                tell(&mut self.told, names, jobs);
                let batch = Batch::new(&self.parts, jobs, &mut self.kept, &video, beside, member);
                let Last { number, outcome, is_sound } = batch.run();
                self.kept.put_back(video, fit, is_sound);
                (number, outcome)
            }
        };
        tell(&mut self.told, self.kept.names(), jobs);
        if has_gpu {
            // By now no job holds memory; the pool returns it, so that the encoders can have it.
            compute::trim();
            jobs.job(last).1.return_gpu();
        }
        jobs.end(last, outcome);
    }
}

/// Says which videos are kept, if those are others than were `told`.
fn tell(told: &mut Vec<KeptVideo>, names: Vec<KeptVideo>, jobs: &mut dyn Jobs) {
    if *told != names {
        told.clone_from(&names);
        jobs.keeps(names);
    }
}

impl Parts {
    /// Plans a job and obtains its video; `has_gpu` says, also after an error, whether the encoders were told to leave.
    fn begin(&self, number: u64, jobs: &mut dyn Jobs, kept: &mut Kept, has_gpu: &mut bool) -> Result<Begun<'_>, Stop> {
        let (mut clock, mut progress) = (Clock::start(), Progress::default());
        let (request, port) = jobs.job(number);
        let request = request.clone();
        // What cannot be asked is refused before the file is looked at.
        let mut work = self.work(&request, 0.0).map_err(here)?;
        let job = &mut Job { request: &request, port, clock: &mut clock, progress: &mut progress, has_gpu };

        // The video is probed even if it is kept: the file may have changed.
        let plan = job.media_plan(self.grid)?;
        if work.says_duration {
            work = self.work(&request, plan.duration_s).map_err(here)?;
        }
        let fit = Fit {
            footprint: self.footprint,
            budget_bytes: self.settings.budget_bytes,
            gpu_bytes: self.settings.compute.card_bytes,
            host_bytes: free_bytes().map(|free| free + kept.bytes()),
            kept_bytes: 0,
            text_tokens: work.text_tokens() as u64,
        };
        let prompt_tokens = work.prompt_tokens();
        let mut obtain = Obtain { model: &self.model, kept, fit, prompt_tokens };
        let Obtained { video, cached, fit: beside } = obtain.run(plan, job)?;
        let member = Member::new(number, request, work, clock, progress, cached);
        Ok(Begun { member, video, fit, beside })
    }
}
