//! Stages that send what the real ones send, and wait for as long as those compute.

use std::sync::Arc;

use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::{DecodeRequest, FeatureBatch, FrameBatch, Modality, Output, PcmWindow, TokenBatch};
use protocol::plan::{AUDIO_POOL, FRAME_BYTES, FRAME_SIDE, MediaPlan, WINDOW_ROWS, WINDOW_SAMPLES, frames_together};
use protocol::stage::{Port, Probe, Stage, Stop, Tell};
use protocol::tensor::{Dtype, Tensor};
use protocol::wire::VERSION;

use super::model::{Video, WIDTHS_9B};
use super::pace::Pace;
use super::times::{Footage, Times};

/// Seconds of sound in a window.
const WINDOW_S: f64 = 30.0;

/// Bytes that rows are made of; they grow once and are never written again.
#[derive(Default)]
struct Rows(Vec<u8>);

impl Rows {
    fn tensor(&mut self, dtype: Dtype, shape: &[usize]) -> Result<Tensor<'_>, Stop> {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        if self.0.len() < bytes {
            self.0.resize(bytes, 0x3c);
        }
        Ok(Tensor::new(dtype, shape, &self.0[..bytes])?)
    }
}

/// stage-decode: frames and sound of a video that exists by its name alone.
pub struct Decode {
    /// Video that every name stands for.
    pub video: Video,
    /// What decoding it takes.
    pub footage: Footage,
    /// Frames of a message at most.
    pub batch_frames: usize,
    pace: Pace,
    rows: Rows,
}

impl Decode {
    /// A stage that decodes this video whatever it is asked for.
    pub fn new(video: Video, footage: Footage, batch_frames: usize, pace: Pace) -> Self {
        Decode { video, footage, batch_frames, pace, rows: Rows::default() }
    }

    fn window(&mut self, input: &DecodeRequest, index: u64, port: &mut dyn Port) -> Result<(), Stop> {
        let plan = MediaPlan { image: None, ..input.plan.clone() };
        let samples = plan.audio.as_ref().map_or(0, |a| a.samples - index * WINDOW_SAMPLES).min(WINDOW_SAMPLES);
        let tensor = self.rows.tensor(Dtype::I16, &[samples as usize])?;
        port.emit(Output::Pcm(PcmWindow { v: VERSION, job: input.job.clone(), plan, index, tensor }))
    }

    fn frames(&mut self, input: &DecodeRequest, offset: u64, n: usize, port: &mut dyn Port) -> Result<(), Stop> {
        let plan = MediaPlan { audio: None, ..input.plan.clone() };
        let tensor = self.rows.tensor(Dtype::U8, &[n, FRAME_SIDE, FRAME_SIDE, 3])?;
        port.emit(Output::Frames(FrameBatch { v: VERSION, job: input.job.clone(), plan, offset, tensor }))
    }
}

impl Stage for Decode {
    const NAME: StageName = StageName::Decode;
    type Input<'a> = DecodeRequest;

    fn units(input: &DecodeRequest) -> u64 {
        input.segment.frames + input.segment.windows
    }

    /// Frames and windows leave in the order of their time, as soon as they are decoded.
    fn process(&mut self, input: DecodeRequest, port: &mut dyn Port) -> Result<(), Stop> {
        let segment = input.segment;
        let (end, windows) = (segment.first_frame + segment.frames, segment.first_window + segment.windows);
        let (mut at, mut window) = (segment.first_frame, segment.first_window);
        while at < end {
            let n = frames_together(at, self.batch_frames).min((end - at) as usize);
            // A decoder asks frame by frame whether anybody waits for it still.
            for _ in 0..n {
                if port.cancelled() {
                    return Err(Stop::Cancelled);
                }
                self.pace.wait(self.footage.second_s / f64::from(self.video.fps));
            }
            self.frames(&input, at, n, port)?;
            at += n as u64;
            while window < windows && (window + 1) as f64 * WINDOW_S <= at as f64 / f64::from(self.video.fps) {
                self.window(&input, window, port)?;
                window += 1;
            }
        }
        (window..windows).try_for_each(|index| self.window(&input, index, port))
    }

