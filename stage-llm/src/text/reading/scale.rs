//! Times of an answer, as they are written, to seconds.

use protocol::event::TimeRange;

use super::Watched;
use super::reference::scaled;
use super::resolution::{of_fractions_s, of_seconds_s};
use super::time::{Time, Unit};

/// Meaning of an answer's numbers without a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    fractions: bool,
    pointed: bool,
}

impl Scale {
    /// Scale of all times of an answer together.
    pub fn of(times: impl Iterator<Item = Time>) -> Self {
        let plain: Vec<Time> = times.filter(|time| time.unit == Unit::Plain).collect();
        let pointed = plain.iter().any(|time| time.decimals > 0);
        let mut counted = plain.iter().filter(|time| !pointed || time.decimals > 0 || time.value <= 1.0);
        Scale { fractions: pointed && counted.all(|time| time.value <= 1.0), pointed }
    }

    /// Whether a number is meant as a time.
    pub fn is_time(self, time: Time) -> bool {
        time.unit != Unit::Plain || !self.pointed || time.decimals > 0 || time.value <= 1.0 || !self.fractions
    }

    /// Fraction of what was watched, or none for a time in seconds.
    fn fraction(self, time: Time) -> Option<f64> {
        match time.unit {
            Unit::Percent => Some(time.value / 100.0),
            Unit::Plain if self.fractions => Some(time.value),
            Unit::Clock | Unit::Seconds | Unit::Plain => None,
        }
    }

    /// Range of two times, in seconds from the start of the video.
    pub fn range(self, start: Time, end: Time, watched: Watched) -> TimeRange {
        let second = |time: Time| match self.fraction(time) {
            // The reference's own formula, so that what both parsers read is the same.
            Some(fraction) => scaled((fraction, fraction), watched).start_s,
            None => watched.start_s + time.value,
        };
        TimeRange { start_s: second(start), end_s: second(end), title: None }
    }

    /// Seconds that the last digit of a time stands for.
    pub fn resolution_s(self, time: Time, watched: Watched) -> f64 {
        match (self.fraction(time), time.unit) {
            (Some(_), Unit::Percent) => of_fractions_s(time.decimals + 2, watched.duration_s),
            // "0" and "1" beside fractions are as exact as those.
            (Some(_), _) if time.decimals == 0 => 0.0,
            (Some(_), _) => of_fractions_s(time.decimals, watched.duration_s),
            (None, _) => of_seconds_s(time.decimals),
        }
    }
}
