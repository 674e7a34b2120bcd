//! Totals of a video: frames, grid, windows and tokens, settled before anything is computed.
//!
//! Position embeddings and the adaptive grid depend on totals, so every message carries its [`MediaPlan`], and a
//! worker needs nothing else to place its rows.

mod grid;

use serde::{Deserialize, Serialize};

use crate::error::{ErrorKind, JobError};
use crate::wire_error::{WireError, WireErrorKind};

pub use grid::{FrameGrid, IMAGE_POOL, PADDED_SIDE, PATCH_SIDE, grid_side};

/// PCM sample rate, Hz (MODEL.md 2.3).
pub const SAMPLE_RATE: u64 = 16_000;
/// Samples of one encoder window: 30 s (MODEL.md 2.3).
pub const WINDOW_SAMPLES: u64 = 480_000;
/// Samples between mel frames (MODEL.md 2.3).
pub const HOP_SAMPLES: u64 = 160;
/// Less sound than this gives no audio tokens (MODEL.md, "Decisions").
pub const MIN_AUDIO_SAMPLES: u64 = 3_200;
/// Encoder rows that the audio pool takes together (MODEL.md 5).
pub const AUDIO_POOL: u64 = 5;
/// Encoder rows of a whole window (MODEL.md 5).
pub const WINDOW_ROWS: u64 = 1_500;
/// Picture side in pixels (MODEL.md 2.2).
pub const FRAME_SIDE: usize = 384;
/// Bytes of one frame: 384 x 384 RGB.
pub const FRAME_BYTES: usize = FRAME_SIDE * FRAME_SIDE * 3;
/// Frames or windows that a plan may hold at most: two days at 30 fps, far above any real video.
pub const MAX_ITEMS: u64 = 1 << 23;

/// Notes that a plan takes over from a probe at most.
const MAX_NOTES: usize = 8;
/// Bytes of a note at most.
const NOTE_BYTES: usize = 1 << 10;

/// Frames of a video's first message.
const FIRST_FRAMES: u64 = 2;

/// Frames of the message that begins with frame `offset`, at most `most`: as many as went before it, so that the stages
/// behind have something to do at once, and long videos soon travel in large messages. It depends on nothing else: a
/// segment that is decoded again is cut alike.
pub fn frames_together(offset: u64, most: usize) -> usize {
    offset.max(FIRST_FRAMES).min(most.max(1) as u64) as usize
}

/// Facts about a file, as its container has them (reply to a probe); counts are exact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MediaInfo {
    /// Protocol version.
    #[serde(default = "crate::wire::version")]
    pub v: u32,
    /// Duration of the file in seconds, as ffprobe's `format=duration`.
    pub duration_s: f64,
    /// Frames that decode; 0 without a picture.
    pub frames: u64,
    /// Average frame rate; 0 without a picture.
    pub avg_fps: f64,
    /// Width as shown, after rotation.
    pub width: u32,
    /// Height as shown, after rotation.
    pub height: u32,
    /// Clockwise turn, in degrees, that shows the picture upright: 0, 90, 180, 270.
    pub rotation: u32,
    /// Whether left and right are exchanged before that turn.
    #[serde(default, skip_serializing_if = "is_false")]
    pub mirrored: bool,
    /// Whether there is a sound track.
    pub has_audio: bool,
    /// Length of the sound at 16 kHz as far as the container tells; exact only once decoded.
    pub audio_samples: u64,
    /// Container format.
    pub container: String,
    /// Codecs of the tracks used.
    pub codecs: Vec<String>,
    /// Identity of the content: `sampled:` and a hash of size, mtime and samples of the bytes.
    pub content_id: String,
    /// Sentences about tracks that are there and are not read, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Image part of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePlan {
    /// Decoded frames from one sampled frame to the next.
    pub frame_step: u64,
    /// Sampled frames F.
    pub frames: u64,
    /// Rows and columns of the tokens of one frame.
    pub grid: [u32; 2],
    /// Image tokens: F x h x w.
    pub tokens: u64,
    /// Whether the grid is the checkpoint's whatever the number of frames ([`FrameGrid::Fixed`]).
    #[serde(default, skip_serializing_if = "is_false")]
    pub fixed: bool,
    /// Sampled frames whose picture does not decode, so that the one before it stands in: in a message those among its
    /// own rows, in a result all. Rising.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<u64>,
}

