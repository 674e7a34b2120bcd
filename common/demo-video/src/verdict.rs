//! How right an answer is.

use super::scene::{Interval, union};

/// Least agreement of an answer that counts as true.
pub const LEAST: f64 = 0.5;

/// Agreement of an answer with the truth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Time in both, divided by time in either (intersection over union); 1 if both are empty.
    Iou(f64),
    /// Whether the words are the same.
    Same(bool),
}

impl Verdict {
    /// Of time ranges, in seconds.
    pub fn of_ranges(said: &[Interval], truth: &[Interval]) -> Self {
        let (said, truth) = (union(said.iter().copied()), union(truth.iter().copied()));
        let length = |ranges: &[Interval]| ranges.iter().map(|[from, to]| to - from).sum::<f64>();
        let either = length(&union(said.iter().chain(&truth).copied()));
        if either == 0.0 {
            return Verdict::Iou(1.0);
        }
        Verdict::Iou((length(&said) + length(&truth) - either) / either)
    }

    /// Of words.
    pub fn of_words(said: &str, truth: &str) -> Self {
        Verdict::Same(said.trim() == truth)
    }

    /// Agreement as a number from 0 to 1.
    pub fn agreement(self) -> f64 {
        match self {
            Verdict::Iou(iou) => iou,
            Verdict::Same(same) => f64::from(u8::from(same)),
        }
    }

    /// Whether the answer counts as true.
    pub fn is_true(self) -> bool {
        self.agreement() >= LEAST
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::Iou(iou) => write!(f, "IoU {iou:.2}"),
            Verdict::Same(true) => f.write_str("right"),
            Verdict::Same(false) => f.write_str("wrong"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_compared_by_the_time_that_they_share() {
        let iou = |said: &[Interval], truth: &[Interval]| Verdict::of_ranges(said, truth).agreement();
        assert_eq!(iou(&[[2.0, 6.0]], &[[4.0, 8.0]]), 1.0 / 3.0);
        assert_eq!(iou(&[[0.0, 1.0], [2.0, 3.0]], &[[0.0, 1.0]]), 0.5);
        // Said twice counts once; a range that ends before it begins is none.
        assert_eq!(iou(&[[1.0, 3.0], [1.0, 3.0], [9.0, 7.0]], &[[1.0, 3.0]]), 1.0);
        assert_eq!((iou(&[], &[]), iou(&[[1.0, 2.0]], &[]), iou(&[], &[[1.0, 2.0]])), (1.0, 0.0, 0.0));
    }

    #[test]
    fn words_are_right_or_wrong() {
        assert!(Verdict::of_words(" red\n", "red").is_true() && !Verdict::of_words("reddish", "red").is_true());
    }
}
