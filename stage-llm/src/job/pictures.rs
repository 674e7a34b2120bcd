//! Where a video's pictures change, by the image tokens of its sampled frames.
//!
//! Every token carries the position of its frame in the video (MODEL.md 6), which is as far from one frame to the next as a cut
//! is. It is the same for all tokens of a frame, so a frame's signature is what such an offset leaves alone: how far some
//! columns of its tokens spread. A cut to another picture moves it far, motion within a shot little.

use half::{bf16, f16};
use protocol::plan::MediaPlan;
use protocol::tensor::{Dtype, Tensor};

/// Most columns of a token that are looked at: enough to tell pictures apart, and no work beside the encoders.
const COLUMNS: usize = 128;
/// Distances before and behind one that it is held against.
const NEIGHBOURS: usize = 2;
/// Distance over which a shot ends, in means of its neighbours: the adaptive threshold of PySceneDetect's AdaptiveDetector, and
/// its window.
const TIMES: f64 = 3.0;
/// Least distance that is a change at all, as a share of the signature: rounding stays below it.
const LEAST: f64 = 0.02;

/// Signatures of a video's sampled frames.
#[derive(Debug, Default)]
pub struct Pictures {
    /// Tokens of one frame; 0 without a picture.
    frame_tokens: u64,
    frames: Vec<Sums>,
}

/// Sums over the tokens of a frame that have come.
#[derive(Clone, Debug, Default)]
struct Sums {
    tokens: u64,
    /// Of each column that is looked at the sum, and the sum of squares.
    columns: Vec<[f64; 2]>,
}

impl Sums {
    /// Standard deviation of each column over the tokens; empty until one has come.
    fn spread(&self) -> Vec<f64> {
        let n = self.tokens as f64;
        self.columns.iter().map(|[sum, squares]| (squares / n - (sum / n).powi(2)).max(0.0).sqrt()).collect()
    }
}

impl Pictures {
    /// No frame of a plan yet.
    pub fn of(plan: &MediaPlan) -> Self {
        let Some(image) = &plan.image else { return Pictures::default() };
        let frame_tokens = u64::from(image.grid[0]) * u64::from(image.grid[1]);
        Pictures { frame_tokens, frames: vec![Sums::default(); image.frames as usize] }
    }

    /// Numbers of all frames, `[frames, 1 + 2 * columns]` as little-endian f64, and that width: of each frame the tokens that have
    /// come, then of each column the sum and the sum of squares; zeros where no token has come.
    pub fn to_bytes(&self) -> (Vec<u8>, usize) {
        let columns = self.frames.iter().map(|frame| frame.columns.len()).max().unwrap_or(0);
        let numbers = self.frames.iter().flat_map(|frame| {
            let sums = frame.columns.iter().flatten().copied();
            let none = std::iter::repeat_n(0.0, 2 * (columns - frame.columns.len()));
            std::iter::once(frame.tokens as f64).chain(sums).chain(none)
        });
        (numbers.flat_map(f64::to_le_bytes).collect(), 1 + 2 * columns)
    }

    /// Pictures of a plan from [`to_bytes`](Self::to_bytes); none where the numbers are not of as many frames.
    pub fn from_bytes(plan: &MediaPlan, bytes: &[u8], width: usize) -> Option<Self> {
        let mut pictures = Pictures::of(plan);
        let row_bytes = width.checked_mul(size_of::<f64>()).filter(|&bytes| bytes > 0)?;
        if bytes.len() != pictures.frames.len().checked_mul(row_bytes)? {
            return None;
        }
        for (frame, row) in pictures.frames.iter_mut().zip(bytes.chunks_exact(row_bytes)) {
            let mut numbers =
                row.chunks_exact(size_of::<f64>()).map(|b| f64::from_le_bytes(b.try_into().unwrap_or([0; 8])));
            frame.tokens = numbers.next()? as u64;
            if frame.tokens > 0 {
                frame.columns = std::iter::from_fn(|| Some([numbers.next()?, numbers.next()?])).collect();
            }
        }
        Some(pictures)
    }

