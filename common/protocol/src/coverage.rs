//! How much of a video's tokens has come: batches come in any order, cut anywhere, and more than once.
//!
//! One account for everyone who keeps one: the owner of a job (what to ask for again), its progress, a job that waits
//! for its tokens, and the cache of keys and values.

use std::ops::Range;

use crate::message::{Modality, TokenBatch};
use crate::plan::MediaPlan;
use crate::rows::RowSet;

/// Rows of one modality that have come, of how many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    rows: RowSet,
    /// None until it is settled.
    total: Option<u64>,
}

impl Coverage {
    /// Coverage without a row, of a total that is not settled yet.
    pub fn new() -> Self {
        Coverage::default()
    }

    /// Coverage without a row, of `total` rows; of none for a modality that is absent.
    pub fn of(total: u64) -> Self {
        Coverage { rows: RowSet::new(), total: Some(total) }
    }

    /// Settles the total, or corrects it.
    pub fn settle(&mut self, total: u64) {
        self.total = Some(total);
    }

    /// Adds rows and returns the ranges of them that had not come before, in order.
    pub fn insert(&mut self, rows: Range<u64>) -> Vec<Range<u64>> {
        self.rows.insert(rows)
    }

    /// Rows in total, once that is settled.
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// Rows that have come.
    pub fn len(&self) -> u64 {
        self.rows.len()
    }

    /// Whether no row has come.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether the total is settled and all its rows have come.
    pub fn is_complete(&self) -> bool {
        self.total.is_some_and(|total| self.rows.first_gap(total).is_none())
    }

    /// First range of rows that is missing, up to the end of the numbers while the total is not settled; none when all
    /// have come.
    pub fn first_gap(&self) -> Option<Range<u64>> {
        self.rows.first_gap(self.total.unwrap_or(u64::MAX))
    }

    /// Rows from the first to the last one that is missing, of `planned` rows while the total is not settled; none when
    /// all have come.
    pub fn missing(&self, planned: u64) -> Option<Range<u64>> {
        self.rows.missing(self.total.unwrap_or(planned))
    }
}

/// Image and audio tokens of a video that have come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VideoCoverage {
    /// Image tokens.
    pub image: Coverage,
    /// Audio tokens.
    pub audio: Coverage,
}

impl VideoCoverage {
    /// Coverage of a plan before its first batch. The image total is the plan's; the audio total is settled by the
    /// first audio batch, since until the sound is decoded its length is the container's word.
    pub fn planned(plan: &MediaPlan) -> Self {
        VideoCoverage {
            image: Coverage::of(plan.image.as_ref().map_or(0, |i| i.tokens)),
            audio: if plan.audio.is_some() { Coverage::new() } else { Coverage::of(0) },
        }
    }

    /// Coverage of one modality.
    pub fn of(&self, modality: Modality) -> &Coverage {
        match modality {
            Modality::Image => &self.image,
            Modality::Audio => &self.audio,
        }
    }

    /// Coverage of one modality, to add to it.
    pub fn of_mut(&mut self, modality: Modality) -> &mut Coverage {
        match modality {
            Modality::Image => &mut self.image,
            Modality::Audio => &mut self.audio,
        }
    }

    /// Adds a batch, which settles the total of its modality, and returns the ranges of its rows that had not come
    /// before. A batch without rows says that its modality is absent: there is none of it in its plan.
    pub fn note(&mut self, batch: &TokenBatch<'_>) -> Vec<Range<u64>> {
        let total = match batch.modality {
            Modality::Image => batch.plan.image.as_ref().map(|i| i.tokens),
            Modality::Audio => batch.plan.audio.as_ref().map(|a| a.tokens),
        };
        let coverage = self.of_mut(batch.modality);
        coverage.settle(total.unwrap_or(0));
        // The wire refuses rows beyond the plan; what got past it counts to the end of the numbers, and does no harm.
        coverage.insert(batch.offset..batch.offset.saturating_add(batch.tensor.rows() as u64))
    }

