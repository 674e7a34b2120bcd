//! The stage: one batch of frames in, their token cells out.

use candle_core::{Device, Tensor};
use common::error::StageName;
use common::kernels;
use common::message::{FeatureBatch, FrameBatch, Modality, Output};
use common::plan::{FRAME_BYTES, FRAME_SIDE, MediaPlan};
use common::stage::{Port, Stage, Stop};
use common::tensor::Tensor as WireTensor;

use crate::siglip::SiglipEncoder;

/// Runs the tower on a few frames at a time.
pub struct VisionStage {
    encoder: SiglipEncoder,
    /// Frames that pass the tower together; it bounds the memory of activations.
    batch: usize,
}

impl VisionStage {
    /// A stage that runs `batch` frames through the tower together, at least one.
    pub fn new(encoder: SiglipEncoder, batch: usize) -> Self {
        VisionStage { encoder, batch: batch.max(1) }
    }

    /// Frames `[n, 384, 384, 3]` u8 to token cells `[n, grid*grid, 4C]`.
    fn cells(&self, frames: &[u8], grid: usize) -> candle_core::Result<Tensor> {
        let shape = (frames.len() / FRAME_BYTES, FRAME_SIDE, FRAME_SIDE, 3);
        let frames = Tensor::from_slice(frames, shape, self.encoder.device())?;
        let features = self.encoder.forward(&frames, &mut |_, _| ())?; // [n, 729, C]
        kernels::pool(&features, grid)
    }
}

impl Stage for VisionStage {
    const NAME: StageName = StageName::Vision;
    type Input<'a> = FrameBatch<'a>;

    /// One batch of features per batch of frames, however many passes of the tower it takes: what a message comes to
    /// must not depend on this worker's settings, or a redelivery elsewhere would cut the same rows differently.
    fn process(&mut self, input: FrameBatch<'_>, port: &mut dyn Port) -> Result<(), Stop> {
        let width = self.encoder.width() * 4;
        let mut offset = 0;
        let cells = match &input.plan.image {
            None => Tensor::zeros((0, width), self.encoder.dtype(), &Device::Cpu)?,
            Some(image) => {
                let mut parts = Vec::new();
                for frames in input.tensor.data().chunks(self.batch * FRAME_BYTES) {
                    if port.cancelled() {
                        return Err(Stop::Cancelled);
                    }
                    let cells = self.cells(frames, image.grid[0] as usize)?; // [batch, h*w, 4C]
                    parts.push(cells.flatten_to(1)?); // [batch*h*w, 4C]
                }
                offset = input.offset * image.tokens_per_frame();
                Tensor::cat(&parts, 0)? // [n*h*w, 4C]
            }
        };
        port.emit(Output::Features(FeatureBatch {
            v: input.v,
            job: input.job,
            plan: MediaPlan { audio: None, ..input.plan },
            modality: Modality::Image,
            offset,
            tensor: WireTensor::from_candle(&cells)?,
        }))
    }
}
