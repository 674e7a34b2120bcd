//! The stage: one window of sound in, the encoder states that count out.

use candle_core::{Device, Tensor};
use common::compute::transfer::Download;
use common::error::StageName;
use common::message::{FeatureBatch, Modality, Output, PcmWindow};
use common::plan::{HOP_SAMPLES, MediaPlan, WINDOW_ROWS};
use common::stage::{Later, Port, Stage, Stop};

use crate::mel::LogMel;
use crate::whisper::WhisperEncoder;

/// Runs the encoder on one window at a time.
pub struct AudioStage {
    mel: LogMel,
    encoder: WhisperEncoder,
}

impl AudioStage {
    /// A stage around an encoder and the features that it was trained on.
    pub fn new(mel: LogMel, encoder: WhisperEncoder) -> Self {
        AudioStage { mel, encoder }
    }
}

impl Stage for AudioStage {
    const NAME: StageName = StageName::Audio;
    type Input<'a> = PcmWindow<'a>;

    /// A window that adds no rows to the whole, as a last one under 10 ms does, gives no output.
    fn process(&mut self, input: PcmWindow<'_>, port: &mut dyn Port) -> Result<(), Stop> {
        let (offset, states) = match &input.plan.audio {
            None => (0, Tensor::zeros((0, self.encoder.width()), self.encoder.dtype(), &Device::Cpu)?),
            Some(audio) => {
                let rows = audio.window_rows(input.index) as usize;
                if rows == 0 || input.tensor.rows() < HOP_SAMPLES as usize {
                    return Ok(());
                }
                let mel = self.mel.tensor(&input.tensor.to_i16(), self.encoder.device())?; // [1, 128, 3000]
                if port.cancelled() {
                    return Err(Stop::Cancelled);
                }
                let states = self.encoder.forward(&mel, &mut |_, _| ())?; // [1, 1500, C]
                (input.index * WINDOW_ROWS, states.get(0)?.narrow(0, 0, rows)?) // [rows, C]
            }
        };
        let (v, job, plan) = (input.v, input.job, MediaPlan { image: None, ..input.plan });
        let modality = Modality::Audio;
        port.emit_later(Later::new(Download::start(&states)?, move |tensor| {
            Output::Features(FeatureBatch { v, job, plan, modality, offset, tensor })
        }))
    }
}
