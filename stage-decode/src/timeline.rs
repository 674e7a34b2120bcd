//! Numbers of decoded pictures, by the time at which the container shows them: a picture that does not decode leaves its
//! own number free and shifts no other.

use std::sync::Arc;

/// Limit on the pictures whose times are kept: 38 hours at 30 pictures per second, 32 MiB.
pub(crate) const MAX_LISTED: usize = 1 << 22;
/// Bound on the rounding of demuxers, which convert the container's ticks to nanoseconds.
const ROUNDING_NS: u64 = 1_000;

/// Pictures that are shown in one pass over a track. An edit list that goes back in time takes several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pass {
    /// Number of the pictures.
    pub(crate) frames: u64,
    pub(crate) timeline: Timeline,
}

/// Times at which a track's pictures are shown, in nanoseconds as the demuxer gives them, sorted.
///
/// Both lists are empty where the container does not give every picture a time (AVI): decoded pictures are then
/// numbered as they come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timeline {
    /// Times of the pictures that count.
    shown: Vec<u64>,
    /// Times of the pictures that an edit list cuts off.
    hidden: Vec<u64>,
}

impl Timeline {
    /// A timeline from times in any order, each with whether its picture counts; `None` is a picture without a time.
    pub(crate) fn new(pictures: impl Iterator<Item = Option<(u64, bool)>>) -> Self {
        let mut timeline = Timeline::default();
        for (count, picture) in pictures.enumerate() {
            let (Some((at, shown)), 0..MAX_LISTED) = (picture, count) else { return Timeline::default() };
            if shown { timeline.shown.push(at) } else { timeline.hidden.push(at) }
        }
        timeline.shown.sort_unstable();
        timeline.hidden.sort_unstable();
        timeline
    }

    /// Number of times that are kept.
    pub(crate) fn len(&self) -> usize {
        self.shown.len() + self.hidden.len()
    }

    /// Number of pictures that count.
    pub(crate) fn shown_count(&self) -> u64 {
        self.shown.len() as u64
    }

    /// Number of the picture that is shown at a time; none where that is no picture's, several' or one's that does not count.
    pub(crate) fn only_at(&self, at: u64) -> Option<u64> {
        let number = Timeline::find(&self.shown, at, 0)?;
        let others = [(&self.shown, number + 1), (&self.hidden, 0)];
        let is_only = others.into_iter().all(|(times, from)| Timeline::find(times, at, from).is_none());
        is_only.then_some(number as u64)
    }

    /// Seconds by which a picture is shown at most before or after its number says, were the rate even; 0 where an edit list leaves
    /// pictures out, whose times are not those at which the others are shown.
    pub(crate) fn unevenness_s(&self) -> f64 {
        if !self.hidden.is_empty() {
            return 0.0;
        }
        let (Some(first), Some(last)) = (self.shown.first(), self.shown.last()) else { return 0.0 };
        let step = (last - first) as f64 / (self.shown.len() - 1).max(1) as f64;
        let off = self.shown.iter().enumerate().map(|(n, at)| ((at - first) as f64 - n as f64 * step).abs());
        off.fold(0.0, f64::max) / 1e9
    }

    /// The first position from `from` on whose time is `at`.
    fn find(times: &[u64], at: u64, from: usize) -> Option<usize> {
        let least = times.partition_point(|&t| t.saturating_add(ROUNDING_NS) < at).max(from);
        times.get(least).filter(|&&t| t <= at.saturating_add(ROUNDING_NS)).map(|_| least)
    }
}

/// Numbering of the decoded pictures that count, from 0, in the order in which they are shown.
#[derive(Debug)]
pub(crate) struct Numbering {
    timeline: Arc<Timeline>,
    next: u64,
}

impl Numbering {
    pub(crate) fn new(timeline: impl Into<Arc<Timeline>>) -> Self {
        Numbering { timeline: timeline.into(), next: 0 }
    }

