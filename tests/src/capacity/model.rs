//! The arithmetic: what one video takes of each stage and of the bus, and how many of each a load needs.

use protocol::error::StageName;
use protocol::plan::{
    FRAME_BYTES, FrameGrid, MediaInfo, MediaPlan, SAMPLE_RATE, WINDOW_ROWS, WINDOW_SAMPLES, frames_together,
};
use serde::Serialize;

use super::times::{Footage, Times};

/// Widths of what travels between the stages of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Widths {
    /// Values of one image cell, as stage-vision leaves it.
    pub cell: usize,
    /// Values of one encoder state of stage-audio.
    pub state: usize,
    /// Values of one token in the language model's space.
    pub token: usize,
    /// Bytes of a value.
    pub value_bytes: usize,
}

/// Vidi 1.5 9B in 16 bits: cells of four times the tower's 1,152, states of Whisper large-v3, tokens of Gemma 2 9B.
pub const WIDTHS_9B: Widths = Widths { cell: 4608, state: 1280, token: 3584, value_bytes: 2 };

impl Widths {
    /// Bytes of one image or audio token on the bus.
    pub fn token_bytes(&self) -> u64 {
        (self.token * self.value_bytes) as u64
    }
}

/// Bytes of a message besides its rows: plan, headers, subjects, and what the broker says about it.
const ENVELOPE_BYTES: u64 = 700;
/// What is asked about: a video with sound, and how long its answer is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Video {
    /// Its length, seconds.
    pub seconds: u64,
    /// Frames that are taken of each second.
    pub fps: u32,
    /// Tokens of the answer.
    pub answer_tokens: u32,
}

impl Video {
    /// What a container of this video would say. Every frame that it has is taken.
    pub fn info(&self, name: &str) -> MediaInfo {
        MediaInfo {
            v: protocol::wire::VERSION,
            duration_s: self.seconds as f64,
            frames: self.seconds * u64::from(self.fps),
            avg_fps: f64::from(self.fps),
            width: 1920,
            height: 1080,
            rotation: 0,
            mirrored: false,
            has_audio: true,
            audio_samples: self.seconds * SAMPLE_RATE,
            container: "none".to_owned(),
            codecs: Vec::new(),
            content_id: name.to_owned(),
            notes: Vec::new(),
        }
    }

    /// Its totals.
    ///
    /// # Errors
    /// Those of [`MediaPlan::new`]: too short.
    pub fn plan(&self) -> anyhow::Result<MediaPlan> {
        Ok(MediaPlan::new(&self.info(""), None, f64::from(self.fps), FrameGrid::Budget)?)
    }
}

/// Image and audio tokens of a plan.
pub fn tokens(plan: &MediaPlan) -> u64 {
    plan.image.as_ref().map_or(0, |i| i.tokens) + plan.audio.as_ref().map_or(0, |a| a.tokens)
}

/// Frames and windows of a plan.
pub fn items(plan: &MediaPlan) -> (u64, u64) {
    (plan.image.as_ref().map_or(0, |i| i.frames), plan.audio.as_ref().map_or(0, |a| a.encoded_windows()))
}

/// Messages of one stream, and their bytes. Each is written once and read once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Flow {
    /// Messages.
    pub messages: u64,
    /// Bytes of their rows.
    pub bytes: u64,
}

impl Flow {
    /// Rows that were cut at `most` bytes of body, `quantum` rows together.
    fn cut(&mut self, rows: u64, row_bytes: u64, quantum: u64, most: u64) {
        let fit = (most.saturating_sub(ENVELOPE_BYTES) / row_bytes / quantum * quantum).max(1);
        self.messages += rows.div_ceil(fit);
        self.bytes += rows * row_bytes;
    }
}

/// What one video comes to on the bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Traffic {
    /// Frames, to stage-vision.
    pub frames: Flow,
    /// Sound, to stage-audio.
    pub audio: Flow,
    /// Features, to stage-fuse.
    pub features: Flow,
    /// Tokens, to the job's owner.
    pub tokens: Flow,
}

impl Traffic {
    /// Traffic of a plan whose frames leave stage-decode `batch` at a time, in bodies of at most `body` bytes.
    pub fn of(plan: &MediaPlan, widths: &Widths, (batch, body): (usize, usize)) -> Self {
        let (frames, windows) = items(plan);
        let cells = plan.image.as_ref().map_or(0, |i| i.tokens_per_frame());
        let (cell, state) = ((widths.cell * widths.value_bytes) as u64, (widths.state * widths.value_bytes) as u64);
        let (mut all, most, mut at) = (Traffic::default(), body as u64, 0);
        let fit = (most.saturating_sub(ENVELOPE_BYTES) / FRAME_BYTES as u64).max(1);
        while at < frames {
            let n = (frames_together(at, batch) as u64).min(frames - at);
            for first in (0..n).step_by(fit as usize) {
                let part = fit.min(n - first);
                all.frames.cut(part, FRAME_BYTES as u64, 1, most);
                // A message of frames gives one of features, cut anew, and each of those one of tokens.
                let before = all.features.messages;
                all.features.cut(part * cells, cell, 1, most);
                all.tokens.messages += all.features.messages - before;
            }
            at += n;
        }
        all.tokens.bytes += plan.image.as_ref().map_or(0, |i| i.tokens) * widths.token_bytes();
        for index in 0..windows {
            let audio = plan.audio.as_ref().expect("a plan with windows has audio. This is a bug.");
            let samples = (audio.samples - index * WINDOW_SAMPLES).min(WINDOW_SAMPLES);
            all.audio.messages += 1;
            all.audio.bytes += samples * 2;
            let (rows, before) = (audio.window_rows(index).min(WINDOW_ROWS), all.features.messages);
            all.features.cut(rows, state, 5, most);
            all.tokens.messages += all.features.messages - before;
        }
        all.tokens.bytes += plan.audio.as_ref().map_or(0, |a| a.tokens) * widths.token_bytes();
        all
    }

