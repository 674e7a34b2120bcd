//! Part of a video that is to be asked for again, where some of its tokens have not come.

use std::ops::Range;

use protocol::coverage::{Coverage, VideoCoverage};
use protocol::message::Segment;
use protocol::plan::{AUDIO_POOL, MediaPlan, WINDOW_ROWS};

/// Part of a plan that holds all tokens that are missing.
pub fn segment(came: &VideoCoverage, plan: &MediaPlan) -> Segment {
    let frames = plan.image.as_ref().map(|i| units(&came.image, i.tokens, i.tokens_per_frame(), i.frames));
    let windows = plan.audio.as_ref().map(|a| units(&came.audio, a.tokens, WINDOW_ROWS / AUDIO_POOL, a.windows));
    let [frames, windows] = [frames, windows].map(Option::unwrap_or_default);
    Segment {
        first_frame: frames.start,
        frames: frames.end - frames.start,
        first_window: windows.start,
        windows: windows.end - windows.start,
    }
}

/// Units (frames, windows), of so many planned ones of so many tokens each, that hold all tokens that are missing.
fn units(came: &Coverage, planned: u64, per_unit: u64, units: u64) -> Range<u64> {
    let total = came.total().unwrap_or(planned);
    let Some(tokens) = came.missing(planned) else { return 0..0 };
    // The container's word on the sound may be wrong by a window: a segment that ends where it does goes to the end.
    let end = if tokens.end == total { units } else { tokens.end.div_ceil(per_unit).min(units) };
    (tokens.start / per_unit).min(end.saturating_sub(1))..end
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::message::{JobId, Modality, TokenBatch};
    use protocol::plan::{AudioPlan, ImagePlan, WINDOW_SAMPLES};
    use protocol::tensor::{Dtype, Tensor};
    use protocol::wire::VERSION;

    /// Ten frames of 196 tokens, and three windows of 300.
    fn plan() -> MediaPlan {
        let (image, audio) = (Some(ImagePlan::new(1, 10)), AudioPlan::new(3 * WINDOW_SAMPLES));
        MediaPlan { content_id: String::new(), duration_s: 90.0, image, audio, notes: Vec::new() }
    }

    fn batch(plan: MediaPlan, modality: Modality, tokens: Range<u64>) -> TokenBatch<'static> {
        let rows = (tokens.end - tokens.start) as usize;
        let tensor = Tensor::new(Dtype::F32, &[rows, 1], vec![0; rows * 4]).unwrap();
        TokenBatch { v: VERSION, job: JobId::new("j").unwrap(), plan, modality, offset: tokens.start, tensor }
    }

    fn after(batches: &[(MediaPlan, Modality, Range<u64>)]) -> [Range<u64>; 2] {
        let mut came = VideoCoverage::default();
        for (plan, modality, tokens) in batches.iter().cloned() {
            came.note(&batch(plan, modality, tokens));
        }
        let part = segment(&came, &plan());
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
    fn a_modality_that_turned_out_to_be_absent_is_not_asked_for_again() {
        let silent = MediaPlan { audio: None, ..plan() };
        assert_eq!(after(&[(silent, Modality::Audio, 0..0)]), [0..10, 0..0]);
    }
}
