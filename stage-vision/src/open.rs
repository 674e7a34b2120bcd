//! The stage as a process serves it: the checkpoint's part of it loaded, in f32 on the CPU.

use std::sync::Arc;

use candle_core::{DType, Device};
use common::checkpoint::{Checkpoint, Weights};
use common::config::Config;
use common::error::JobError;

use crate::{SiglipEncoder, VisionStage};

/// Opens the stage that the configuration describes.
///
/// # Errors
/// `model`, naming the file or tensor that is missing, misshapen or cut short.
pub fn open(config: &Config) -> Result<VisionStage, JobError> {
    let checkpoint = Arc::new(Checkpoint::open(&config.model.dir)?);
    let weights = Weights::new(checkpoint.clone(), DType::F32, Device::Cpu);
    let encoder = SiglipEncoder::new(checkpoint.config(), &weights)?;
    Ok(VisionStage::new(encoder, config.vision.batch))
}
