//! The stage: one batch of features in, its tokens out.

use candle_core::{Device, Tensor};
use compute::failure::Failure;
use compute::transfer::{later, upload};
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::{FeatureBatch, Modality, Output, TokenBatch};
use protocol::plan::{AUDIO_POOL, MediaPlan};
use protocol::stage::{Port, Stage, Stop};

use crate::adapters::Fuser;

/// Runs the adapters on one batch at a time.
pub struct FuseStage {
    fuser: Fuser,
}

impl FuseStage {
    /// A stage around the adapters.
    pub fn new(fuser: Fuser) -> Self {
        FuseStage { fuser }
    }

    /// The rows on the device, if they are as wide as this model's tower makes them.
    fn features(&self, input: &FeatureBatch<'_>) -> Result<Tensor, JobError> {
        let width = match input.modality {
            Modality::Image => self.fuser.image_width(),
            Modality::Audio => self.fuser.audio_width(),
        };
        match input.tensor.shape()[..] {
            [_, found] if found == width => Ok(upload(&input.tensor, self.fuser.device()).map_err(Failure)?),
            ref found => Err(JobError::new(
                ErrorKind::Model,
                format!("{} features are {found:?}, this model takes rows of {width}", input.modality),
            )
            .hint("serve every stage from the same checkpoint")),
        }
    }
}

impl Stage for FuseStage {
    const NAME: StageName = StageName::Fuse;
    type Input<'a> = FeatureBatch<'a>;

    fn units(input: &FeatureBatch<'_>) -> u64 {
        input.tensor.rows() as u64
    }

    /// Rows at the end of the sound that fill no token give none; a batch of only those gives no output.
    fn process(&mut self, input: FeatureBatch<'_>, port: &mut dyn Port) -> Result<(), Stop> {
        if port.cancelled() {
            return Err(Stop::Cancelled);
        }
        let none = (0, Tensor::zeros((0, self.fuser.width()), self.fuser.dtype(), &Device::Cpu).map_err(Failure)?);
        let unseen = &mut |_: &str, _: &Tensor| ();
        let (offset, tokens) = match (input.modality, &input.plan.image, &input.plan.audio) {
            (Modality::Image, Some(image), _) => {
                image.expect(self.fuser.frame_grid())?;
                let features = self.features(&input)?; // [n, W]
                (input.offset, self.fuser.image_tokens(&features, input.offset, image, unseen).map_err(Failure)?)
            }
            (Modality::Audio, _, Some(_)) if input.tensor.rows() < AUDIO_POOL as usize => return Ok(()),
            (Modality::Audio, _, Some(audio)) => {
                let states = self.features(&input)?; // [n, A]
                (
                    input.offset / AUDIO_POOL,
                    self.fuser.audio_tokens(&states, input.offset, audio, unseen).map_err(Failure)?,
                )
            }
            (Modality::Image, None, _) | (Modality::Audio, _, None) => none,
        };
        let plan = match input.modality {
            Modality::Image => MediaPlan { audio: None, ..input.plan },
            Modality::Audio => MediaPlan { image: None, ..input.plan },
        };
        let (v, job, modality) = (input.v, input.job, input.modality);
        port.emit_later(later(&tokens, move |tensor| {
            Output::Tokens(TokenBatch { v, job, plan, modality, offset, tensor })
        })?)
    }
}