    /// The number of the next decoded picture, always above the last one's; `None` if it does not count or comes too late.
    /// A picture whose time the container does not know takes the next number.
    pub(crate) fn next(&mut self, at: Option<u64>) -> Option<u64> {
        let Timeline { shown, hidden } = &*self.timeline;
        let number = match at {
            Some(at) => match Timeline::find(shown, at, self.next as usize) {
                Some(found) => found as u64,
                None if Timeline::find(hidden, at, 0).is_some() || Timeline::find(shown, at, 0).is_some() => {
                    return None;
                }
                None => self.next,
            },
            None => self.next,
        };
        self.next = number + 1;
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbering(pictures: &[(u64, bool)]) -> Numbering {
        Numbering::new(Timeline::new(pictures.iter().map(|&p| Some(p))))
    }

    fn numbers(numbering: &mut Numbering, times: &[u64]) -> Vec<Option<u64>> {
        times.iter().map(|&at| numbering.next(Some(at))).collect()
    }

    const MS: u64 = 1_000_000;

    #[test]
    fn a_picture_that_does_not_decode_leaves_its_number_free() {
        // As packets lie in a file with B-frames.
        let mut order = numbering(&[0, 90, 30, 60, 120].map(|t| (t * MS, true)));
        assert_eq!(numbers(&mut order, &[0, 30 * MS, 90 * MS, 120 * MS]), [Some(0), Some(1), Some(3), Some(4)]);
    }

    #[test]
    fn what_an_edit_list_cuts_off_is_not_numbered() {
        let mut cut = numbering(&[(0, false), (30 * MS, true), (60 * MS, true), (90 * MS, false)]);
        assert_eq!(numbers(&mut cut, &[0, 30, 60, 90].map(|t| t * MS)), [None, Some(0), Some(1), None]);
    }

    #[test]
    fn what_a_demuxer_cuts_off_in_rounding_changes_no_number() {
        let mut thirds = numbering(&[33_333_334, 66_666_667, 100_000_000].map(|t| (t, true)));
        assert_eq!(numbers(&mut thirds, &[33_333_333, 66_666_666, 100_000_001]), [Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn pictures_of_the_same_time_are_numbered_one_after_the_other_and_late_ones_not_at_all() {
        let mut twice = numbering(&[0, 30 * MS, 30 * MS, 60 * MS].map(|t| (t, true)));
        assert_eq!(
            numbers(&mut twice, &[0, 30, 30, 30, 60].map(|t| t * MS)),
            [0, 1, 2].map(Some).into_iter().chain([None, Some(3)]).collect::<Vec<_>>()
        );
        assert_eq!(numbers(&mut twice, &[0]), [None]);
    }

    #[test]
    fn without_times_pictures_are_numbered_as_they_come() {
        let mut counted = Numbering::new(Timeline::new([Some((0, true)), None].into_iter()));
        assert_eq!(numbers(&mut counted, &[0, 40 * MS, 20 * MS]), [Some(0), Some(1), Some(2)]);
        assert_eq!(counted.next(None), Some(3));
    }

    #[test]
    fn how_uneven_a_rate_is_shows_in_seconds() {
        let uneven = |times: &[u64]| Timeline::new(times.iter().map(|at| Some((at * MS, true)))).unevenness_s();
        assert_eq!([uneven(&[]), uneven(&[700]), uneven(&[500, 600, 700, 800])], [0.0; 3]);
        // The second of three would be shown at 5 s.
        assert_eq!(uneven(&[0, 10_000, 1_000]), 4.0);
    }

    #[test]
    fn a_time_that_the_container_does_not_know_is_that_of_the_picture_that_is_due() {
        let mut order = numbering(&[0, 30, 60, 90].map(|t| (t * MS, true)));
        assert_eq!(numbers(&mut order, &[0, 45 * MS]), [Some(0), Some(1)]);
        assert_eq!(order.next(None), Some(2));
        assert_eq!(numbers(&mut order, &[90 * MS]), [Some(3)]);
    }
}
