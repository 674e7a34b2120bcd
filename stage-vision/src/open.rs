//! The stage as a process serves it: the checkpoint's part of it loaded onto the configured device.

use std::sync::Arc;

use compute::kernels::WORKSPACE_BYTES;
use compute::steps::Steps;
use compute::transfer::candle_dtype;
use config::{Config, MediaProducts};
use model::budget::Footprint;
use model::checkpoint::{Checkpoint, CheckpointError, Weights};
use model::config_json::ModelConfig;
use protocol::error::{JobError, StageName};
use protocol::message::FrameBatch;
use protocol::plan::{FRAME_BYTES, FRAME_SIDE, FrameGrid, ImagePlan, MediaPlan};
use protocol::stage::{Nowhere, Stage, Stop};
use protocol::tensor::{Dtype, Tensor};
use protocol::wire::VERSION;

use crate::{Pool, SiglipEncoder, VisionStage};

/// Opens the stage that the configuration describes.
///
/// # Errors
/// `model`, naming the file or tensor that is missing, misshapen or cut short.
pub fn open(config: &Config) -> Result<VisionStage, JobError> {
    let checkpoint = Arc::new(Checkpoint::configured(&config.model)?);
    let footprint = footprint(config, checkpoint.config())?;
    let hint = "raise budgets.vision or lower vision.batch";
    let compute = footprint.open(StageName::Vision, &config.compute, config.budget(StageName::Vision), hint)?;
    let mut steps = Steps::default();
    let weights = Weights::new(checkpoint.clone(), compute.dtype, compute.device);
    let (encoder, pool) = load(checkpoint.config(), &weights, compute.media_products)?;
    let grid = pool.grid();
    let mut stage = VisionStage::new(encoder, pool, config.vision.batch);
    steps.ended("weights loaded");
    if config.compute.cuda_ordinal().is_some() {
        warm_up(&mut stage, config.vision.batch, grid).map_err(Stop::at_start)?;
        steps.ended("warmed up");
    }
    Ok(stage)
}

/// Tower and pool of a checkpoint, from weights at its root; the tower's layers multiply as `products` says.
///
/// # Errors
/// The tensor that is missing or misshapen.
pub fn load(
    config: &ModelConfig,
    weights: &Weights,
    products: MediaProducts,
) -> Result<(SiglipEncoder, Pool), CheckpointError> {
    Ok((SiglipEncoder::new(config, weights, products)?, Pool::new(config, weights)?))
}

/// Frames as the largest message has them, of one colour.
fn warm_up(stage: &mut VisionStage, frames: usize, grid: FrameGrid) -> Result<(), Stop> {
    let shape = [frames, FRAME_SIDE, FRAME_SIDE, 3];
    let tensor = Tensor::new(Dtype::U8, &shape, vec![128; frames * FRAME_BYTES])?;
    let plan = MediaPlan { image: Some(ImagePlan::on(grid, 1, frames.max(2) as u64)), ..MediaPlan::default() };
    stage.process(FrameBatch { v: VERSION, job: Nowhere::job(), plan, offset: 0, tensor }, &mut Nowhere)
}

/// Memory that the stage will hold whatever the job.
///
/// # Errors
/// None that a checked configuration leads to.
pub fn footprint(config: &Config, model: &ModelConfig) -> Result<Footprint, CheckpointError> {
    let dtype = candle_dtype(config.compute.dtype.wire());
    let needs = Weights::survey(dtype, |w| load(model, w, config.compute.media_products))?;
    let (c, size) = (&model.vision, dtype.size_in_bytes() as u64);
    let (width, inner) = (c.hidden_size as u64, c.intermediate_size as u64);
    let patches = (c.side() * c.side()) as u64;
    // In the feed-forward part: the stream, its norm, the wide layer before and after its GELU, the outcome.
    let layer = patches * size * (3 * width + 2 * inner);
    let pixels = FRAME_BYTES as u64 + (3 * FRAME_SIDE * FRAME_SIDE) as u64 * (size + 4);
    // A GPU's matmuls have a workspace of their own.
    // The CPU holds scores, two copies of one frame's, and computes some parts in f32.
    let host = if config.compute.cuda_ordinal().is_some() {
        WORKSPACE_BYTES as u64
    } else {
        2 * 4 * c.num_attention_heads as u64 * patches * patches + 4 * patches * (3 * width + inner)
    };
    let frames = config.vision.batch as u64;
    let activations = frames * (layer + pixels) + Pool::activation_bytes(model, frames, size) + host;
    Ok(Footprint::new(&needs, activations, &config.compute))
}
