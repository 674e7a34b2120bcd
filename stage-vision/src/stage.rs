//! The stage: one batch of frames in, their token cells out.

use candle_core::{Device, Tensor};
use compute::failure::Failure;
use compute::transfer::{later, upload};
use protocol::error::StageName;
use protocol::message::{FeatureBatch, FrameBatch, Modality, Output};
use protocol::plan::MediaPlan;
use protocol::stage::{Port, Stage, Stop};
use protocol::tensor::Tensor as WireTensor;

use crate::pool::Pool;
use crate::siglip::SiglipEncoder;

/// Runs the tower on a few frames at a time.
pub struct VisionStage {
    encoder: SiglipEncoder,
    pool: Pool,
    /// Frames that pass the tower together; it bounds the memory of activations.
    batch: usize,
}

impl VisionStage {
    /// A stage that runs `batch` frames through the tower together, at least one.
    pub fn new(encoder: SiglipEncoder, pool: Pool, batch: usize) -> Self {
        VisionStage { encoder, pool, batch: batch.max(1) }
    }

    /// Frames `[n, 384, 384, 3]` u8 to token cells `[n*grid*grid, W]`.
    fn cells(&self, frames: &WireTensor<'_>, grid: usize) -> candle_core::Result<Tensor> {
        let frames = upload(frames, self.encoder.device())?;
        let features = self.encoder.forward(&frames, &mut |_, _| ())?; // [n, 729, C]
        self.pool.cells(&features, grid)?.flatten_to(1)
    }
}

impl Stage for VisionStage {
    const NAME: StageName = StageName::Vision;
    type Input<'a> = FrameBatch<'a>;

    fn units(input: &FrameBatch<'_>) -> u64 {
        input.tensor.rows() as u64
    }

    /// One batch of features per batch of frames, however many passes of the tower it takes: what a message comes to
    /// must not depend on this worker's settings, or a redelivery elsewhere would cut the same rows differently.
    fn process(&mut self, input: FrameBatch<'_>, port: &mut dyn Port) -> Result<(), Stop> {
        let width = self.pool.width();
        let mut offset = 0;
        let cells = match &input.plan.image {
            None => Tensor::zeros((0, width), self.encoder.dtype(), &Device::Cpu).map_err(Failure)?,
            Some(image) => {
                image.expect(self.pool.grid())?;
                let mut parts = Vec::new();
                let frames = input.tensor.rows();
                for first in (0..frames).step_by(self.batch) {
                    if port.cancelled() {
                        return Err(Stop::Cancelled);
                    }
                    let batch = input.tensor.narrow(first, self.batch.min(frames - first));
                    parts.push(self.cells(&batch, image.grid[0] as usize).map_err(Failure)?);
                }
                offset = input.offset * image.tokens_per_frame();
                Tensor::cat(&parts, 0).map_err(Failure)? // [n*h*w, W]
            }
        };
        let (v, job, plan) = (input.v, input.job, MediaPlan { audio: None, ..input.plan });
        let modality = Modality::Image;
        port.emit_later(later(&cells, move |tensor| {
            Output::Features(FeatureBatch { v, job, plan, modality, offset, tensor })
        })?)
    }
}