    fn probe(&self) -> Option<Probe> {
        let video = self.video;
        Some(Arc::new(move |name: &str, _: &mut Tell<'_>| Ok(video.info(name))))
    }
}

/// stage-vision.
pub struct Vision {
    times: Times,
    pace: Pace,
    rows: Rows,
}

impl Vision {
    /// A stage that takes these times.
    pub fn new(times: Times, pace: Pace) -> Self {
        Vision { times, pace, rows: Rows::default() }
    }
}

impl Stage for Vision {
    const NAME: StageName = StageName::Vision;
    type Input<'a> = FrameBatch<'a>;

    fn units(input: &FrameBatch<'_>) -> u64 {
        input.tensor.rows() as u64
    }

    fn process(&mut self, input: FrameBatch<'_>, port: &mut dyn Port) -> Result<(), Stop> {
        let frames = input.tensor.data().len() / FRAME_BYTES;
        self.pace.wait(frames as f64 * self.times.frame_s);
        let each = input.plan.image.as_ref().ok_or_else(|| unplanned("frames"))?.tokens_per_frame();
        let tensor = self.rows.tensor(Dtype::Bf16, &[frames * each as usize, WIDTHS_9B.cell])?;
        let FrameBatch { v, job, plan, offset, .. } = input;
        port.emit(Output::Features(FeatureBatch {
            v,
            job,
            plan,
            modality: Modality::Image,
            offset: offset * each,
            tensor,
        }))
    }
}

/// stage-audio.
pub struct Audio {
    times: Times,
    pace: Pace,
    rows: Rows,
}

impl Audio {
    /// A stage that takes these times.
    pub fn new(times: Times, pace: Pace) -> Self {
        Audio { times, pace, rows: Rows::default() }
    }
}

impl Stage for Audio {
    const NAME: StageName = StageName::Audio;
    type Input<'a> = PcmWindow<'a>;

    fn units(_: &PcmWindow<'_>) -> u64 {
        1
    }

    fn process(&mut self, input: PcmWindow<'_>, port: &mut dyn Port) -> Result<(), Stop> {
        // A last window of a second takes as long as a whole one: it is padded.
        self.pace.wait(self.times.window_s);
        let rows = input.plan.audio.as_ref().ok_or_else(|| unplanned("audio"))?.window_rows(input.index);
        if rows == 0 {
            return Ok(());
        }
        let tensor = self.rows.tensor(Dtype::Bf16, &[rows as usize, WIDTHS_9B.state])?;
        let PcmWindow { v, job, plan, index, .. } = input;
        let (modality, offset) = (Modality::Audio, index * WINDOW_ROWS);
        port.emit(Output::Features(FeatureBatch { v, job, plan, modality, offset, tensor }))
    }
}

/// stage-fuse.
pub struct Fuse {
    times: Times,
    pace: Pace,
    rows: Rows,
}

impl Fuse {
    /// A stage that takes these times.
    pub fn new(times: Times, pace: Pace) -> Self {
        Fuse { times, pace, rows: Rows::default() }
    }
}

impl Stage for Fuse {
    const NAME: StageName = StageName::Fuse;
    type Input<'a> = FeatureBatch<'a>;

    fn units(input: &FeatureBatch<'_>) -> u64 {
        input.tensor.rows() as u64
    }

    fn process(&mut self, input: FeatureBatch<'_>, port: &mut dyn Port) -> Result<(), Stop> {
        let pool = if input.modality == Modality::Audio { AUDIO_POOL } else { 1 };
        let tokens = input.tensor.rows() / pool as usize;
        if tokens == 0 {
            return Ok(());
        }
        self.pace.wait(tokens as f64 * self.times.fused_token_s);
        let tensor = self.rows.tensor(Dtype::Bf16, &[tokens, WIDTHS_9B.token])?;
        let FeatureBatch { v, job, plan, modality, offset, .. } = input;
        port.emit(Output::Tokens(TokenBatch { v, job, plan, modality, offset: offset / pool, tensor }))
    }
}

fn unplanned(what: &str) -> JobError {
    JobError::new(ErrorKind::Internal, format!("{what} of a plan that has none"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use protocol::message::{JobId, Segment};

    use super::*;
    use crate::capacity::model::{Flow, Traffic, items};

    /// Next stage's side of a port: outputs cut as the runtime cuts them, and counted.
    struct Cut {
        bodies: Vec<Vec<u8>>,
        most: usize,
    }

    impl Port for Cut {
        fn emit(&mut self, output: Output<'_>) -> Result<(), Stop> {
            self.bodies.extend(output.encode(self.most).unwrap().into_iter().map(|(_, body)| body));
            Ok(())
        }

        fn cancelled(&self) -> bool {
            false
        }
    }

    /// Bodies that a stage makes of those of another.
    fn through<S: Stage>(mut stage: S, inputs: &[Vec<u8>], most: usize) -> Vec<Vec<u8>>
    where
        for<'a> S::Input<'a>: serde::Deserialize<'a>,
    {
        let mut port = Cut { bodies: Vec::new(), most };
        for body in inputs {
            stage.process(protocol::wire::decode(body).unwrap(), &mut port).unwrap();
        }
        port.bodies
    }

    #[test]
    fn the_messages_of_the_waiting_stages_are_as_many_and_as_large_as_the_model_says() {
        let pace = || Pace::new(f64::INFINITY, Arc::new(AtomicU64::new(0)));
        let (times, footage) = (Times::named("h200-fp8").unwrap(), Footage::named("1080p").unwrap());
        for (seconds, batch, most) in [(7, 8, 4 << 20), (61, 8, 1 << 20), (35, 16, 7_800_000)] {
            let video = Video { seconds, fps: 1, answer_tokens: 1 };
            let plan = video.plan().unwrap();
            let (frames, windows) = items(&plan);
            let segment = Segment { first_frame: 0, frames, first_window: 0, windows };
            let (job, name) = (JobId::new("cut").unwrap(), "a".to_owned());
            let request = DecodeRequest { v: VERSION, job, video: name, span: None, plan: plan.clone(), segment };
            let decode = Decode::new(video, footage, batch, pace());
            let (frames, audio): (Vec<_>, Vec<_>) = through(decode, &[protocol::wire::encode(&request)], most)
                .into_iter()
                .partition(|body| protocol::wire::decode::<FrameBatch<'_>>(body).is_ok());
            let mut features = through(Vision::new(times.clone(), pace()), &frames, most);
            features.extend(through(Audio::new(times.clone(), pace()), &audio, most));
            let tokens = through(Fuse::new(times.clone(), pace()), &features, most);
            let said = Traffic::of(&plan, &WIDTHS_9B, (batch, most));
            for (bodies, flow) in
                [(&frames, said.frames), (&audio, said.audio), (&features, said.features), (&tokens, said.tokens)]
            {
                let bytes: usize = bodies.iter().map(Vec::len).sum();
                let Flow { messages, bytes: rows } = flow;
                assert_eq!(bodies.len() as u64, messages, "{seconds} s: {said:?}");
                let envelope = (bytes as u64 - rows) / messages;
                assert!((50..500).contains(&envelope), "{seconds} s: {envelope} bytes besides the rows");
            }
        }
    }
}
