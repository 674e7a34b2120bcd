//! Whole pipeline in one process and on one thread: the stages' own code, with every message encoded, cut to size and
//! decoded again as on the bus. Its answer is the reference for a run over a real broker.

use std::collections::VecDeque;
use std::path::Path;

use config::Config;
use protocol::error::{ErrorKind, JobError};
use protocol::event::{Event, JobResult};
use protocol::message::{DecodeRequest, FeatureBatch, FrameBatch, JobRequest, Output, PcmWindow, TokenBatch};
use protocol::plan::{FRAME_BYTES, FRAME_SIDE, MediaInfo, MediaPlan, SAMPLE_RATE, WINDOW_SAMPLES};
use protocol::stage::{JobPort, Port, Stage, Stop};
use protocol::tensor::{Dtype, Tensor};
use protocol::wire::{self, VERSION, WireError};
use stage_audio::AudioStage;
use stage_fuse::FuseStage;
use stage_llm::LlmStage;
use stage_vision::VisionStage;

use crate::delivery::Delivery;

/// Output of stage-decode for a video: sampled frames and audio, the job's span already cut out.
#[derive(Clone, Copy, Debug)]
pub struct Video<'a> {
    /// Frames of 384 x 384 RGB, one after another; none without a video track.
    pub frames: Option<&'a [u8]>,
    /// Samples at 16 kHz mono; none without an audio track.
    pub pcm: Option<&'a [i16]>,
    /// Duration in seconds, to which the answer's fractions refer.
    pub duration_s: f64,
}

impl<'a> Video<'a> {
    /// A video of one second per frame, or as long as its audio if it has no frames.
    pub fn new(frames: Option<&'a [u8]>, pcm: Option<&'a [i16]>) -> Self {
        let audio_s = pcm.map_or(0.0, |p| p.len() as f64 / SAMPLE_RATE as f64);
        Video { frames, pcm, duration_s: frames.map_or(audio_s, |f| (f.len() / FRAME_BYTES) as f64) }
    }

    fn frame_count(&self) -> u64 {
        self.frames.map_or(0, |f| (f.len() / FRAME_BYTES) as u64)
    }
}

/// Answer of a job, and the events that its client would have received.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The result. Its plan has `frame_step` 1, since the frames are sampled already.
    pub result: JobResult,
    /// All events before the terminal one.
    pub events: Vec<Event>,
}

impl Answered {
    /// The streamed text.
    pub fn streamed(&self) -> String {
        let delta = |e: &Event| if let Event::Text { delta, .. } = e { delta.clone() } else { String::new() };
        self.events.iter().map(delta).collect()
    }
}

/// Answer of one question about one video, with batches in order and cut as by the default configuration.
///
/// # Errors
/// [`Stop::Failed`] with the job's error, also for a checkpoint that cannot be loaded.
pub fn answer_in_process(
    checkpoint: &Path,
    frames: Option<&[u8]>,
    pcm: Option<&[i16]>,
    request: &JobRequest,
) -> Result<JobResult, Stop> {
    let mut config = Config::default();
    config.model.dir = checkpoint.to_owned();
    let video = Video::new(frames, pcm);
    Ok(Pipeline::open(&config)?.answer(&video, request, Delivery::in_order())?.result)
}

/// The four stages after stage-decode, loaded.
pub struct Pipeline {
    vision: VisionStage,
    audio: AudioStage,
    fuse: FuseStage,
    llm: LlmStage,
}

impl Pipeline {
    /// Loads every stage as its own process would, but without `llm.keep_video`: every question goes through all stages.
    ///
    /// # Errors
    /// That of the stage that cannot be loaded.
    pub fn open(config: &Config) -> Result<Self, JobError> {
        let mut config = config.clone();
        config.llm.keep_video = false;
        Ok(Pipeline {
            vision: stage_vision::open(&config)?,
            audio: stage_audio::open(&config)?,
            fuse: stage_fuse::open(&config)?,
            llm: stage_llm::open(&config)?,
        })
    }

    /// stage-llm, which owns the jobs.
    pub fn llm(&self) -> &LlmStage {
        &self.llm
    }