    /// All streams together.
    pub fn all(&self) -> Flow {
        let flows = [self.frames, self.audio, self.features, self.tokens];
        Flow { messages: flows.iter().map(|f| f.messages).sum(), bytes: flows.iter().map(|f| f.bytes).sum() }
    }

    /// Bytes that the broker takes in, and gives out again, envelopes included.
    pub fn bus_bytes(&self) -> u64 {
        let all = self.all();
        all.bytes + all.messages * ENVELOPE_BYTES
    }
}

/// Seconds that one video takes of each stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Work {
    /// Of a stage-decode.
    pub decode_s: f64,
    /// Of CPU cores, for decoding.
    pub decode_cpu_s: f64,
    /// Of a stage-vision.
    pub vision_s: f64,
    /// Of a stage-audio.
    pub audio_s: f64,
    /// Of a stage-fuse.
    pub fuse_s: f64,
    /// Of a stage-llm, computing.
    pub llm_s: f64,
    /// Of the stage-llm that owns the job, from its turn to its answer, where no other job is in the way: the longest of
    /// the stages before the prompt, since they work side by side, and the answer.
    pub held_s: f64,
}

impl Work {
    /// Work of a video.
    ///
    /// # Errors
    /// A video too short to be asked about.
    pub fn of(video: &Video, times: &Times, footage: &Footage) -> anyhow::Result<Self> {
        let plan = video.plan()?;
        let ((frames, windows), tokens) = (items(&plan), tokens(&plan) as f64);
        let decode_s = video.seconds as f64 * footage.second_s;
        let (vision_s, audio_s) = (frames as f64 * times.frame_s, windows as f64 * times.window_s);
        let (fuse_s, prefill_s) = (tokens * times.fused_token_s, tokens * times.prefill_token_s);
        let answer_s = times.prompt_s + f64::from(video.answer_tokens) * (times.step_s + tokens * times.step_token_s);
        let longest = [decode_s, vision_s, audio_s, fuse_s, prefill_s].into_iter().fold(0.0, f64::max);
        Ok(Work {
            decode_s,
            decode_cpu_s: video.seconds as f64 * footage.cpu_s,
            vision_s,
            audio_s,
            fuse_s,
            llm_s: prefill_s + answer_s,
            held_s: longest + answer_s,
        })
    }

    /// Seconds of a GPU, all stages together.
    pub fn gpu_s(&self) -> f64 {
        self.vision_s + self.audio_s + self.fuse_s + self.llm_s
    }

    /// Seconds that a replica of a stage is busy with a video, as its status counts them: for stage-llm all that it holds
    /// the job.
    pub fn busy_s(&self, stage: StageName) -> f64 {
        match stage {
            StageName::Decode => self.decode_s,
            StageName::Vision => self.vision_s,
            StageName::Audio => self.audio_s,
            StageName::Fuse => self.fuse_s,
            StageName::Llm => self.held_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTES: Video = Video { seconds: 300, fps: 1, answer_tokens: 64 };

    #[test]
    fn five_minutes_are_what_the_shapes_of_the_protocol_say() {
        let plan = MINUTES.plan().unwrap();
        assert_eq!((tokens(&plan), items(&plan)), (61_800, (300, 10)));
        let traffic = Traffic::of(&plan, &WIDTHS_9B, (8, (4 << 20) - 1024));
        assert_eq!(traffic.frames.bytes, 300 * 442_368);
        assert_eq!(traffic.audio, Flow { messages: 10, bytes: 9_600_000 });
        assert_eq!(traffic.features.bytes, 58_800 * 9_216 + 15_000 * 2_560);
        assert_eq!(traffic.tokens, Flow { messages: traffic.features.messages, bytes: 61_800 * 7_168 });
        // 2, 2, 4 frames, then eights, of which the last is half; a message of 8 has 1,568 rows of features, 454 a body.
        assert_eq!(traffic.frames.messages, 3 + 37);
        assert_eq!(traffic.features.messages, 1 + 1 + 2 + 36 * 4 + 2 + 10);
    }
}
