//! Times of an answer as text, with no more decimals than are known.

use protocol::event::JobResult;
use stage_llm::text::reading::resolution::resolution_s;

/// Decimals that any format writes at most.
const MOST_DECIMALS: u32 = 3;

/// Resolution of a result's times, seconds: as it says; one of a stage-llm of before that has fractions in its text.
pub fn resolution_of(result: &JobResult) -> f64 {
    result.resolution_s.unwrap_or_else(|| resolution_s(&result.text, result.plan.duration_s))
}

/// Clock that ticks as finely as a power of ten of a second allows that is not coarser than a resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    decimals: u32,
}

impl Clock {
    /// Clock for times known to `resolution_s` seconds: it writes tenths where that is 0.2, and whole seconds where it is 1
    /// or more.
    pub fn new(resolution_s: f64) -> Self {
        let is_no_coarser = |decimals: &u32| 10f64.powi(-(*decimals as i32)) <= resolution_s * (1.0 + 1e-9);
        Clock { decimals: (0..MOST_DECIMALS).find(is_no_coarser).unwrap_or(MOST_DECIMALS) }
    }

    /// Ticks a second: 1, 10, 100 or 1000.
    pub fn per_second(self) -> u64 {
        10u64.pow(self.decimals)
    }

    /// Nearest tick to a time in seconds.
    pub fn ticks(self, seconds: f64) -> u64 {
        (seconds * self.per_second() as f64).round().max(0.0) as u64
    }

    /// A tick as a number of seconds.
    pub fn seconds(self, ticks: u64) -> f64 {
        ticks as f64 / self.per_second() as f64
    }

    /// A tick as `70.5`, with the decimals that are known.
    pub fn number(self, ticks: u64) -> String {
        format!("{:.*}", self.decimals as usize, self.seconds(ticks))
    }

    /// A tick as `00:01:10.500`, with `point` before three decimals, as players want them: those that are not known are 0.
    pub fn stamp(self, ticks: u64, point: char) -> String {
        let whole = ticks / self.per_second();
        let millis = ticks % self.per_second() * 1000 / self.per_second();
        format!("{:02}:{:02}:{:02}{point}{millis:03}", whole / 3600, whole / 60 % 60, whole % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_decimal_is_written_that_is_not_known() {
        let shown = |resolution_s: f64, seconds: f64| {
            let clock = Clock::new(resolution_s);
            let ticks = clock.ticks(seconds);
            (clock.number(ticks), clock.stamp(ticks, '.'))
        };
        let both = |number: &str, stamp: &str| (number.to_owned(), stamp.to_owned());
        assert_eq!(shown(0.2, 70.4567), both("70.5", "00:01:10.500"));
        assert_eq!(shown(1.0, 70.4567), both("70", "00:01:10.000"));
        assert_eq!(shown(9.99, 3725.6), both("3726", "01:02:06.000"));
        assert_eq!(shown(0.08, 70.4567), both("70.46", "00:01:10.460"));
        assert_eq!(shown(0.01, 70.4567), both("70.46", "00:01:10.460"));
        assert_eq!(shown(0.005, 59.9996), both("60.000", "00:01:00.000"));
        assert_eq!(shown(0.0, 0.1), both("0.100", "00:00:00.100"));
        assert_eq!(Clock::new(0.2).stamp(705, ','), "00:01:10,500");
    }
}