    /// Answers a job about a video whose span is cut out already; the job's span only gives its start.
    ///
    /// # Errors
    /// [`Stop::Failed`] with the job's error.
    pub fn answer(&mut self, video: &Video<'_>, request: &JobRequest, delivery: Delivery) -> Result<Answered, Stop> {
        let start_s = request.span.map_or(0.0, |[start, _]| start);
        let whole = JobRequest { span: None, ..request.clone() };
        let stages = Encoders { vision: &mut self.vision, audio: &mut self.audio, fuse: &mut self.fuse };
        let mut port = InProcess {
            stages,
            video,
            fps: request.fps,
            delivery,
            tokens: VecDeque::new(),
            given: VecDeque::new(),
            events: vec![],
        };
        let mut result = self.llm.answer(&whole, &mut port)?;
        for range in &mut result.ranges {
            range.start_s += start_s;
            range.end_s += start_s;
        }
        Ok(Answered { result, events: port.events })
    }
}

struct Encoders<'a> {
    vision: &'a mut VisionStage,
    audio: &'a mut AudioStage,
    fuse: &'a mut FuseStage,
}

/// Port of the job's owner: it runs the other stages on the video.
struct InProcess<'a> {
    stages: Encoders<'a>,
    video: &'a Video<'a>,
    fps: f64,
    delivery: Delivery,
    /// Encoded token batches that the owner has not taken yet.
    tokens: VecDeque<Vec<u8>>,
    /// Token batches that the owner has taken, for a rewind.
    given: VecDeque<Vec<u8>>,
    events: Vec<Event>,
}

/// Port that keeps a stage's output, encoded.
struct Sent<'a> {
    delivery: &'a mut Delivery,
    bodies: Vec<Vec<u8>>,
}

impl Port for Sent<'_> {
    fn emit(&mut self, output: Output<'_>) -> Result<(), Stop> {
        self.bodies.extend(self.delivery.send(&output).map_err(internal)?);
        Ok(())
    }

    fn cancelled(&self) -> bool {
        false
    }
}

fn internal(error: WireError) -> Stop {
    Stop::Failed(JobError::new(ErrorKind::Internal, error.to_string()))
}

impl InProcess<'_> {
    /// Runs the next stage on one output of stage-decode; returns the encoded features.
    fn encode(&mut self, output: &Output<'_>) -> Result<Vec<Vec<u8>>, Stop> {
        let bodies = self.delivery.send(output).map_err(internal)?;
        let mut sent = Sent { delivery: &mut self.delivery, bodies: Vec::new() };
        for body in &bodies {
            match output {
                Output::Frames(_) => {
                    let frames: FrameBatch<'_> = wire::decode(body).map_err(internal)?;
                    self.stages.vision.process(frames, &mut sent)?;
                }
                _ => {
                    let window: PcmWindow<'_> = wire::decode(body).map_err(internal)?;
                    self.stages.audio.process(window, &mut sent)?;
                }
            }
        }
        Ok(sent.bodies)
    }

    fn fuse(&mut self, features: Vec<Vec<u8>>) -> Result<(), Stop> {
        let mut sent = Sent { delivery: &mut self.delivery, bodies: Vec::new() };
        for body in &features {
            let batch: FeatureBatch<'_> = wire::decode(body).map_err(internal)?;
            self.stages.fuse.process(batch, &mut sent)?;
        }
        let tokens = sent.bodies;
        self.tokens = self.delivery.order(tokens).into();
        Ok(())
    }

    /// Features of the frames as stage-decode sends them: all, or an empty batch if every byte is zero.
    fn image(&mut self, request: &DecodeRequest) -> Result<Vec<Vec<u8>>, Stop> {
        let (Some(rows), Some(image)) = (self.video.frames, &request.plan.image) else { return Ok(Vec::new()) };
        let mut plan = MediaPlan { audio: None, ..request.plan.clone() };
        let mut batches = self.delivery.frame_batches(image.frames);
        if rows.iter().all(|&b| b == 0) {
            plan.image = None;
            batches = std::iter::once(0..0).collect();
        }
        let mut features = Vec::new();
        for batch in batches {
            let shape = [(batch.end - batch.start) as usize, FRAME_SIDE, FRAME_SIDE, 3];
            let bytes = &rows[batch.start as usize * FRAME_BYTES..batch.end as usize * FRAME_BYTES];
            features.extend(self.encode(&Output::Frames(FrameBatch {
                v: VERSION,
                job: request.job.clone(),
                plan: plan.clone(),
                offset: batch.start,
                tensor: Tensor::new(Dtype::U8, &shape, bytes).map_err(internal)?,
            }))?);
        }
        Ok(features)
    }

    /// Features of the audio as stage-decode sends it: the windows to encode, or an empty one for silence.
    fn audio(&mut self, request: &DecodeRequest) -> Result<Vec<Vec<u8>>, Stop> {
        let (Some(pcm), Some(audio)) = (self.video.pcm, &request.plan.audio) else { return Ok(Vec::new()) };
        let mut plan = MediaPlan { image: None, ..request.plan.clone() };
        let mut windows = audio.encoded_windows();
        if pcm.iter().all(|&s| s == 0) {
            plan.audio = None;
            windows = 1;
        }
        let mut features = Vec::new();
        for index in self.delivery.order((0..windows).collect()) {
            let first = (index * WINDOW_SAMPLES) as usize;
            let last = if plan.audio.is_some() { pcm.len().min(first + WINDOW_SAMPLES as usize) } else { first };
            features.extend(self.encode(&Output::Pcm(PcmWindow {
                v: VERSION,
                job: request.job.clone(),
                plan: plan.clone(),
                index,
                tensor: Tensor::from_i16(&pcm[first..last]),
            }))?);
        }
        Ok(features)
    }
}

