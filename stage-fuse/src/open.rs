//! The stage as a process serves it: the checkpoint's part of it loaded onto the configured device.

use std::sync::Arc;

use common::budget::Footprint;
use common::checkpoint::{Checkpoint, CheckpointError, Weights};
use common::config::Config;
use common::error::{JobError, StageName};
use common::model::ModelConfig;
use common::plan::{AUDIO_POOL, IMAGE_POOL, PADDED_SIDE, WINDOW_ROWS};

use crate::{FuseStage, Fuser};

/// Opens the stage that the configuration describes.
///
/// # Errors
/// `model`, naming the file or tensor that is missing, misshapen or cut short.
pub fn open(config: &Config) -> Result<FuseStage, JobError> {
    let checkpoint = Arc::new(Checkpoint::open(&config.model.dir)?);
    let footprint = footprint(config, checkpoint.config())?;
    let hint = "raise budgets.fuse or lower decode.batch_frames";
    let compute = footprint.open(StageName::Fuse, &config.compute, config.budget(StageName::Fuse), hint)?;
    let weights = Weights::new(checkpoint.clone(), compute.dtype, compute.device);
    Ok(FuseStage::new(Fuser::new(checkpoint.config(), &weights)?))
}

/// What the stage will hold.
///
/// # Errors
/// None that a checked configuration leads to.
pub fn footprint(config: &Config, model: &ModelConfig) -> Result<Footprint, CheckpointError> {
    let dtype = config.compute.dtype.candle();
    let needs = Weights::survey(dtype, |w| Fuser::new(model, w))?;
    let (size, width) = (dtype.size_in_bytes() as u64, model.hidden_size as u64);
    let side = u64::from(PADDED_SIDE / IMAGE_POOL);
    let image = (config.decode.batch_frames as u64 * side * side, 4 * model.vision.hidden_size as u64);
    let audio = (WINDOW_ROWS / AUDIO_POOL, AUDIO_POOL * model.audio.d_model as u64);
    // The input twice, four rows of the model's width in its type, and as many in f32: GELU, norms and positions.
    let held = |(rows, input): (u64, u64)| rows * (2 * input * size + 4 * width * (size + 4));
    Ok(Footprint::new(&needs, held(image).max(held(audio)), &config.compute))
}
