//! The stage: windows of sound in, for each the encoder states that count out.

use candle_core::{Device, Result, Tensor};
use compute::failure::Failure;
use compute::transfer::later;
use protocol::error::StageName;
use protocol::message::{FeatureBatch, Modality, Output, PcmWindow};
use protocol::plan::{HOP_SAMPLES, MediaPlan, WINDOW_ROWS};
use protocol::stage::{Port, Stage, Stop, Work};

use crate::mel::LogMel;
use crate::whisper::WhisperEncoder;

/// Runs the encoder on a few windows at a time.
pub struct AudioStage {
    mel: LogMel,
    encoder: WhisperEncoder,
    /// Windows that pass the encoder together; it bounds the memory of activations.
    batch: usize,
}

/// Window that is to pass the encoder.
struct Heard<'w> {
    /// Place among the messages that came together.
    at: usize,
    input: PcmWindow<'w>,
    port: &'w mut dyn Port,
    /// States of it that count.
    rows: usize,
    mel: Vec<f32>, // [mels, 3000]
}

impl AudioStage {
    /// A stage around an encoder and the features that it was trained on, `batch` windows together, at least one.
    pub fn new(mel: LogMel, encoder: WhisperEncoder, batch: usize) -> Self {
        AudioStage { mel, encoder, batch: batch.max(1) }
    }

    /// Passes windows through the encoder together: states `[W, 1500, C]`.
    fn states(&self, windows: &[Heard<'_>]) -> Result<Tensor> {
        let mels = self.mel.upload(windows.iter().map(|window| window.mel.as_slice()), self.encoder.device())?; // [W, mels, 3000]
        self.encoder.forward(&mels, &mut |_, _| ())
    }

    /// Encodes windows together and emits what counts of each. Each has its outcome noted; an error is that of all.
    fn encode(&self, windows: Vec<Heard<'_>>, outcomes: &mut [std::result::Result<(), Stop>]) {
        let states = self.states(&windows).map_err(|e| Stop::from(Failure(e)));
        for (i, Heard { at, input, port, rows, .. }) in windows.into_iter().enumerate() {
            let offset = input.index * WINDOW_ROWS;
            outcomes[at] = states.clone().and_then(|states| {
                let own = states.get(i).and_then(|own| own.narrow(0, 0, rows)).map_err(Failure)?; // [rows, C]
                emit(&own, offset, input, port)
            });
        }
    }

    /// Output for a video without sound.
    fn absent(&self, input: PcmWindow<'_>, port: &mut dyn Port) -> std::result::Result<(), Stop> {
        let none = Tensor::zeros((0, self.encoder.width()), self.encoder.dtype(), &Device::Cpu).map_err(Failure)?;
        emit(&none, 0, input, port)
    }
}

/// Hands on the states of a window.
fn emit(states: &Tensor, offset: u64, input: PcmWindow<'_>, port: &mut dyn Port) -> std::result::Result<(), Stop> {
    let (v, job, plan) = (input.v, input.job, MediaPlan { image: None, ..input.plan });
    let modality = Modality::Audio;
    port.emit_later(later(states, move |tensor| {
        Output::Features(FeatureBatch { v, job, plan, modality, offset, tensor })
    })?)
}

impl Stage for AudioStage {
    const NAME: StageName = StageName::Audio;
    type Input<'a> = PcmWindow<'a>;

    fn units(_: &PcmWindow<'_>) -> u64 {
        1
    }

    fn together(&self) -> u64 {
        self.batch as u64
    }

    /// A window that adds no rows to the whole, as a last one under 10 ms does, gives no output.
    fn process(&mut self, input: PcmWindow<'_>, port: &mut dyn Port) -> std::result::Result<(), Stop> {
        self.process_together(vec![Work { input, port }]).into_iter().collect()
    }

    /// A window is an encoder's sequence of its own: its states are those that it has alone.
    fn process_together<'a>(&mut self, works: Vec<Work<'a, PcmWindow<'a>>>) -> Vec<std::result::Result<(), Stop>> {
        let mut outcomes = vec![Ok(()); works.len()];
        let mut heard = Vec::new();
        for (at, Work { input, port }) in works.into_iter().enumerate() {
            let Some(audio) = &input.plan.audio else {
                outcomes[at] = self.absent(input, port);
                continue;
            };
            let rows = audio.window_rows(input.index) as usize;
            if rows == 0 || input.tensor.rows() < HOP_SAMPLES as usize {
                continue;
            }
            if port.cancelled() {
                outcomes[at] = Err(Stop::Cancelled);
                continue;
            }
            let mel = self.mel.window(&input.tensor.to_i16());
            heard.push(Heard { at, input, port, rows, mel });
        }
        let mut waiting = heard.into_iter().peekable();
        while waiting.peek().is_some() {
            let mut pass = Vec::with_capacity(self.batch);
            for window in waiting.by_ref() {
                if window.port.cancelled() {
                    outcomes[window.at] = Err(Stop::Cancelled);
                    continue;
                }
                pass.push(window);
                if pass.len() == self.batch {
                    break;
                }
            }
            if !pass.is_empty() {
                self.encode(pass, &mut outcomes);
            }
        }
        outcomes
    }
}
