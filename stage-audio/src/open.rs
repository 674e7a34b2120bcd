//! The stage as a process serves it: the checkpoint's part of it loaded onto the configured device.

use std::sync::Arc;

use compute::kernels::WORKSPACE_BYTES;
use compute::steps::Steps;
use compute::transfer::candle_dtype;
use config::Config;
use model::budget::Footprint;
use model::checkpoint::{Checkpoint, CheckpointError, Weights};
use model::config_json::ModelConfig;
use protocol::error::{JobError, StageName};
use protocol::message::PcmWindow;
use protocol::plan::{AudioPlan, MediaPlan, WINDOW_SAMPLES};
use protocol::stage::{Nowhere, Stage, Stop, Work};
use protocol::tensor::Tensor;
use protocol::wire::VERSION;

use crate::{AudioStage, LogMel, WhisperEncoder};

/// Opens the stage that the configuration describes.
///
/// # Errors
/// `model`, naming the file or tensor that is missing, misshapen or cut short.
pub fn open(config: &Config) -> Result<AudioStage, JobError> {
    let checkpoint = Arc::new(Checkpoint::configured(&config.model)?);
    let footprint = footprint(config, checkpoint.config())?;
    let budget = config.budget(StageName::Audio);
    let hint = "raise budgets.audio or lower audio.batch";
    let compute = footprint.open(StageName::Audio, &config.compute, budget, hint)?;
    let mut steps = Steps::default();
    let weights = Weights::new(checkpoint.clone(), compute.dtype, compute.device);
    let encoder = WhisperEncoder::new(checkpoint.config(), &weights, compute.media_products)?;
    let mel = LogMel::new(checkpoint.config().audio.num_mel_bins);
    let mut stage = AudioStage::new(mel, encoder, config.audio.batch);
    steps.ended("weights loaded");
    if config.compute.cuda_ordinal().is_some() {
        warm_up(&mut stage, config.audio.batch).map_err(Stop::at_start)?;
        steps.ended("warmed up");
    }
    Ok(stage)
}

/// Whole windows of silence: one alone, as the first of a video is, and as many as pass together at most.
fn warm_up(stage: &mut AudioStage, batch: usize) -> Result<(), Stop> {
    let plan = MediaPlan { audio: AudioPlan::new(WINDOW_SAMPLES), ..MediaPlan::default() };
    let tensor = Tensor::from_i16(&vec![0; WINDOW_SAMPLES as usize]);
    let window = || PcmWindow { v: VERSION, job: Nowhere::job(), plan: plan.clone(), index: 0, tensor: tensor.clone() };
    stage.process(window(), &mut Nowhere)?;
    let mut ports: Vec<Nowhere> = (0..batch).map(|_| Nowhere).collect();
    let works = ports.iter_mut().map(|port| Work { input: window(), port });
    stage.process_together(works.collect()).into_iter().collect()
}

/// Memory that the stage will hold whatever the job.
///
/// # Errors
/// None that a checked configuration leads to.
pub fn footprint(config: &Config, model: &ModelConfig) -> Result<Footprint, CheckpointError> {
    let dtype = candle_dtype(config.compute.dtype.wire());
    let needs = Weights::survey(dtype, |w| WhisperEncoder::new(model, w, config.compute.media_products))?;
    let (c, size) = (&model.audio, dtype.size_in_bytes() as u64);
    let (width, inner) = (c.d_model as u64, c.encoder_ffn_dim as u64);
    // Of all windows that pass together.
    let rows = config.audio.batch as u64 * c.max_source_positions as u64;
    // In the feed-forward part: the stream, its norm, the wide layer before and after its GELU, the outcome.
    let layer = rows * size * (3 * width + 2 * inner);
    // The first convolution keeps twice the rows, and reads three taps of each.
    let convolutions = 2 * rows * size * (4 * width + 3 * c.num_mel_bins as u64);
    // The CPU holds scores, of some queries at a time, and computes some parts in f32.
    let host = if config.compute.cuda_ordinal().is_some() {
        WORKSPACE_BYTES as u64
    } else {
        (128 << 20) + 4 * rows * (3 * width + inner)
    };
    Ok(Footprint::new(&needs, layer.max(convolutions) + host, &config.compute))
}
