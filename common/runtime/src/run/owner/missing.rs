//! What of a job's tokens has come, and so which part of its video is to be asked for again where some do not.

use std::ops::Range;

use protocol::message::{Modality, Segment, TokenBatch};
use protocol::plan::{AUDIO_POOL, MediaPlan, WINDOW_ROWS};
use protocol::rows::RowSet;

/// Tokens that have come, of both halves.
#[derive(Debug, Default)]
pub struct Came {
    image: Half,
    audio: Half,
}

/// One half's.
#[derive(Debug, Default)]
struct Half {
    tokens: RowSet,
    /// How many there will be, by its own batches; none before the first of them.
    total: Option<u64>,
}

impl Half {
    /// Which of so many planned units (frames, windows) of so many tokens each hold all that is missing.
    fn missing(&self, planned: u64, per_unit: u64, units: u64) -> Range<u64> {
        let total = self.total.unwrap_or(planned);
        let Some(tokens) = self.tokens.missing(total) else { return 0..0 };
        // The container's word on the sound may be wrong by a window: a segment that ends where it does goes to the end.
        let end = if tokens.end == total { units } else { tokens.end.div_ceil(per_unit).min(units) };
        (tokens.start / per_unit).min(end.saturating_sub(1))..end
    }
}

impl Came {
    /// Notes a batch.
    pub fn note(&mut self, batch: &TokenBatch<'_>) {
        let rows = batch.tensor.rows() as u64;
        let (half, total) = match batch.modality {
            Modality::Image => (&mut self.image, batch.plan.image.as_ref().map(|i| i.tokens)),
            Modality::Audio => (&mut self.audio, batch.plan.audio.as_ref().map(|a| a.tokens)),
        };
        // A batch of a half that turned out to be absent has no plan of it.
        half.total = Some(total.unwrap_or(0));
        half.tokens.insert(batch.offset..batch.offset.saturating_add(rows));
    }

    /// The part of a plan that holds all that is missing.
    pub fn missing(&self, plan: &MediaPlan) -> Segment {
        let frames = plan.image.as_ref().map(|i| self.image.missing(i.tokens, i.tokens_per_frame(), i.frames));
        let windows = plan.audio.as_ref().map(|a| self.audio.missing(a.tokens, WINDOW_ROWS / AUDIO_POOL, a.windows));
        let [frames, windows] = [frames, windows].map(Option::unwrap_or_default);
        Segment {
            first_frame: frames.start,
            frames: frames.end - frames.start,
            first_window: windows.start,
            windows: windows.end - windows.start,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::message::JobId;
    use protocol::plan::{AudioPlan, ImagePlan, WINDOW_SAMPLES};
    use protocol::tensor::{Dtype, Tensor};
    use protocol::wire::VERSION;

    /// Ten frames of 196 tokens, and three windows of 300.
    fn plan() -> MediaPlan {
        let (image, audio) = (Some(ImagePlan::new(1, 10)), AudioPlan::new(3 * WINDOW_SAMPLES));
        MediaPlan { content_id: String::new(), duration_s: 90.0, image, audio }
    }

    fn batch(plan: MediaPlan, modality: Modality, tokens: Range<u64>) -> TokenBatch<'static> {
        let rows = (tokens.end - tokens.start) as usize;
        let tensor = Tensor::new(Dtype::F32, &[rows, 1], vec![0; rows * 4]).unwrap();
        TokenBatch { v: VERSION, job: JobId::new("j").unwrap(), plan, modality, offset: tokens.start, tensor }
    }

    fn after(batches: &[(MediaPlan, Modality, Range<u64>)]) -> [Range<u64>; 2] {
        let mut came = Came::default();
        for (plan, modality, tokens) in batches.iter().cloned() {
            came.note(&batch(plan, modality, tokens));
        }
        let part = came.missing(&plan());
        [part.first_frame..part.first_frame + part.frames, part.first_window..part.first_window + part.windows]
    }

    #[test]
    fn what_is_asked_for_again_holds_every_missing_token_and_little_else() {
        use Modality::{Audio, Image};
        assert_eq!(after(&[]), [0..10, 0..3]);
        let sound = (plan(), Audio, 0..900);
        assert_eq!(after(&[(plan(), Image, 0..500), (plan(), Image, 1000..1960), sound.clone()]), [2..6, 0..0]);
        assert_eq!(after(&[(plan(), Image, 0..1764), (plan(), Audio, 300..900)]), [9..10, 0..1]);
        assert_eq!(after(&[(plan(), Image, 0..1960), sound]), [0..0, 0..0]);
    }

    #[test]
    fn sound_that_is_longer_or_shorter_than_its_container_said_is_asked_for_to_its_end() {
        let exact = |samples| MediaPlan { audio: AudioPlan::new(samples), ..plan() };
        let [longer, shorter] = [5 * WINDOW_SAMPLES, 2 * WINDOW_SAMPLES + 48_000].map(exact);
        let missing = |plan: &MediaPlan, came: Range<u64>| after(&[(plan.clone(), Modality::Audio, came)])[1].clone();
        assert_eq!(missing(&longer, 0..1200), 2..3);
        assert_eq!(missing(&shorter, 0..600), 2..3);
        assert_eq!(missing(&shorter, 0..630), 0..0);
    }

    #[test]
    fn a_half_that_turned_out_to_be_absent_is_not_asked_for_again() {
        let silent = MediaPlan { audio: None, ..plan() };
        assert_eq!(after(&[(silent, Modality::Audio, 0..0)]), [0..10, 0..0]);
    }
}
