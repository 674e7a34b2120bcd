//! A job from start to end: check, plan, ask for tokens, take them, answer.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use candle_core::Tensor;
use common::checkpoint::Weights;
use common::compute::transfer::Marker;
use common::config::{ComputeConfig, KvPrecision, LlmConfig, WeightFormat};
use common::error::{ErrorKind, JobError, StageName};
use common::event::{Event, Finish, JobResult, Mode, ModelName};
use common::message::{DecodeRequest, JobRequest, Segment, TokenBatch};
use common::model::ModelConfig;
use common::plan::MediaPlan;
use common::stage::{JobPort, Stop};
use common::wire::VERSION;

use crate::admission::{Admission, Footprint, HINT};
use crate::cache::TextCache;
use crate::clock::{Clock, Progress};
use crate::detokenize::{Detokenizer, decode};
use crate::gemma::Gemma;
use crate::generate::{Ending, Pace, generate};
use crate::intake::{Chunk, Intake};
use crate::observe::Observe;
use crate::parked::Parked;
use crate::prompt::{Prompter, strip};
use crate::sample::Sampler;
use crate::task::Tasks;

/// A pass through the layers takes at least this share of the tokens that are still to come, ...
const LEFT_SHARE: usize = 4;
/// ... or as many rows, of which a pass takes little longer than of one: reading the weights is most of it.
const FEWEST_ROWS: usize = 512;
/// Passes that a device may be given before it has begun with them: one is enough for it never to wait for the host, and
/// few enough that a cancelled job's work is soon over.
const AHEAD: usize = 1;

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
    footprint: Footprint,
    settings: Settings,
}

impl LlmStage {
    /// Loads the model, once it is clear that it fits.
    ///
    /// # Errors
    /// `does_not_fit` with the figures, before a byte is read; `model` for a checkpoint that cannot be used.
    pub fn new(
        config: &ModelConfig,
        weights: &Weights,
        tokenizer: &Path,
        settings: Settings,
    ) -> Result<Self, JobError> {
        let footprint = Footprint::new(config, &settings.llm, &settings.compute)?;
        tracing::info!(
            text_token_bytes = footprint.text_token_bytes,
            media_token_bytes = footprint.media_token_bytes,
            budget_bytes = settings.budget_bytes,
            "the language model takes {footprint}"
        );
        footprint.fixed.check(StageName::Llm, settings.budget_bytes, HINT)?;
        let prompter = Prompter::open(tokenizer, config.vocab_size, settings.llm.max_prompt_tokens)?;
        let model = Gemma::new(config, weights, &settings.llm)?;
        Ok(LlmStage { model, prompter, tasks: Tasks::builtin(), footprint, settings })
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
    pub fn footprint(&self) -> &Footprint {
        &self.footprint
    }

    /// Answers a job. Memory figures of the result are the caller's to add.
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
        let mut in_phases = false;
        let outcome = self.answer_in_phases_or_not(request, port, observe, &mut in_phases);
        if in_phases {
            // The job's memory is free by now; the encoders can only have what the pool gives back.
            common::compute::trim();
            port.return_card();
        }
        outcome
    }

