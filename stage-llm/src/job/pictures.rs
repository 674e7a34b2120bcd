//! Where a video's pictures change, by the image tokens of its sampled frames.
//!
//! A frame's signature is the sum of some columns of its tokens. Tokens carry what the vision tower saw, so a cut to another
//! picture moves the signature far, and motion within a shot moves it little.

use half::{bf16, f16};
use protocol::plan::MediaPlan;
use protocol::tensor::{Dtype, Tensor};

/// Most columns of a token that are looked at: enough to tell pictures apart, and no work beside the encoders.
const COLUMNS: usize = 64;
/// Distance of two neighbouring frames over which a shot ends, in medians of the whole video.
const MEDIANS: f32 = 4.0;
/// Least distance that is a change at all, as a share of the signature: rounding stays below it.
const LEAST: f32 = 0.01;

/// Signatures of a video's sampled frames.
#[derive(Debug, Default)]
pub struct Pictures {
    /// Tokens of one frame; 0 without a picture.
    frame_tokens: u64,
    /// Signature of each frame, empty until one of its tokens has come.
    frames: Vec<Vec<f32>>,
}

impl Pictures {
    /// No frame of a plan yet.
    pub fn of(plan: &MediaPlan) -> Self {
        let Some(image) = &plan.image else { return Pictures::default() };
        let frame_tokens = u64::from(image.grid[0]) * u64::from(image.grid[1]);
        Pictures { frame_tokens, frames: vec![Vec::new(); image.frames as usize] }
    }

    /// Adds image tokens `[n, D]`, the first of which is number `offset`; each token is added once.
    pub fn note(&mut self, offset: u64, rows: &Tensor<'_>) {
        let width = rows.shape().get(1).copied().unwrap_or(0);
        let step = width.div_ceil(COLUMNS).max(1);
        let dtype = rows.dtype();
        for (row, bytes) in rows.data().chunks_exact((width * dtype.size()).max(1)).enumerate() {
            let frame = (offset + row as u64).checked_div(self.frame_tokens);
            let Some(signature) = frame.and_then(|frame| self.frames.get_mut(frame as usize)) else { return };
            signature.resize(width.div_ceil(step), 0.0);
            for (sum, value) in signature.iter_mut().zip(bytes.chunks_exact(dtype.size()).step_by(step)) {
                *sum += number(dtype, value);
            }
        }
    }

    /// Starts of the parts of a video of `duration_s` seconds, seconds, the first one 0: cut where its pictures change most, at
    /// most `most` parts of at least `min_s` each.
    pub fn parts(&self, duration_s: f64, min_s: f64, most: usize) -> Vec<f64> {
        let mut changes = self.changes();
        changes.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut starts = vec![0.0];
        for (frame, _) in changes {
            let at = frame as f64 * duration_s / self.frames.len() as f64;
            let apart = starts.iter().all(|start: &f64| (at - start).abs() >= min_s);
            if starts.len() < most && apart && duration_s - at >= min_s {
                starts.push(at);
            }
        }
        starts.sort_by(f64::total_cmp);
        starts
    }

    /// Frames at which another shot begins, each with how far it is from the one before.
    fn changes(&self) -> Vec<(usize, f32)> {
        let norm = |x: &[f32]| x.iter().map(|v| v * v).sum::<f32>().sqrt();
        let distance = |pair: &[Vec<f32>]| {
            let [a, b] = pair else { return 0.0 };
            let apart: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
            let largest = norm(a).max(norm(b));
            // A frame whose tokens never came has no signature, and says nothing.
            if largest > 0.0 && a.len() == b.len() { norm(&apart) / largest } else { 0.0 }
        };
        let distances: Vec<f32> = self.frames.windows(2).map(distance).collect();
        let mut sorted = distances.clone();
        sorted.sort_by(f32::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        let is_change = |d: &f32| d.is_finite() && *d > LEAST && *d > MEDIANS * median;
        distances.iter().enumerate().filter(|(_, d)| is_change(d)).map(|(before, d)| (before + 1, *d)).collect()
    }
}

/// Number in little-endian bytes.
fn number(dtype: Dtype, bytes: &[u8]) -> f32 {
    match (dtype, bytes) {
        (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (Dtype::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::plan::ImagePlan;

    /// Ten frames a shot; the tokens of a shot differ a little from frame to frame.
    fn video(shots: &[f32]) -> (MediaPlan, Vec<f32>) {
        let image = ImagePlan::new(1, shots.len() as u64 * 10);
        let frame_tokens = (image.grid[0] * image.grid[1]) as usize;
        let mut values = Vec::new();
        for frame in 0..shots.len() * 10 {
            let level = shots[frame / 10] + 0.001 * (frame % 3) as f32;
            values.extend((0..frame_tokens).flat_map(|_| [level, 1.0, -level]));
        }
        let duration_s = shots.len() as f64 * 10.0;
        (MediaPlan { content_id: String::new(), duration_s, image: Some(image), audio: None }, values)
    }

    fn tensor(values: &[f32]) -> Tensor<'static> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::new(Dtype::F32, &[values.len() / 3, 3], bytes).unwrap()
    }

    fn noted(plan: &MediaPlan, values: &[f32]) -> Pictures {
        let mut pictures = Pictures::of(plan);
        // Cut in the middle of frames, the second half first.
        let half = values.len() / 6 * 3 + 3;
        pictures.note((half / 3) as u64, &tensor(&values[half..]));
        pictures.note(0, &tensor(&values[..half]));
        pictures
    }

    #[test]
    fn a_video_is_cut_where_its_pictures_change_and_not_where_something_moves() {
        let (plan, values) = video(&[1.0, 3.0, 2.0, 5.0]);
        assert_eq!(noted(&plan, &values).parts(40.0, 5.0, 24), [0.0, 10.0, 20.0, 30.0]);
        let (plan, values) = video(&[1.0, 1.0, 1.0]);
        assert_eq!(noted(&plan, &values).parts(30.0, 5.0, 24), [0.0]);
    }

    #[test]
    fn parts_are_long_enough_and_few_enough_and_the_largest_changes_win() {
        let (plan, values) = video(&[1.0, 1.5, 9.0, 8.0]);
        let pictures = noted(&plan, &values);
        assert_eq!(pictures.parts(40.0, 15.0, 24), [0.0, 20.0]);
        assert_eq!(pictures.parts(40.0, 5.0, 3).len(), 3);
        assert!(pictures.parts(40.0, 5.0, 3).contains(&20.0));
        assert_eq!(pictures.parts(40.0, 50.0, 24), [0.0]);
    }

    #[test]
    fn half_precision_says_the_same() {
        let (plan, values) = video(&[1.0, 3.0]);
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let bytes = values.iter().flat_map(|&v| match dtype {
                Dtype::F16 => f16::from_f32(v).to_le_bytes(),
                _ => bf16::from_f32(v).to_le_bytes(),
            });
            let mut pictures = Pictures::of(&plan);
            pictures.note(0, &Tensor::new(dtype, &[values.len() / 3, 3], bytes.collect::<Vec<u8>>()).unwrap());
            assert_eq!(pictures.parts(20.0, 5.0, 24), [0.0, 10.0]);
        }
    }

    #[test]
    fn sound_alone_is_one_part() {
        let plan = MediaPlan { content_id: String::new(), duration_s: 30.0, image: None, audio: None };
        assert_eq!(Pictures::of(&plan).parts(30.0, 5.0, 24), [0.0]);
    }
}
