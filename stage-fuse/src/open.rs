//! The stage as a process serves it: the checkpoint's part of it loaded onto the configured device.

use std::sync::Arc;

use compute::steps::Steps;
use compute::transfer::candle_dtype;
use config::Config;
use model::budget::Footprint;
use model::checkpoint::{Checkpoint, CheckpointError, Weights};
use model::config_json::ModelConfig;
use protocol::error::{JobError, StageName};
use protocol::message::{FeatureBatch, Modality};
use protocol::plan::{AUDIO_POOL, AudioPlan, ImagePlan, MediaPlan, WINDOW_ROWS, WINDOW_SAMPLES};
use protocol::stage::{Nowhere, Stage, Stop};
use protocol::tensor::Tensor;
use protocol::wire::VERSION;

use crate::{FuseStage, Fuser};

/// Opens the stage that the configuration describes.
///
/// # Errors
/// `model`, naming the file or tensor that is missing, misshapen or cut short.
pub fn open(config: &Config) -> Result<FuseStage, JobError> {
    let checkpoint = Arc::new(Checkpoint::configured(&config.model)?);
    let footprint = footprint(config, checkpoint.config())?;
    let hint = "raise budgets.fuse or lower decode.batch_frames";
    let compute = footprint.open(StageName::Fuse, &config.compute, config.budget(StageName::Fuse), hint)?;
    let mut steps = Steps::default();
    let weights = Weights::new(checkpoint.clone(), compute.dtype, compute.device);
    let mut stage = FuseStage::new(Fuser::new(checkpoint.config(), &weights)?);
    steps.ended("weights loaded");
    if config.compute.cuda_ordinal().is_some() {
        warm_up(&mut stage, config, checkpoint.config()).map_err(Stop::at_start)?;
        steps.ended("warmed up");
    }
    Ok(stage)
}

/// Features of both modalities, as many as messages have, all zero.
fn warm_up(stage: &mut FuseStage, config: &Config, model: &ModelConfig) -> Result<(), Stop> {
    let image = ImagePlan::on(model.image_pool().grid(), 1, config.decode.batch_frames.max(2) as u64);
    let modalities = [
        (Modality::Image, image.tokens as usize, model.image_cell_width()),
        (Modality::Audio, WINDOW_ROWS as usize, model.audio.d_model),
    ];
    let plan = MediaPlan { image: Some(image), audio: AudioPlan::new(WINDOW_SAMPLES), ..MediaPlan::default() };
    for (modality, rows, width) in modalities {
        let dtype = config.compute.dtype.wire();
        let tensor = Tensor::new(dtype, &[rows, width], vec![0; rows * width * dtype.size()])?;
        let (v, job, plan) = (VERSION, Nowhere::job(), plan.clone());
        stage.process(FeatureBatch { v, job, plan, modality, offset: 0, tensor }, &mut Nowhere)?;
    }
    Ok(())
}

/// Memory that the stage will hold whatever the job.
///
/// # Errors
/// None that a checked configuration leads to.
pub fn footprint(config: &Config, model: &ModelConfig) -> Result<Footprint, CheckpointError> {
    let dtype = candle_dtype(config.compute.dtype.wire());
    let needs = Weights::survey(dtype, |w| Fuser::new(model, w))?;
    let (size, width) = (dtype.size_in_bytes() as u64, model.hidden_size as u64);
    // The grid of a short video is the largest.
    let side = u64::from(model.image_pool().grid().side(1));
    let image = (config.decode.batch_frames as u64 * side * side, model.image_cell_width() as u64);
    let audio = (WINDOW_ROWS / AUDIO_POOL, AUDIO_POOL * model.audio.d_model as u64);
    // The input twice, four rows of the model's width in its type, and as many in f32: GELU, norms and positions.
    let held = |(rows, input): (u64, u64)| rows * (2 * input * size + 4 * width * (size + 4));
    Ok(Footprint::new(&needs, held(image).max(held(audio)), &config.compute))
}