/// Audio part of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AudioPlan {
    /// PCM samples at 16 kHz.
    pub samples: u64,
    /// Windows of 480,000 samples that the sound is cut into, the last one partial.
    pub windows: u64,
    /// 10 ms frames, summed over windows of unpadded length.
    pub mel_frames: u64,
    /// Encoder rows kept.
    pub rows: u64,
    /// Audio tokens T.
    pub tokens: u64,
}

/// Totals of one job's video.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MediaPlan {
    /// Identity of the content, see [`MediaInfo::content_id`].
    pub content_id: String,
    /// Seconds that the answer's fractions are fractions of.
    pub duration_s: f64,
    /// Image part; none without a picture.
    #[serde(default)]
    pub image: Option<ImagePlan>,
    /// Audio part; none without sound, or with less than 0.2 s of it.
    #[serde(default)]
    pub audio: Option<AudioPlan>,
    /// Sentences about what of the file is not used, or otherwise than asked, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Decoded frames between sampled ones: Python's `round(avg_fps / fps)` (MODEL.md 2.1).
pub fn frame_step(avg_fps: f64, fps: f64) -> u64 {
    (avg_fps / fps).round_ties_even() as u64
}

impl ImagePlan {
    /// Plan for `frames` sampled frames on the grid of Vidi 1.5 9B, [`FrameGrid::Budget`].
    pub fn new(frame_step: u64, frames: u64) -> Self {
        Self::on(FrameGrid::Budget, frame_step, frames)
    }

    /// Plan for `frames` sampled frames on the grid of a checkpoint.
    pub fn on(grid: FrameGrid, frame_step: u64, frames: u64) -> Self {
        let side = grid.side(frames);
        let tokens = frames * u64::from(side * side);
        let fixed = matches!(grid, FrameGrid::Fixed(_));
        ImagePlan { frame_step, frames, grid: [side, side], tokens, fixed, replaced: Vec::new() }
    }

    /// Rule that the grid follows.
    pub fn rule(&self) -> FrameGrid {
        if self.fixed { FrameGrid::Fixed(self.grid[0]) } else { FrameGrid::Budget }
    }

    /// Refuses a plan that was made for another checkpoint, whose frames have other grids.
    ///
    /// # Errors
    /// `model`, with both rules.
    pub fn expect(&self, grid: FrameGrid) -> Result<(), JobError> {
        let found = self.rule();
        if found == grid {
            return Ok(());
        }
        Err(JobError::new(ErrorKind::Model, format!("the plan's frames have {found}, those of this model {grid}"))
            .hint("serve every stage from the same checkpoint"))
    }

    /// Tokens of one frame.
    pub fn tokens_per_frame(&self) -> u64 {
        u64::from(self.grid[0]) * u64::from(self.grid[1])
    }

    fn check(&self) -> Result<(), WireError> {
        let ok = (2..=MAX_ITEMS).contains(&self.frames)
            && self.frame_step > 0
            && self.replaced.is_sorted_by(|a, b| a < b)
            && self.replaced.last().is_none_or(|&last| last < self.frames)
            && self.rule().is_possible()
            && *self
                == ImagePlan {
                    replaced: self.replaced.clone(),
                    ..ImagePlan::on(self.rule(), self.frame_step, self.frames)
                };
        ok.then_some(()).ok_or_else(|| inconsistent("image", self))
    }
}

impl AudioPlan {
    /// Plan for a sound of `samples`; none if that is too short to give tokens.
    pub fn new(samples: u64) -> Option<Self> {
        if samples < MIN_AUDIO_SAMPLES {
            return None;
        }
        let whole = samples / WINDOW_SAMPLES;
        let mel_frames = whole * (WINDOW_SAMPLES / HOP_SAMPLES) + samples % WINDOW_SAMPLES / HOP_SAMPLES;
        let rows = mel_frames / 2;
        Some(AudioPlan {
            samples,
            windows: samples.div_ceil(WINDOW_SAMPLES),
            mel_frames,
            rows,
            tokens: rows / AUDIO_POOL,
        })
    }

