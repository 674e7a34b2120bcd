//! Synthetic stage-decode for machines without GStreamer: `synthetic:SECONDS` is a video of noise, one frame per second with
//! audio, and `synthetic:SECONDS:NAME` another one that is as long; every other name is a directory with the frames and samples that a stage-decode has delivered elsewhere.

use std::path::Path;

use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::{DecodeRequest, FrameBatch, Output, PcmWindow};
use protocol::plan::{AudioPlan, FRAME_SIDE, MediaInfo, MediaPlan, SAMPLE_RATE, WINDOW_SAMPLES, frames_together};
use protocol::stage::{Port, Probe, Stage, Stop, Tell};
use protocol::tensor::{Dtype, Tensor};
use protocol::wire::VERSION;

use super::footage::Footage;

/// Stage whose videos need no decoder.
pub struct SyntheticDecode {
    noise: Footage,
    /// Number of frames per message.
    batch_frames: usize,
}

impl SyntheticDecode {
    /// A stage that sends `batch_frames` frames per message.
    pub fn new(batch_frames: usize) -> Self {
        SyntheticDecode { noise: Footage::noise(), batch_frames: batch_frames.max(1) }
    }
}

/// Video by its name.
enum Video {
    /// Noise of so many seconds.
    Noise(u64),
    /// What a directory holds.
    Delivered(Footage),
}

impl Video {
    fn open(video: &str) -> Result<Self, JobError> {
        let missing = |why: String| JobError::new(ErrorKind::MediaNotFound, format!("cannot open {video}: {why}"));
        if let Some(seconds) = video.strip_prefix("synthetic:") {
            let (seconds, _name) = seconds.split_once(':').unwrap_or((seconds, ""));
            let seconds = seconds.parse::<u64>().ok().filter(|&s| s >= 2);
            let seconds = seconds
                .ok_or_else(|| missing("it is not synthetic:SECONDS[:NAME] with at least 2 seconds".to_owned()))?;
            return Ok(Video::Noise(seconds));
        }
        Footage::read(Path::new(video)).map(Video::Delivered).map_err(|e| missing(format!("{e:#}")))
    }

    /// Number of frames, one a second, and of samples.
    fn lengths(&self) -> (u64, u64) {
        match self {
            Video::Noise(seconds) => (*seconds, seconds * SAMPLE_RATE),
            Video::Delivered(footage) => footage.lengths(),
        }
    }
}

fn info(video: &str) -> Result<MediaInfo, JobError> {
    let (frames, audio_samples) = Video::open(video)?.lengths();
    Ok(MediaInfo {
        v: VERSION,
        duration_s: frames as f64,
        frames,
        avg_fps: 1.0,
        width: FRAME_SIDE as u32,
        height: FRAME_SIDE as u32,
        rotation: 0,
        mirrored: false,
        has_audio: audio_samples > 0,
        audio_samples,
        container: "synthetic".to_owned(),
        codecs: Vec::new(),
        content_id: video.to_owned(),
        notes: Vec::new(),
    })
}

impl Stage for SyntheticDecode {
    const NAME: StageName = StageName::Decode;
    type Input<'a> = DecodeRequest;

    fn units(input: &DecodeRequest) -> u64 {
        input.segment.frames + input.segment.windows
    }

    fn process(&mut self, input: DecodeRequest, port: &mut dyn Port) -> Result<(), Stop> {
        let video = Video::open(&input.video)?;
        let footage = match &video {
            Video::Noise(_) => &self.noise,
            Video::Delivered(footage) => footage,
        };
        let plan = MediaPlan { image: None, audio: AudioPlan::new(video.lengths().1), ..input.plan.clone() };
        for index in 0..plan.audio.as_ref().map_or(0, AudioPlan::encoded_windows) {
            let samples = plan.audio.as_ref().map_or(0, |a| a.samples) - index * WINDOW_SAMPLES;
            let tensor = Tensor::from_i16(footage.window(index, samples));
            let (v, job, plan) = (VERSION, input.job.clone(), plan.clone());
            port.emit(Output::Pcm(PcmWindow { v, job, plan, index, tensor }))?;
        }
        let plan = MediaPlan { audio: None, ..input.plan };
        let frames = plan.image.as_ref().map_or(0, |i| i.frames);
        let mut offset = 0;
        while offset < frames {
            let n = frames_together(offset, self.batch_frames).min((frames - offset) as usize);
            let rows: Vec<u8> = (0..n as u64).flat_map(|i| footage.frame(offset + i)).copied().collect();
            let tensor = Tensor::new(Dtype::U8, &[n, FRAME_SIDE, FRAME_SIDE, 3], rows)?;
            let (v, job, plan) = (VERSION, input.job.clone(), plan.clone());
            port.emit(Output::Frames(FrameBatch { v, job, plan, offset, tensor }))?;
            offset += n as u64;
        }
        Ok(())
    }

    fn probe(&self) -> Option<Probe> {
        Some(std::sync::Arc::new(|video: &str, _: &mut Tell<'_>| Ok(info(video)?)))
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
        let plan = MediaPlan::new(&info, None, 1.0, protocol::plan::FrameGrid::default()).unwrap();
        let segment = Segment { first_frame: 0, frames: 35, first_window: 0, windows: 2 };
        let job = JobId::new("job").unwrap();
        let request = DecodeRequest { v: VERSION, job, video: "synthetic:35".to_owned(), span: None, segment, plan };
        let mut counted = Counted::default();
        SyntheticDecode::new(16).process(request, &mut counted).unwrap();
        assert_eq!((counted.frames, counted.samples, counted.messages), (35, 560_000, 2 + 6));
        assert!(super::info("synthetic:1").is_err() && super::info("film.mp4").is_err());
        let named = super::info("synthetic:35:other").unwrap();
        assert!((named.frames, named.audio_samples) == (35, 560_000) && named.content_id != info.content_id);
    }
}
