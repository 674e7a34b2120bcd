//! Selection of decoded pictures: the picked ones, and for a picked one that does not decode the last that did.

use std::ops::Range;
use std::sync::Arc;

use crate::timeline::{Numbering, Timeline};

/// Numbers of the picked pictures: `count` of them, every `step`-th, from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Picks {
    pub(crate) first: u64,
    pub(crate) step: u64,
    pub(crate) count: u64,
}

impl Picks {
    /// The number of the `index`-th picked picture.
    pub(crate) fn number(self, index: u64) -> u64 {
        self.first.saturating_add(index.saturating_mul(self.step))
    }

    /// The picks from the `index`-th on below the number `end`, with numbers counted from `start` on.
    pub(crate) fn part(self, index: u64, start: u64, end: u64) -> Picks {
        let first = self.number(index);
        let below = end.saturating_sub(first).div_ceil(self.step);
        Picks {
            first: first.saturating_sub(start),
            step: self.step,
            count: below.min(self.count.saturating_sub(index)),
        }
    }

    /// Whether the range holds the number of a picked picture.
    pub(crate) fn any_in(self, numbers: Range<u64>) -> bool {
        let index = numbers.start.saturating_sub(self.first).div_ceil(self.step);
        index < self.count && numbers.contains(&self.number(index))
    }
}

/// Pictures that pass when a new one comes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Passed<T> {
    /// The held picture and its number, if a picked one after it did not decode.
    pub(crate) held: Option<(u64, T)>,
    /// The number of the new picture, if it is picked.
    pub(crate) new: Option<u64>,
}

/// Filter that passes picked pictures in order, and holds the last one that was not picked.
#[derive(Debug)]
pub(crate) struct PickFilter<T> {
    numbering: Numbering,
    picks: Picks,
    held: Option<(u64, T)>,
    /// First number that is not decided yet.
    decided: u64,
}

impl<T> PickFilter<T> {
    pub(crate) fn new(timeline: impl Into<Arc<Timeline>>, picks: Picks) -> Self {
        PickFilter { numbering: Numbering::new(timeline), picks, held: None, decided: 0 }
    }

    /// Takes the timestamp of the next decoded picture; `keep` gives the picture itself if it is to be held.
    pub(crate) fn take(&mut self, at: Option<u64>, keep: impl FnOnce() -> T) -> Passed<T> {
        let Some(number) = self.numbering.next(at) else { return Passed { held: None, new: None } };
        let missing = self.picks.any_in(self.decided..number);
        self.decided = number + 1;
        let held = self.held.take().filter(|_| missing);
        let picked = self.picks.any_in(number..number + 1);
        if !picked {
            self.held = Some((number, keep()));
        }
        Passed { held, new: picked.then_some(number) }
    }

    /// Returns the held picture at the end of the stream: no later picture can show whether it is needed.
    pub(crate) fn release(&mut self) -> Option<(u64, T)> {
        self.held.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PICKS: Picks = Picks { first: 1, step: 3, count: 3 };

    /// Numbers of what passes of the decoded pictures `numbers`.
    fn passed(numbers: impl Iterator<Item = u64>) -> Vec<u64> {
        let timeline = Timeline::new((0..20).map(|n| Some((n * 1_000_000, true))));
        let mut filter = PickFilter::new(timeline, PICKS);
        let mut all = Vec::new();
        for n in numbers {
            let Passed { held, new } = filter.take(Some(n * 1_000_000), || n);
            if let Some((number, picture)) = held {
                assert_eq!(number, picture);
                all.push(number);
            }
            all.extend(new);
        }
        all.extend(filter.release().map(|(number, _)| number));
        all
    }

    #[test]
    fn picked_pictures_pass_and_at_the_end_the_last() {
        assert_eq!([0, 1, 2].map(|i| PICKS.number(i)), [1, 4, 7]);
        assert_eq!(passed(0..11), [1, 4, 7, 10]);
    }

    #[test]
    fn picks_are_parted_at_any_number_and_none_is_lost() {
        for border in 0..12 {
            let below = PICKS.part(0, 0, border);
            let above = PICKS.part(below.count, border, u64::MAX);
            let numbers = (0..below.count).map(|i| below.number(i));
            let numbers = numbers.chain((0..above.count).map(|i| border + above.number(i)));
            assert_eq!(numbers.collect::<Vec<_>>(), [1, 4, 7], "{border}");
        }
    }

    #[test]
    fn before_a_picked_picture_that_does_not_decode_the_last_that_did_passes() {
        assert_eq!(passed((0..8).filter(|n| *n != 4)), [1, 3, 7]);
        assert_eq!(passed((0..9).filter(|n| !(3..7).contains(n))), [1, 2, 7, 8]);
        assert_eq!(passed((0..8).filter(|n| !(2..6).contains(n))), [1, 7], "the last is the picked one before");
        assert_eq!(passed((0..9).filter(|n| *n != 1)), [0, 4, 7, 8]);
        assert_eq!(passed(0..4), [1, 3], "cut short");
    }
}
