//! Time that a run has left, by what its answers took so far.

/// Times of answers. The first one about a video decodes it and passes it through the encoders; the next ones cost their text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    first: Mean,
    next: Mean,
}

/// Mean of some times.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    seconds: f64,
    count: u32,
}

impl Mean {
    fn of_one_s(self) -> Option<f64> {
        (self.count > 0).then(|| self.seconds / f64::from(self.count))
    }
}

impl Pace {
    /// Counts an answer that took `seconds`; `is_first` for the first one about its video.
    pub fn add(&mut self, is_first: bool, seconds: f64) {
        let mean = if is_first { &mut self.first } else { &mut self.next };
        mean.seconds += seconds;
        mean.count += 1;
    }

    /// Seconds that as many first and next answers will take; none before the first answer of all.
    pub fn left_s(&self, first: usize, next: usize) -> Option<f64> {
        let (a, b) = (self.first.of_one_s(), self.next.of_one_s());
        Some(a.or(b)? * first as f64 + b.or(a)? * next as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_answers_about_a_video_are_told_from_the_next_ones() {
        let mut pace = Pace::default();
        assert_eq!(pace.left_s(1, 1), None);
        pace.add(true, 10.0);
        assert_eq!(pace.left_s(2, 3), Some(50.0));
        pace.add(false, 1.0);
        pace.add(false, 2.0);
        assert_eq!(pace.left_s(2, 4), Some(26.0));
        assert_eq!(pace.left_s(0, 0), Some(0.0));
    }

    #[test]
    fn a_run_that_goes_on_in_the_middle_of_a_video_has_only_next_answers() {
        let mut pace = Pace::default();
        pace.add(false, 3.0);
        assert_eq!(pace.left_s(1, 1), Some(6.0));
    }
}