    fn answer_in_phases_or_not(
        &mut self,
        request: &JobRequest,
        port: &mut dyn JobPort,
        observe: &mut dyn Observe,
        in_phases: &mut bool,
    ) -> Result<JobResult, Stop> {
        let mut clock = Clock::start();
        let task = self.tasks.get(&request.task).map_err(here)?;
        let prompt = self.prompter.encode(&task.question(&request.query).map_err(here)?).map_err(here)?;
        let max_new_tokens = request.max_new_tokens.max(1) as usize;
        let text_tokens = prompt.len() + max_new_tokens;

        let info = clock.waiting(|| port.probe(&request.video))?;
        let plan = MediaPlan::new(&info, request.span, request.fps).map_err(here)?;
        let admission = Admission {
            footprint: self.footprint,
            budget_bytes: self.settings.budget_bytes,
            card_bytes: self.settings.compute.card_bytes,
            text_tokens: text_tokens as u64,
        };
        let chunk_rows = self.settings.llm.chunk_rows;
        let mode = admission.mode(&plan).map_err(here)?;
        port.event(Event::Planned { plan: plan.clone(), mode, cached: false })?;
        port.request_decode(whole(request, plan.clone()))?;
        let admission = match mode {
            Mode::Streaming => admission,
            Mode::Phases => {
                park(&plan, port, &mut clock)?;
                *in_phases = true;
                port.take_card()?;
                port.rewind_tokens();
                admission.alone()
            }
        };
        let mut intake = Intake::new(&self.model, plan, admission, chunk_rows).map_err(here)?;
        let mut text = self.model.text_cache(text_tokens).map_err(|e| here(e.into()))?;

        let mut progress = Progress::default();
        self.take_video(&mut intake, prompt.len() as u64, port, &mut clock, &mut progress, observe)?;
        let logits = self.model.prefill(&prompt, &mut text, intake.video(), observe).map_err(|e| here(e.into()))?;
        let (_, media) = intake.tokens();
        let total = media + prompt.len() as u64;
        progress.tell(port, total, total)?;

        let answer = self.write(request, logits, &mut text, &intake, port, &mut clock, observe)?;
        let whole_text = decode(self.prompter.tokenizer(), &answer.ids).map_err(here)?;
        let whole_text = strip(&whole_text);
        let start_s = request.span.map_or(0.0, |[start, _]| start);
        let plan = intake.plan().clone();
        Ok(JobResult {
            text: whole_text.to_owned(),
            ranges: task.ranges(whole_text, plan.duration_s, start_s),
            timings: clock.timings(answer.ids.len()),
            token_ids: answer.ids,
            finish: answer.finish,
            plan,
            cached: false,
            memory: BTreeMap::new(),
            model: self.model_name(),
        })
    }

    /// Takes tokens until none is missing.
    fn take_video(
        &self,
        intake: &mut Intake,
        prompt_tokens: u64,
        port: &mut dyn JobPort,
        clock: &mut Clock,
        progress: &mut Progress,
        observe: &mut dyn Observe,
    ) -> Result<(), Stop> {
        let mut taken = 0;
        let mut waiting = Vec::new();
        let mut passes: VecDeque<Marker> = VecDeque::new();
        while !intake.is_complete() {
            self.gather(intake, &mut waiting, port, clock)?;
            // All that has come goes through the layers together, up to what their memory is planned for.
            while !waiting.is_empty() {
                if port.cancelled() {
                    return Err(Stop::Cancelled);
                }
                while passes.len() > AHEAD {
                    let earliest = passes.pop_front().expect("there are some. This is a bug.");
                    earliest.wait().map_err(|e| here(e.into()))?;
                }
                let chunks = self.together(&mut waiting);
                self.model.absorb_all(&chunks, intake.video(), observe).map_err(|e| here(e.into()))?;
                passes.push_back(Marker::behind(self.model.device()).map_err(|e| here(e.into()))?);
                taken += chunks.iter().map(|chunk| chunk.tokens.dims()[0] as u64).sum::<u64>();
                let (_, total) = intake.tokens();
                progress.tell(port, taken, total + prompt_tokens)?;
            }
        }
        if intake.plan().image.is_none() && intake.plan().audio.is_none() {
            return Err(here(
                JobError::new(
                    ErrorKind::UnsupportedMedia,
                    "every sampled frame is black and there is no sound but silence",
                )
                .hint("give another file or span"),
            ));
        }
        Ok(())
    }

