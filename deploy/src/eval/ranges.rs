//! Time ranges of one query, said and true: intersection over union, precision and recall, as the published scorer of VUE-TR
//! computes them. Its rules are not those of a textbook: what it merges, swaps and drops is told at each function.

/// Time from its first number to its second, seconds.
pub type Range = [f64; 2];

/// Added to a union so that an empty one can be divided by.
const TINY: f64 = 1e-16;

/// The ranges of an answer or a truth as its file lists them: what has not two numbers is none, as `[]` in `[[]]`.
pub fn of_two_numbers(listed: &[Vec<f64>]) -> Vec<Range> {
    listed.iter().filter_map(|range| Range::try_from(range.as_slice()).ok()).collect()
}

/// Answered ranges in whole seconds: each start floored, each end ceiled. The truth stays as it is.
pub fn whole_seconds(said: &[Range]) -> Vec<Range> {
    said.iter().map(|[start, end]| [start.floor(), end.ceil()]).collect()
}

/// Intersection over union, 0 to 1: 1 where both are empty, 0 where one is. What was said is sorted and joined where it
/// overlaps or touches, and what then ends before it starts is dropped; the truth is taken as it is.
pub fn iou(said: &[Range], truth: &[Range]) -> f64 {
    if said.is_empty() || truth.is_empty() {
        return f64::from(u8::from(said.is_empty() && truth.is_empty()));
    }
    let said = joined(said);
    let pairs = said.iter().flat_map(|s| truth.iter().map(move |t| (s, t)));
    let shared = pairs.fold(0.0, |sum, (s, t)| sum + (s[1].min(t[1]) - s[0].max(t[0])).max(0.0));
    let either = length(&said) + length(truth) - shared;
    (shared / (either + TINY)).clamp(0.0, 1.0)
}

/// Ranges in order, joined where one starts before the last one has ended, without those that end before they start.
fn joined(ranges: &[Range]) -> Vec<Range> {
    let mut sorted = ranges.to_vec();
    sorted.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let mut joined: Vec<Range> = Vec::new();
    for [start, end] in sorted {
        match joined.last_mut() {
            Some(last) if start <= last[1] => last[1] = last[1].max(end),
            _ => joined.push([start, end]),
        }
    }
    joined.retain(|[start, end]| start <= end);
    joined
}

fn length(ranges: &[Range]) -> f64 {
    ranges.iter().fold(0.0, |sum, [start, end]| sum + (end - start))
}

/// Seconds that ranges share and have, by which precision and recall are told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overlap {
    /// Seconds in both.
    pub shared_s: f64,
    /// Seconds that were said.
    pub said_s: f64,
    /// Seconds of the truth.
    pub truth_s: f64,
}

impl Overlap {
    /// Compares ranges: reversed ones are swapped; nothing is sorted and nothing joined. Both lists are walked at once; of
    /// two ranges the one that ends first is passed, what was said where both end together.
    pub fn between(said: &[Range], truth: &[Range]) -> Self {
        let forward = |ranges: &[Range]| ranges.iter().map(|[a, b]| [a.min(*b), a.max(*b)]).collect::<Vec<Range>>();
        let (said, truth) = (forward(said), forward(truth));
        let (mut shared_s, mut s, mut t) = (0.0, 0, 0);
        while let (Some(a), Some(b)) = (said.get(s), truth.get(t)) {
            if a[0] <= b[1] && b[0] <= a[1] {
                shared_s += a[1].min(b[1]) - a[0].max(b[0]);
            }
            if a[1] <= b[1] { s += 1 } else { t += 1 }
        }
        Overlap { shared_s, said_s: length(&said), truth_s: length(&truth) }
    }

    /// Share of what was said that is true. None where nothing was said, which is left out of means; but 1 with
    /// `empty_is_right` (VUE-TR-V2) where nothing was to be said either.
    pub fn precision(&self, empty_is_right: bool) -> Option<f64> {
        if self.said_s != 0.0 {
            return Some(self.shared_s / self.said_s);
        }
        (empty_is_right && self.truth_s == 0.0).then_some(1.0)
    }

