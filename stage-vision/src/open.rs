//! The stage as a process serves it: the checkpoint's part of it loaded onto the configured device.

use std::sync::Arc;

use common::checkpoint::{Checkpoint, Weights};
use common::compute::Compute;
use common::config::Config;
use common::error::{JobError, StageName};

use crate::{SiglipEncoder, VisionStage};

/// Opens the stage that the configuration describes.
///
/// # Errors
/// `model`, naming the file or tensor that is missing, misshapen or cut short.
pub fn open(config: &Config) -> Result<VisionStage, JobError> {
    let checkpoint = Arc::new(Checkpoint::open(&config.model.dir)?);
    let compute = Compute::open(&config.compute, config.budget(StageName::Vision))?;
    let weights = Weights::new(checkpoint.clone(), compute.dtype, compute.device);
    let encoder = SiglipEncoder::new(checkpoint.config(), &weights)?;
    Ok(VisionStage::new(encoder, config.vision.batch))
}
