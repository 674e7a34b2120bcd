//! Synthetic stage-decode for machines without GStreamer: `synthetic:SECONDS` is a video of one frame per second with audio.

use compute::random::SplitMix64;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::{DecodeRequest, FrameBatch, Output, PcmWindow};
use protocol::plan::{
    AudioPlan, FRAME_BYTES, FRAME_SIDE, MediaInfo, MediaPlan, SAMPLE_RATE, WINDOW_SAMPLES, frames_together,
};
use protocol::stage::{Port, Probe, Stage, Stop};
use protocol::tensor::{Dtype, Tensor};
use protocol::wire::VERSION;

/// Number of different frames of a video; they repeat.
const DIFFERENT: usize = 16;

/// Stage that makes frames and audio from noise, the same for the same video.
pub struct SyntheticDecode {
    frames: Vec<u8>,
    audio: Vec<i16>,
    /// Number of frames per message.
    batch_frames: usize,
}

impl SyntheticDecode {
    /// A stage that sends `batch_frames` frames per message.
    pub fn new(batch_frames: usize) -> Self {
        let mut noise = SplitMix64::new(0);
        // Blocks of one colour, since pictures have areas; noise in every pixel would be uniform grey to the tower.
        let mut frames = vec![0u8; DIFFERENT * FRAME_BYTES];
        for frame in frames.chunks_exact_mut(FRAME_BYTES) {
            let colours: Vec<u8> = (0..24 * 24 * 3).map(|_| noise.next() as u8).collect();
            for (i, pixel) in frame.chunks_exact_mut(3).enumerate() {
                let block = (i / FRAME_SIDE / 16) * 24 + i % FRAME_SIDE / 16;
                pixel.copy_from_slice(&colours[block * 3..block * 3 + 3]);
            }
        }
        let audio = (0..WINDOW_SAMPLES).map(|_| (noise.next() as i16) / 8).collect();
        SyntheticDecode { frames, audio, batch_frames: batch_frames.max(1) }
    }
}

fn seconds(video: &str) -> Result<u64, JobError> {
    video.strip_prefix("synthetic:").and_then(|s| s.parse().ok()).filter(|&s| s >= 2).ok_or_else(|| {
        JobError::new(
            ErrorKind::MediaNotFound,
            format!("cannot open {video}: it is not synthetic:SECONDS with at least 2 seconds"),
        )
    })
}

fn info(video: &str) -> Result<MediaInfo, JobError> {
    let seconds = seconds(video)?;
    Ok(MediaInfo {
        v: VERSION,
        duration_s: seconds as f64,
        frames: seconds,
        avg_fps: 1.0,
        width: FRAME_SIDE as u32,
        height: FRAME_SIDE as u32,
        rotation: 0,
        has_audio: true,
        audio_samples: seconds * SAMPLE_RATE,
        container: "synthetic".to_owned(),
        codecs: Vec::new(),
        content_id: video.to_owned(),
    })
}

impl Stage for SyntheticDecode {
    const NAME: StageName = StageName::Decode;
    type Input<'a> = DecodeRequest;

    fn units(input: &DecodeRequest) -> u64 {
        input.segment.frames + input.segment.windows
    }

    fn process(&mut self, input: DecodeRequest, port: &mut dyn Port) -> Result<(), Stop> {
        let plan = MediaPlan {
            image: None,
            audio: AudioPlan::new(seconds(&input.video)? * SAMPLE_RATE),
            ..input.plan.clone()
        };
        for index in 0..plan.audio.as_ref().map_or(0, AudioPlan::encoded_windows) {
            let samples = plan.audio.as_ref().map_or(0, |a| a.samples) - index * WINDOW_SAMPLES;
            let tensor = Tensor::from_i16(&self.audio[..samples.min(WINDOW_SAMPLES) as usize]);
            let (v, job, plan) = (VERSION, input.job.clone(), plan.clone());
            port.emit(Output::Pcm(PcmWindow { v, job, plan, index, tensor }))?;
        }
        let plan = MediaPlan { audio: None, ..input.plan };
        let frames = plan.image.as_ref().map_or(0, |i| i.frames);
        let mut offset = 0;
        while offset < frames {
            let n = frames_together(offset, self.batch_frames).min((frames - offset) as usize);
            let rows: Vec<u8> = (0..n)
                .map(|i| (offset as usize + i) % DIFFERENT)
                .flat_map(|i| &self.frames[i * FRAME_BYTES..(i + 1) * FRAME_BYTES])
                .copied()
                .collect();
            let tensor = Tensor::new(Dtype::U8, &[n, FRAME_SIDE, FRAME_SIDE, 3], rows)?;
            let (v, job, plan) = (VERSION, input.job.clone(), plan.clone());
            port.emit(Output::Frames(FrameBatch { v, job, plan, offset, tensor }))?;
            offset += n as u64;
        }
        Ok(())
    }

    fn probe(&self) -> Option<Probe> {
        Some(std::sync::Arc::new(info))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::message::{JobId, Segment};

    #[derive(Default)]
    struct Counted {
        frames: u64,
        samples: usize,
        messages: usize,
    }

    impl Port for Counted {
        fn emit(&mut self, output: Output<'_>) -> Result<(), Stop> {
            self.messages += 1;
            match output {
                Output::Frames(batch) => {
                    assert_eq!(batch.offset, self.frames);
                    self.frames += batch.tensor.rows() as u64;
                }
                Output::Pcm(window) => self.samples += window.tensor.rows(),
                _ => panic!("a decoder emits frames and audio only"),
            }
            Ok(())
        }

        fn cancelled(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_synthetic_video_is_as_long_as_its_name_says() {
        let info = info("synthetic:35").unwrap();
        let plan = MediaPlan::new(&info, None, 1.0).unwrap();
        let segment = Segment { first_frame: 0, frames: 35, first_window: 0, windows: 2 };
        let job = JobId::new("job").unwrap();
        let request = DecodeRequest { v: VERSION, job, video: "synthetic:35".to_owned(), span: None, segment, plan };
        let mut counted = Counted::default();
        SyntheticDecode::new(16).process(request, &mut counted).unwrap();
        assert_eq!((counted.frames, counted.samples, counted.messages), (35, 560_000, 2 + 6));
        assert!(super::info("synthetic:1").is_err() && super::info("film.mp4").is_err());
    }
}