    /// Waits until enough has come for a pass through the layers, or nothing more comes for a while.
    ///
    /// Many rows use a card well, and few start early: a pass takes a share of what is still to come, so that the passes
    /// of a long video are full ones and the last ones are short.
    fn gather(
        &self,
        intake: &mut Intake,
        waiting: &mut Vec<Chunk>,
        port: &mut dyn JobPort,
        clock: &mut Clock,
    ) -> Result<(), Stop> {
        let chunk_rows = self.settings.llm.chunk_rows;
        while !intake.is_complete() {
            let before = rows(waiting);
            let (held, total) = intake.tokens();
            let share = (total.saturating_sub(held) as usize / LEFT_SHARE).max(FEWEST_ROWS);
            let mut came = false;
            let mut take = |batch: TokenBatch<'_>| {
                came = true;
                waiting.extend(intake.take(&self.model, &batch).map_err(here)?);
                Ok(())
            };
            // What lies there is taken up to a full pass, whatever is enough.
            if before > 0 && before < chunk_rows && port.more_tokens(&mut take)? {
                continue;
            }
            if before >= chunk_rows.min(share) {
                break;
            }
            clock.waiting(|| port.next_tokens(&mut take))?;
            if !came {
                break;
            }
        }
        Ok(())
    }

    /// The first chunks that fit a pass.
    fn together(&self, waiting: &mut Vec<Chunk>) -> Vec<Chunk> {
        let fits = |count: &usize| rows(&waiting[..*count]) <= self.settings.llm.chunk_rows;
        // One chunk always does: the intake cuts batches that are longer.
        let count = (1..=waiting.len()).take_while(fits).last().unwrap_or(1);
        waiting.drain(..count).collect()
    }

    /// Generates the answer and sends its text on as it grows.
    #[expect(clippy::too_many_arguments, reason = "one job's state, in use by one call")]
    fn write(
        &self,
        request: &JobRequest,
        logits: Tensor,
        text: &mut TextCache,
        intake: &Intake,
        port: &mut dyn JobPort,
        clock: &mut Clock,
        observe: &mut dyn Observe,
    ) -> Result<Answer, Stop> {
        let ending = Ending {
            end_tokens: &self.settings.llm.end_tokens,
            max_new_tokens: request.max_new_tokens.max(1) as usize,
        };
        let mut sampler = Sampler::new(request.temperature, request.top_p, request.seed);
        let pace = Pace::of(&self.model, &sampler);
        let mut detokenizer = Detokenizer::new(self.prompter.tokenizer());
        let mut ids = Vec::new();
        let video = intake.video();
        let finish = generate(&self.model, logits, text, video, &mut sampler, pace, ending, observe, &mut |id| {
            clock.token();
            ids.push(id);
            let delta = detokenizer.push(id).map_err(here)?;
            send(port, delta)?;
            if port.cancelled() { Err(Stop::Cancelled) } else { Ok(()) }
        })?;
        send(port, detokenizer.flush().map_err(here)?)?;
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

/// Rows of all chunks.
fn rows(chunks: &[Chunk]) -> usize {
    chunks.iter().map(|chunk| chunk.tokens.dims()[0]).sum()
}

struct Answer {
    ids: Vec<u32>,
    finish: Finish,
}

/// Waits until all of a plan's tokens lie on the bus.
fn park(plan: &MediaPlan, port: &mut dyn JobPort, clock: &mut Clock) -> Result<(), Stop> {
    let mut parked = Parked::new(plan);
    while !parked.is_complete() {
        if port.cancelled() {
            return Err(Stop::Cancelled);
        }
        clock.waiting(|| port.next_tokens(&mut |batch| parked.note(&batch).map_err(here)))?;
    }
    Ok(())
}

/// An error of this stage's own.
fn here(error: JobError) -> Stop {
    Stop::Failed(error.at(StageName::Llm))
}

fn send(port: &mut dyn JobPort, delta: String) -> Result<(), Stop> {
    if delta.is_empty() { Ok(()) } else { port.event(Event::Text { delta }) }
}

/// Asks for all of a plan at once.
fn whole(request: &JobRequest, plan: MediaPlan) -> DecodeRequest {
    DecodeRequest {
        v: VERSION,
        job: request.job.clone(),
        video: request.video.clone(),
        span: request.span,
        segment: Segment {
            first_frame: 0,
            frames: plan.image.as_ref().map_or(0, |i| i.frames),
            first_window: 0,
            windows: plan.audio.as_ref().map_or(0, |a| a.windows),
        },
        plan,
    }
}
