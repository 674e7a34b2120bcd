//! The stage as a process serves it: the language model loaded onto the configured device.

use std::sync::Arc;

use common::checkpoint::{Checkpoint, Weights};
use common::compute::Compute;
use common::config::Config;
use common::error::{JobError, StageName};
use common::event::JobResult;
use common::message::JobRequest;
use common::stage::{JobPort, Owner, Stop};

use crate::admission::{Footprint, HINT};
use crate::answer::{LlmStage, Settings};

/// Opens the stage that the configuration describes.
///
/// # Errors
/// `does_not_fit` with the figures; `model`, naming the file or tensor that is missing, misshapen or cut short.
pub fn open(config: &Config) -> Result<LlmStage, JobError> {
    let dir = &config.model.dir;
    let checkpoint = Arc::new(Checkpoint::open(dir)?);
    let footprint = Footprint::new(checkpoint.config(), &config.llm, &config.compute)?;
    let budget = config.budget(StageName::Llm);
    footprint.fixed.check(StageName::Llm, budget, HINT)?;
    // In phases it has the card to itself: the cap is the card's, its budget beside the encoders is admission's to keep.
    let compute = Compute::open(&config.compute, config.compute.card_bytes.or(budget))?;
    compute.refuse_if_wrong(crate::kernels::check::check)?;
    let weights = Weights::new(checkpoint.clone(), compute.dtype, compute.device);
    let settings = Settings {
        llm: config.llm.clone(),
        compute: config.compute.clone(),
        budget_bytes: config.budget(StageName::Llm),
        name: dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
    };
    LlmStage::new(checkpoint.config(), &weights, &dir.join("tokenizer.json"), settings)
}

impl Owner for LlmStage {
    fn answer(&mut self, request: &JobRequest, port: &mut dyn JobPort) -> Result<JobResult, Stop> {
        LlmStage::answer(self, request, port)
    }

    fn token_bytes(&self) -> u64 {
        (self.model().hidden_size() * self.model().dtype().size_in_bytes()) as u64
    }
}