    /// Share of the truth that was said; none where there is no truth, which is left out of means.
    pub fn recall(&self) -> Option<f64> {
        (self.truth_s != 0.0).then(|| self.shared_s / self.truth_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_without_two_numbers_are_no_ranges_and_empty_answers_have_none() {
        assert_eq!(of_two_numbers(&[]), [[0.0; 2]; 0]);
        assert_eq!(of_two_numbers(&[vec![]]), [[0.0; 2]; 0]);
        assert_eq!(of_two_numbers(&[vec![1.0], vec![2.0, 3.0], vec![4.0, 5.0, 6.0]]), [[2.0, 3.0]]);
    }

    #[test]
    fn what_was_said_is_widened_to_whole_seconds() {
        assert_eq!(whole_seconds(&[[1.9, 2.1], [3.0, 4.0], [9.5, 2.5]]), [[1.0, 3.0], [3.0, 4.0], [9.0, 3.0]]);
    }

    #[test]
    fn intersection_over_union_is_one_of_nothing_and_nothing_and_zero_of_nothing_and_something() {
        assert_eq!((iou(&[], &[]), iou(&[], &[[1.0, 2.0]]), iou(&[[1.0, 2.0]], &[])), (1.0, 0.0, 0.0));
        // Neither has any length: nothing is shared.
        assert_eq!(iou(&[[3.0, 3.0]], &[[3.0, 3.0]]), 0.0);
    }

    #[test]
    fn what_was_said_is_sorted_and_joined_before_it_is_compared() {
        assert_eq!(iou(&[[4.0, 8.0]], &[[2.0, 6.0]]), 2.0 / 6.0);
        // Unsorted, overlapping, touching and twice the same: 0 to 8 all the same.
        for said in [
            &[[0.0, 8.0]][..],
            &[[4.0, 8.0], [0.0, 4.0]],
            &[[0.0, 5.0], [3.0, 8.0], [0.0, 5.0]],
            &[[0.0, 8.0], [0.0, 8.0]],
        ] {
            assert_eq!(iou(said, &[[0.0, 4.0]]), 0.5, "{said:?}");
        }
    }

    #[test]
    fn a_reversed_range_is_dropped_and_one_of_the_truth_is_not_mended() {
        assert_eq!(iou(&[[6.0, 2.0]], &[[2.0, 6.0]]), 0.0);
        assert_eq!(iou(&[[6.0, 2.0], [8.0, 10.0]], &[[8.0, 10.0]]), 1.0);
        // Reversed, and within another one: it joins that.
        assert_eq!(iou(&[[1.0, 7.0], [6.0, 2.0]], &[[1.0, 7.0]]), 1.0);
        // The truth twice: shared twice, and had twice.
        assert_eq!(iou(&[[0.0, 4.0]], &[[0.0, 4.0], [0.0, 4.0]]), 1.0);
    }

    #[test]
    fn precision_and_recall_walk_both_lists_once() {
        let overlap = Overlap::between(&[[0.0, 4.0], [6.0, 9.0]], &[[2.0, 7.0]]);
        assert_eq!(overlap, Overlap { shared_s: 3.0, said_s: 7.0, truth_s: 5.0 });
        assert_eq!((overlap.precision(false), overlap.recall()), (Some(3.0 / 7.0), Some(0.6)));
        // Ranges that touch share nothing; those that end together are both passed.
        assert_eq!(Overlap::between(&[[0.0, 2.0], [2.0, 4.0]], &[[2.0, 4.0]]).shared_s, 2.0);
        assert_eq!(Overlap::between(&[[0.0, 2.0], [3.0, 4.0]], &[[1.0, 2.0], [3.0, 4.0]]).shared_s, 2.0);
    }

    #[test]
    fn a_reversed_range_counts_as_it_would_forward() {
        let overlap = Overlap::between(&[[6.0, 2.0]], &[[8.0, 4.0]]);
        assert_eq!(overlap, Overlap { shared_s: 2.0, said_s: 4.0, truth_s: 4.0 });
    }

    #[test]
    fn what_is_not_in_order_is_walked_past_and_what_was_said_twice_counts_twice() {
        // The first one ends last: the truth is passed before the second one is looked at.
        assert_eq!(Overlap::between(&[[6.0, 9.0], [0.0, 4.0]], &[[0.0, 4.0]]).shared_s, 0.0);
        let twice = Overlap::between(&[[0.0, 4.0], [0.0, 4.0]], &[[0.0, 4.0]]);
        assert_eq!((twice.precision(true), twice.recall()), (Some(1.0), Some(2.0)));
    }

    #[test]
    fn nothing_said_has_no_precision_and_no_truth_no_recall() {
        let nothing = Overlap::between(&[], &[[1.0, 2.0]]);
        assert_eq!((nothing.precision(false), nothing.precision(true), nothing.recall()), (None, None, Some(0.0)));
        // A moment has no length either.
        assert_eq!(Overlap::between(&[[5.0, 5.0]], &[[1.0, 9.0]]).precision(true), None);
        let both = Overlap::between(&[], &[]);
        assert_eq!((both.precision(false), both.precision(true), both.recall()), (None, Some(1.0), None));
        let wrong = Overlap::between(&[[1.0, 2.0]], &[]);
        assert_eq!((wrong.precision(true), wrong.recall()), (Some(0.0), None));
    }
}