    /// Adds image tokens `[n, D]`, the first of which is number `offset`; each token is added once.
    pub fn note(&mut self, offset: u64, rows: &Tensor<'_>) {
        let width = rows.shape().get(1).copied().unwrap_or(0);
        let step = width.div_ceil(COLUMNS).max(1);
        let dtype = rows.dtype();
        for (row, bytes) in rows.data().chunks_exact((width * dtype.size()).max(1)).enumerate() {
            let frame = (offset + row as u64).checked_div(self.frame_tokens);
            let Some(sums) = frame.and_then(|frame| self.frames.get_mut(frame as usize)) else { return };
            sums.tokens += 1;
            sums.columns.resize(width.div_ceil(step), [0.0; 2]);
            for ([sum, squares], value) in sums.columns.iter_mut().zip(bytes.chunks_exact(dtype.size()).step_by(step)) {
                let value = number(dtype, value);
                *sum += value;
                *squares += value * value;
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
    fn changes(&self) -> Vec<(usize, f64)> {
        let spreads: Vec<Vec<f64>> = self.frames.iter().map(Sums::spread).collect();
        let distances: Vec<f64> = spreads.windows(2).map(|pair| distance(&pair[0], &pair[1])).collect();
        let is_change = |&(at, d): &(usize, f64)| {
            let around = at.saturating_sub(NEIGHBOURS)..distances.len().min(at + NEIGHBOURS + 1);
            let others = around.len() - 1;
            let sum: f64 = distances[around].iter().sum::<f64>() - d;
            d > LEAST && d * others as f64 > TIMES * sum
        };
        distances.iter().copied().enumerate().filter(is_change).map(|(before, d)| (before + 1, d)).collect()
    }
}

/// Distance of two signatures as a share of the larger one; 0 where a frame's tokens never came, which says nothing.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let largest = norm(&mut a.iter().copied()).max(norm(&mut b.iter().copied()));
    let apart = norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / largest;
    if a.len() == b.len() && apart.is_finite() { apart } else { 0.0 }
}

/// Number in little-endian bytes.
fn number(dtype: Dtype, bytes: &[u8]) -> f64 {
    match (dtype, bytes) {
        (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]).into(),
        (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).into(),
        (Dtype::Bf16, &[a, b]) => bf16::from_le_bytes([a, b]).into(),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::plan::ImagePlan;

    /// Video of frames a second each, each with two kinds of tokens that are `level` from their middle. The middle is another one in
    /// every frame, as that of tokens with a position in them is.
    fn frames(levels: &[f32]) -> (MediaPlan, Vec<f32>) {
        let image = ImagePlan::new(1, levels.len() as u64);
        let frame_tokens = (image.grid[0] * image.grid[1]) as usize;
        let mut values = Vec::new();
        for (frame, level) in levels.iter().enumerate() {
            let middle = (frame * 7 % 5) as f32;
            let sign = |token: usize| if token.is_multiple_of(2) { 1.0 } else { -1.0 };
            values.extend((0..frame_tokens).flat_map(|t| [middle + sign(t) * level, 1.0, middle - sign(t) * level]));
        }
        let duration_s = levels.len() as f64;
        (
            MediaPlan { content_id: String::new(), duration_s, image: Some(image), audio: None, notes: Vec::new() },
            values,
        )
    }

    /// Ten frames a shot, which differ a little.
    fn video(shots: &[f32]) -> (MediaPlan, Vec<f32>) {
        let levels = shots.iter().flat_map(|level| (0..10).map(move |frame| level + 0.001 * (frame % 3) as f32));
        frames(&levels.collect::<Vec<f32>>())
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
    fn what_is_known_of_pictures_is_the_same_once_it_was_written_down() {
        let (plan, values) = video(&[0.1, 0.5]);
        let mut pictures = Pictures::of(&plan);
        // The last frames have not come.
        pictures.note(0, &tensor(&values[..values.len() / 2]));
        let (bytes, width) = pictures.to_bytes();
        let read = Pictures::from_bytes(&plan, &bytes, width).unwrap();
        assert_eq!(format!("{read:?}"), format!("{pictures:?}"));
        for (bytes, width) in [(&bytes[8..], width), (&bytes, width + 1), (&bytes, 0), (&bytes, usize::MAX)] {
            assert!(Pictures::from_bytes(&plan, bytes, width).is_none(), "{width}");
        }
        let none = Pictures::default().to_bytes();
        assert_eq!(none, (Vec::new(), 1));
    }

    #[test]
    fn a_video_is_cut_where_its_pictures_change_and_not_where_something_moves() {
        let (plan, values) = video(&[1.0, 3.0, 2.0, 5.0]);
        assert_eq!(noted(&plan, &values).parts(40.0, 5.0, 24), [0.0, 10.0, 20.0, 30.0]);
        let (plan, values) = video(&[1.0, 1.0, 1.0]);
        assert_eq!(noted(&plan, &values).parts(30.0, 5.0, 24), [0.0]);
        let fade: Vec<f32> = (0..30).map(|frame| 1.0 + 0.3 * frame as f32).collect();
        let (plan, values) = frames(&fade);
        assert_eq!(noted(&plan, &values).parts(30.0, 5.0, 24), [0.0]);
    }

    #[test]
    fn a_frame_whose_tokens_never_came_is_no_change() {
        let (plan, values) = video(&[1.0, 3.0]);
        let mut pictures = Pictures::of(&plan);
        let from = values.len() / 4;
        pictures.note((from / 3) as u64, &tensor(&values[from..]));
        assert_eq!(pictures.parts(20.0, 3.0, 24), [0.0, 10.0]);
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
        let plan =
            MediaPlan { content_id: String::new(), duration_s: 30.0, image: None, audio: None, notes: Vec::new() };
        assert_eq!(Pictures::of(&plan).parts(30.0, 5.0, 24), [0.0]);
    }
}
