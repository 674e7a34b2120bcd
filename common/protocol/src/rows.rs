//! Rows of a whole that are there: batches come in any order, cut anywhere, and more than once.

use std::collections::BTreeMap;
use std::ops::Range;

/// Set of rows, kept as disjoint ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowSet {
    /// Ranges, start to end; neither touching nor overlapping.
    ranges: BTreeMap<u64, u64>,
}

impl RowSet {
    /// Empty set.
    pub fn new() -> Self {
        RowSet::default()
    }

    /// Adds rows and returns the ranges of them that were not there before, in order.
    pub fn insert(&mut self, rows: Range<u64>) -> Vec<Range<u64>> {
        let mut new = Vec::new();
        if rows.is_empty() {
            return new;
        }
        let (mut start, mut end) = (rows.start, rows.end);
        let mut at = rows.start;
        let touching: Vec<(u64, u64)> =
            self.ranges.range(..=end).rev().take_while(|&(_, &e)| e >= start).map(|(&s, &e)| (s, e)).collect();
        for (s, e) in touching.into_iter().rev() {
            if at < s {
                new.push(at..s);
            }
            at = at.max(e);
            start = start.min(s);
            end = end.max(e);
            self.ranges.remove(&s);
        }
        if at < rows.end {
            new.push(at..rows.end);
        }
        self.ranges.insert(start, end);
        new
    }

    /// Rows held.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|(s, e)| e - s).sum()
    }

    /// Whether no row is held.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// First range of `0..total` that is missing; none when all are there.
    pub fn first_gap(&self, total: u64) -> Option<Range<u64>> {
        let mut at = 0;
        for (&s, &e) in &self.ranges {
            if at >= total || s > at {
                break;
            }
            at = e;
        }
        let next = self.ranges.range(at..).next().map_or(total, |(&s, _)| s.min(total));
        (at < total).then_some(at..next)
    }

    /// Rows from the first to the last one of `0..total` that is missing; none when all are there.
    pub fn missing(&self, total: u64) -> Option<Range<u64>> {
        let first = self.first_gap(total)?.start;
        let last = self.ranges.range(..total).next_back().filter(|&(_, &e)| e >= total);
        Some(first..last.map_or(total, |(&s, _)| s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_are_new_exactly_once_whatever_the_order(batches in prop::collection::vec((0u64..60, 0u64..20), 0..40)) {
            let mut set = RowSet::new();
            let mut seen = [false; 80];
            for (offset, n) in batches {
                let mut fresh = [false; 80];
                for r in set.insert(offset..offset + n) {
                    for i in r {
                        prop_assert!(!fresh[i as usize]);
                        fresh[i as usize] = true;
                    }
                }
                for i in 0..80u64 {
                    let inside = (offset..offset + n).contains(&i);
                    prop_assert_eq!(fresh[i as usize], inside && !seen[i as usize]);
                    seen[i as usize] |= inside;
                }
            }
            prop_assert_eq!(set.len(), seen.iter().filter(|&&s| s).count() as u64);
            let gap = seen.iter().position(|&s| !s).unwrap_or(80) as u64;
            prop_assert_eq!(set.first_gap(80).map(|g| g.start), (gap < 80).then_some(gap));
            let last = seen.iter().rposition(|&s| !s).map(|last| gap..last as u64 + 1);
            prop_assert_eq!(set.missing(80), last);
        }
    }
}
