//! The stage: one window of sound in, the encoder states that count out.

use candle_core::{Device, Tensor};
use compute::failure::Failure;
use compute::transfer::later;
use protocol::error::StageName;
use protocol::message::{FeatureBatch, Modality, Output, PcmWindow};
use protocol::plan::{HOP_SAMPLES, MediaPlan, WINDOW_ROWS};
use protocol::stage::{Port, Stage, Stop};

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

    /// Mel features `[1, 128, 3000]` of a window to the first `rows` of its encoder states, `[rows, C]`.
    fn states(&self, mel: &Tensor, rows: usize) -> candle_core::Result<Tensor> {
        let states = self.encoder.forward(mel, &mut |_, _| ())?; // [1, 1500, C]
        states.get(0)?.narrow(0, 0, rows)
    }
}

impl Stage for AudioStage {
    const NAME: StageName = StageName::Audio;
    type Input<'a> = PcmWindow<'a>;

    fn units(_: &PcmWindow<'_>) -> u64 {
        1
    }

    /// A window that adds no rows to the whole, as a last one under 10 ms does, gives no output.
    fn process(&mut self, input: PcmWindow<'_>, port: &mut dyn Port) -> Result<(), Stop> {
        let (offset, states) = match &input.plan.audio {
            None => (0, Tensor::zeros((0, self.encoder.width()), self.encoder.dtype(), &Device::Cpu).map_err(Failure)?),
            Some(audio) => {
                let rows = audio.window_rows(input.index) as usize;
                if rows == 0 || input.tensor.rows() < HOP_SAMPLES as usize {
                    return Ok(());
                }
                let mel = self.mel.tensor(&input.tensor.to_i16(), self.encoder.device()).map_err(Failure)?; // [1, mels, 3000]
                if port.cancelled() {
                    return Err(Stop::Cancelled);
                }
                (input.index * WINDOW_ROWS, self.states(&mel, rows).map_err(Failure)?) // [rows, C]
            }
        };
        let (v, job, plan) = (input.v, input.job, MediaPlan { image: None, ..input.plan });
        let modality = Modality::Audio;
        port.emit_later(later(&states, move |tensor| {
            Output::Features(FeatureBatch { v, job, plan, modality, offset, tensor })
        })?)
    }
}