    /// Windows that are worth encoding: a last one of under 160 samples adds nothing (MODEL.md, "Decisions").
    pub fn encoded_windows(&self) -> u64 {
        self.windows - u64::from((1..HOP_SAMPLES).contains(&(self.samples % WINDOW_SAMPLES)))
    }

    /// Encoder rows that window `index` contributes.
    pub fn window_rows(&self, index: u64) -> u64 {
        self.rows.saturating_sub(index * WINDOW_ROWS).min(WINDOW_ROWS)
    }

    fn check(&self) -> Result<(), WireError> {
        let ok = self.windows <= MAX_ITEMS
            && self.samples <= MAX_ITEMS * WINDOW_SAMPLES
            && AudioPlan::new(self.samples).as_ref() == Some(self);
        ok.then_some(()).ok_or_else(|| inconsistent("audio", self))
    }
}

fn inconsistent(modality: &str, plan: &impl std::fmt::Debug) -> WireError {
    WireError::new(WireErrorKind::Value, format!("plan.{modality} contradicts itself: {plan:?}"))
}

impl MediaPlan {
    /// Plans what stage-decode probed: whole, or only `span` (start and end in seconds), at `fps`, its frames on the
    /// `grid` of the checkpoint.
    ///
    /// # Errors
    /// `too_short` with fewer than two sampled frames and no sound, `bad_request` for a span that picks nothing,
    /// `unsupported_media` without picture and sound.
    pub fn new(info: &MediaInfo, span: Option<[f64; 2]>, fps: f64, grid: FrameGrid) -> Result<Self, JobError> {
        let duration_s = match span {
            Some([start, end]) => end.min(info.duration_s) - start,
            None => info.duration_s,
        };
        if duration_s.is_nan() || duration_s <= 0.0 {
            let [start, end] = span.unwrap_or([0.0, 0.0]);
            return Err(JobError::new(
                if span.is_some() { ErrorKind::BadRequest } else { ErrorKind::UnsupportedMedia },
                format!("span {start} to {end} s picks nothing of a video of {} s", info.duration_s),
            ));
        }
        let audio = if info.has_audio {
            let (first, end) = sample_range(info.audio_samples, span);
            AudioPlan::new(end - first)
        } else {
            None
        };
        let mut notes: Vec<String> =
            info.notes.iter().filter(|note| note.len() <= NOTE_BYTES).take(MAX_NOTES).cloned().collect();
        let image = if info.frames > 0 { Self::image(info, span, fps, grid, &mut notes) } else { Ok(None) };
        let image = match image {
            // A picture beside a sound is no film: the sound is what was asked about.
            Err(error) if error.kind == ErrorKind::TooShort && audio.is_some() => {
                notes.push(format!("the picture is not used: {}", error.message));
                None
            }
            image => image?,
        };
        if image.is_none() && audio.is_none() {
            return Err(JobError::new(
                ErrorKind::UnsupportedMedia,
                "the file has neither a picture nor at least 0.2 s of sound",
            )
            .hint("give a file with a video or audio track"));
        }
        Ok(MediaPlan { content_id: info.content_id.clone(), duration_s, image, audio, notes })
    }

    fn image(
        info: &MediaInfo,
        span: Option<[f64; 2]>,
        fps: f64,
        grid: FrameGrid,
        notes: &mut Vec<String>,
    ) -> Result<Option<ImagePlan>, JobError> {
        let mut step = frame_step(info.avg_fps, fps);
        if step == 0 {
            let rate = info.avg_fps;
            notes.push(format!("every frame is taken: the video has {rate:.3} frames a second, fewer than fps {fps}"));
            step = 1;
        }
        let (first, end) = frame_range(info, span);
        let frames = (end - first).div_ceil(step);
        if frames < 2 {
            return Err(JobError::new(
                ErrorKind::TooShort,
                format!(
                    "{} frames at {:.3} frames a second give {frames} sampled at fps {fps}, at least 2 are needed",
                    end - first,
                    info.avg_fps
                ),
            )
            .hint("give a longer video or span, or a higher fps")
            .detail("frames", info.frames)
            .detail("sampled", frames));
        }
        Ok(Some(ImagePlan::on(grid, step, frames)))
    }