    /// Whether all image and all audio tokens have come.
    pub fn is_complete(&self) -> bool {
        self.image.is_complete() && self.audio.is_complete()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job_id::JobId;
    use crate::plan::{AudioPlan, ImagePlan};
    use crate::tensor::{Dtype, Tensor};
    use crate::wire::VERSION;
    use proptest::prelude::*;

    /// Rows of the whole in the properties.
    const TOTAL: u64 = 60;

    /// Ranges that lie within the whole, any number of them, anywhere, over each other and more than once.
    fn batches() -> impl Strategy<Value = Vec<Range<u64>>> {
        prop::collection::vec((0..TOTAL, 0..25u64).prop_map(|(start, n)| start..TOTAL.min(start + n)), 0..30)
    }

    fn after(batches: &[Range<u64>]) -> Coverage {
        let mut coverage = Coverage::of(TOTAL);
        for rows in batches {
            coverage.insert(rows.clone());
        }
        coverage
    }

    /// Whether row `i` is in some batch.
    fn come(batches: &[Range<u64>], i: u64) -> bool {
        batches.iter().any(|rows| rows.contains(&i))
    }

    proptest! {
        #[test]
        fn any_order_overlaps_and_duplicates_come_to_the_same(
            (batches, shuffled) in batches().prop_flat_map(|b| (Just(b.clone()), Just(b).prop_shuffle())),
            again in any::<prop::sample::Index>(),
        ) {
            let coverage = after(&batches);
            let mut other = after(&shuffled);
            prop_assert_eq!(&other, &coverage);
            if !batches.is_empty() {
                prop_assert_eq!(other.insert(again.get(&batches).clone()), []);
                prop_assert_eq!(&other, &coverage);
            }
        }

        #[test]
        fn what_has_come_and_what_is_missing_are_what_single_rows_say(batches in batches(), settled in any::<bool>()) {
            let mut coverage = if settled { Coverage::of(TOTAL) } else { Coverage::new() };
            let mut seen = [false; TOTAL as usize];
            for rows in &batches {
                let new: Vec<u64> = coverage.insert(rows.clone()).into_iter().flatten().collect();
                let unseen: Vec<u64> = rows.clone().filter(|&i| !seen[i as usize]).collect();
                prop_assert_eq!(new, unseen, "rows are new exactly once");
                rows.clone().for_each(|i| seen[i as usize] = true);
            }
            let missing: Vec<u64> = (0..TOTAL).filter(|&i| !come(&batches, i)).collect();
            prop_assert_eq!(coverage.len(), TOTAL - missing.len() as u64);
            prop_assert_eq!(coverage.is_empty(), missing.len() as u64 == TOTAL);
            let hull = missing.first().zip(missing.last()).map(|(&first, &last)| first..last + 1);
            prop_assert_eq!(coverage.missing(TOTAL), hull);
            let first = missing.first().copied().unwrap_or(TOTAL);
            if !settled {
                prop_assert!(!coverage.is_complete(), "nothing is complete whose total is unknown");
                prop_assert_eq!(coverage.first_gap().map(|gap| gap.start), Some(first));
                coverage.settle(TOTAL);
            }
            prop_assert_eq!(coverage.is_complete(), missing.is_empty());
            let gap = coverage.first_gap();
            prop_assert_eq!(gap.is_none(), missing.is_empty());
            if let Some(gap) = gap {
                prop_assert!(gap.start == first && gap.clone().all(|i| missing.contains(&i)));
                prop_assert!(gap.end == TOTAL || come(&batches, gap.end));
            }
        }
    }

    fn plan() -> MediaPlan {
        // 1,960 image tokens, and 100 audio tokens by the container's word.
        let (image, audio) = (Some(ImagePlan::new(1, 10)), AudioPlan::new(160_000));
        MediaPlan { content_id: String::new(), duration_s: 10.0, image, audio, notes: Vec::new() }
    }

    fn batch(plan: &MediaPlan, modality: Modality, tokens: Range<u64>) -> TokenBatch<'static> {
        let rows = (tokens.end - tokens.start) as usize;
        let tensor = Tensor::new(Dtype::F32, &[rows, 1], vec![0; rows * 4]).unwrap();
        let (job, plan) = (JobId::new("j").unwrap(), plan.clone());
        TokenBatch { v: VERSION, job, plan, modality, offset: tokens.start, tensor }
    }

    #[test]
    fn a_video_is_complete_once_both_modalities_are_in_whatever_order_and_not_before() {
        use Modality::{Audio, Image};
        let cuts = [(Image, 0..1_000), (Audio, 50..100), (Image, 900..1_960), (Audio, 0..60)];
        let plan = plan();
        for first in 0..cuts.len() {
            let mut coverage = VideoCoverage::planned(&plan);
            for (modality, tokens) in cuts.iter().cycle().skip(first).take(cuts.len()) {
                assert!(!coverage.is_complete());
                let new = coverage.note(&batch(&plan, *modality, tokens.clone()));
                assert!(!new.is_empty());
                assert_eq!(coverage.note(&batch(&plan, *modality, tokens.clone())), [], "all of it has come before");
            }
            assert!(coverage.is_complete());
            assert_eq!((coverage.of(Image).len(), coverage.of(Audio).len()), (1_960, 100));
        }
    }

    #[test]
    fn the_first_batch_of_a_modality_settles_its_total_and_one_without_rows_that_it_is_absent() {
        let mut coverage = VideoCoverage::planned(&plan());
        assert_eq!((coverage.image.total(), coverage.audio.total()), (Some(1_960), None));
        let longer = MediaPlan { audio: AudioPlan::new(200_000), ..plan() };
        coverage.note(&batch(&longer, Modality::Audio, 0..100));
        assert_eq!(coverage.audio.missing(100), Some(100..125));
        let black = MediaPlan { image: None, ..plan() };
        coverage.note(&batch(&black, Modality::Image, 0..0));
        assert!(coverage.image.is_complete() && !coverage.is_complete());
        let silent = VideoCoverage::planned(&MediaPlan { audio: None, ..plan() });
        assert!(silent.audio.is_complete() && !silent.image.is_complete());
    }
}