impl JobPort for InProcess<'_> {
    fn probe(&mut self, _: &str) -> Result<MediaInfo, Stop> {
        Ok(MediaInfo {
            v: VERSION,
            duration_s: self.video.duration_s,
            frames: self.video.frame_count(),
            // One frame per sampled one: the frames come sampled.
            avg_fps: self.fps,
            width: FRAME_SIDE as u32,
            height: FRAME_SIDE as u32,
            rotation: 0,
            mirrored: false,
            has_audio: self.video.pcm.is_some(),
            audio_samples: self.video.pcm.map_or(0, |p| p.len() as u64),
            container: String::new(),
            codecs: Vec::new(),
            content_id: "in-process".to_owned(),
            notes: Vec::new(),
        })
    }

    fn request_decode(&mut self, request: DecodeRequest) -> Result<(), Stop> {
        let body = wire::encode(&request);
        let request: DecodeRequest = wire::decode(&body).map_err(internal)?;
        let mut features = self.image(&request)?;
        features.extend(self.audio(&request)?);
        let features = self.delivery.order(features);
        self.fuse(features)
    }

    fn next_tokens(&mut self, take: &mut dyn FnMut(TokenBatch<'_>) -> Result<(), Stop>) -> Result<(), Stop> {
        if self.delivery.is_late() {
            return Ok(());
        }
        let Some(body) = self.tokens.pop_front() else {
            let error = JobError::new(ErrorKind::Internal, "no token batch is left, but the owner asks for more");
            return Err(Stop::Failed(error));
        };
        let outcome = take(wire::decode(&body).map_err(internal)?);
        self.given.push_back(body);
        outcome
    }

    fn rewind_tokens(&mut self) {
        self.given.append(&mut self.tokens);
        self.tokens = std::mem::take(&mut self.given);
    }

    fn take_gpu(&mut self) -> Result<(), Stop> {
        // All stages are in this process, on a device with enough memory.
        Ok(())
    }

    fn return_gpu(&mut self) {}

    fn more_tokens(&mut self, take: &mut dyn FnMut(TokenBatch<'_>) -> Result<(), Stop>) -> Result<bool, Stop> {
        // A batch may be late here too.
        if self.delivery.is_late() {
            return Ok(false);
        }
        let Some(body) = self.tokens.pop_front() else { return Ok(false) };
        take(wire::decode(&body).map_err(internal)?)?;
        self.given.push_back(body);
        Ok(true)
    }

    fn event(&mut self, event: Event) -> Result<(), Stop> {
        self.events.push(event);
        Ok(())
    }

    fn cancelled(&self) -> bool {
        false
    }
}
