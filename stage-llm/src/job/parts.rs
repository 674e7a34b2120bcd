//! Parts of a stage that its jobs share, and what each job has of them.

use config::{ComputeConfig, KvPrecision, LlmConfig, WeightFormat};
use protocol::error::JobError;
use protocol::event::ModelName;
use protocol::message::JobRequest;
use protocol::plan::FrameGrid;

use crate::job::parked::{self, format::Identity};
use crate::job::steps::Pace;
use crate::job::work::Work;
use crate::language::LanguageModel;
use crate::language::footprint::LlmFootprint;
use crate::text::prompt::Prompter;
use crate::text::registry::Tasks;

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
    /// Pace of the steps; the faster one of the device unless it is set.
    pub pace: Option<Pace>,
}

/// Parts of a stage that its jobs share.
pub struct Parts {
    /// Language model.
    pub model: LanguageModel,
    /// Rule that the grids of frames follow.
    pub grid: FrameGrid,
    /// Tokenizer and chat template.
    pub prompter: Prompter,
    /// Tasks that can be asked.
    pub tasks: Tasks,
    /// Memory that the stage takes.
    pub footprint: LlmFootprint,
    /// Settings of the worker.
    pub settings: Settings,
}

impl Parts {
    /// Questions of a request about `duration_s` seconds of video; 0 before the file was probed.
    ///
    /// # Errors
    /// As [`Work::new`].
    pub fn work(&self, request: &JobRequest, duration_s: f64) -> Result<Work<'_>, JobError> {
        Work::new(&self.tasks, request, &self.prompter, duration_s)
    }

    /// Tokens that end an answer.
    pub fn end_tokens(&self) -> &[u32] {
        self.settings.llm.end_tokens.as_deref().unwrap_or_default()
    }

    /// Pace of the steps.
    pub fn pace(&self) -> Pace {
        self.settings.pace.unwrap_or_else(|| Pace::of(self.model.device()))
    }

    /// Model that answers, for results.
    pub fn model_name(&self) -> ModelName {
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

    /// What the keys and values that are parked are of: all settings that change their numbers.
    pub fn parked_model(&self) -> parked::Model {
        let (name, settings) = (self.model_name(), &self.settings);
        let identity = Identity {
            fingerprint: settings.fingerprint.clone(),
            quantized: settings.quantized_fingerprint.clone(),
            dtype: name.dtype.clone(),
            weights: name.weights.clone(),
            kv: name.kv.clone(),
            media_products: format!("{:?}", settings.compute.media_products).to_lowercase(),
            device: if self.model.device().is_cpu() { "cpu" } else { "cuda" }.to_owned(),
        };
        parked::Model { identity, name, geometry: *self.model.geometry(), device: self.model.device().clone() }
    }
}