    /// Refuses a plan whose figures do not follow from each other.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), WireError> {
        if !(self.duration_s.is_finite() && self.duration_s >= 0.0) || self.content_id.len() > 256 {
            return Err(WireError::new(WireErrorKind::Value, "plan.duration_s or plan.content_id"));
        }
        // What a plan adds to those of a probe are one for the picture and one for the rate.
        if self.notes.len() > MAX_NOTES + 2 || self.notes.iter().any(|note| note.len() > NOTE_BYTES) {
            return Err(WireError::new(WireErrorKind::Value, "plan.notes"));
        }
        self.image.as_ref().map_or(Ok(()), ImagePlan::check)?;
        self.audio.as_ref().map_or(Ok(()), AudioPlan::check)
    }
}

/// Decoded frames that a span covers: `first..end`, counted in presentation order from the file's start.
pub fn frame_range(info: &MediaInfo, span: Option<[f64; 2]>) -> (u64, u64) {
    match span {
        None => (0, info.frames),
        Some([start, end]) => {
            let at = |s: f64| ((s * info.avg_fps).ceil().max(0.0) as u64).min(info.frames);
            (at(start), at(end).max(at(start)))
        }
    }
}

/// PCM samples that a span covers: `first..end` of a sound of `samples`.
pub fn sample_range(samples: u64, span: Option<[f64; 2]>) -> (u64, u64) {
    match span {
        None => (0, samples),
        Some([start, end]) => {
            let at = |s: f64| ((s * SAMPLE_RATE as f64).round().max(0.0) as u64).min(samples);
            (at(start), at(end).max(at(start)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_grid_is_said_and_checked_and_a_plan_without_one_is_written_as_it_always_was() {
        let json = |plan: &ImagePlan| serde_json::to_string(plan).unwrap();
        assert_eq!(json(&ImagePlan::new(30, 2)), r#"{"frame_step":30,"frames":2,"grid":[14,14],"tokens":392}"#);
        let fixed = ImagePlan::on(FrameGrid::Fixed(5), 30, 2000);
        assert_eq!(json(&fixed), r#"{"frame_step":30,"frames":2000,"grid":[5,5],"tokens":50000,"fixed":true}"#);
        assert_eq!((fixed.check(), fixed.rule(), fixed.tokens_per_frame()), (Ok(()), FrameGrid::Fixed(5), 25));
        // So long a video has 5 x 5 cells by the budget, too: the rule is told apart all the same.
        let shrunk = ImagePlan::new(30, 2000);
        assert_eq!((shrunk.grid, shrunk.check()), (fixed.grid, Ok(())));
        assert!(shrunk.expect(FrameGrid::Budget).is_ok() && fixed.expect(FrameGrid::Fixed(5)).is_ok());
        let error = fixed.expect(FrameGrid::Budget).unwrap_err();
        assert!(error.kind == ErrorKind::Model && error.message.contains("5 x 5 cells whatever"), "{error}");
        let wrong = [
            ImagePlan { fixed: true, ..ImagePlan::new(30, 2) },
            ImagePlan { fixed: false, ..fixed.clone() },
            ImagePlan { grid: [5, 6], ..fixed.clone() },
            ImagePlan { tokens: 49_999, ..fixed.clone() },
            ImagePlan::on(FrameGrid::Fixed(1), 30, 2),
            ImagePlan::on(FrameGrid::Fixed(28), 30, 2),
        ];
        // 14 x 14 whatever the length, and 5 x 5 by the budget, are what other checkpoints would have.
        assert_eq!(wrong.map(|plan| plan.check().is_ok()), [true, true, false, false, false, false]);
    }

    #[test]
    fn messages_double_until_they_are_as_large_as_they_may_be() {
        let cut = |frames: u64, most: usize| {
            let (mut offset, mut cuts) = (0, Vec::new());
            while offset < frames {
                let n = (frames_together(offset, most) as u64).min(frames - offset);
                cuts.push(n);
                offset += n;
            }
            cuts
        };
        assert_eq!(cut(50, 16), [2, 2, 4, 8, 16, 16, 2]);
        assert_eq!(cut(3, 1), [1, 1, 1]);
        assert_eq!(cut(5, 0), [1; 5]);
    }
}
