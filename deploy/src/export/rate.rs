//! Frames a second, as a fraction.

use std::fmt;
use std::ops::RangeInclusive;

/// Rates of the NTSC family: each of these times 1000/1001.
const NTSC: [u32; 5] = [24, 30, 48, 60, 120];
/// Whole rates that are standard ones.
const WHOLE: RangeInclusive<f64> = 1.0..=240.0;
/// Relative distance of a measured rate from a standard one at most: a quarter of the distance from 30 to 30000/1001.
const NEAR: f64 = 2.5e-4;
/// Distance of a measured rate from a standard one at most, in frames over the whole video.
const DRIFT: f64 = 0.5;
/// Denominator of other rates at most.
const MOST_DENOMINATOR: u64 = 10_000;
/// Measured rates that are taken for any; what a damaged or hostile file says may be anything.
const POSSIBLE: RangeInclusive<f64> = 1e-3..=1e5;

/// Frame rate as a fraction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Numerator, frames.
    pub numerator: u32,
    /// Denominator, seconds.
    pub denominator: u32,
    /// Whether it is an average and no standard rate: a variable rate, or an unusual constant one.
    pub is_average: bool,
}

impl Rate {
    /// Rate behind an average that a probe tells, as its f64 cannot say 30000/1001: the nearest standard rate (1 to 240, and
    /// 24, 30, 48, 60 and 120 times 1000/1001) that differs by at most 2.5e-4 of it, and over the whole video by at most
    /// half a frame, so that every frame has the same number by either; else the average itself. None for what is no rate.
    pub fn of(average: f64, duration_s: f64) -> Option<Self> {
        if !POSSIBLE.contains(&average) {
            return None;
        }
        let whole = WHOLE.contains(&average.round()).then_some((average.round() as u32, 1));
        let standard = NTSC.into_iter().map(|rate| (rate * 1000, 1001)).chain(whole);
        let distance = |&(n, d): &(u32, u32)| (f64::from(n) / f64::from(d) - average).abs();
        let nearest = standard.min_by(|a, b| distance(a).total_cmp(&distance(b)));
        let is_it = |rate: &(u32, u32)| distance(rate) <= NEAR * average && distance(rate) * duration_s <= DRIFT;
        let standard = nearest.filter(is_it);
        let (numerator, denominator) = standard.or_else(|| fraction(average))?;
        Some(Rate { numerator, denominator, is_average: standard.is_none() })
    }

    /// Frames a second.
    pub fn per_second(self) -> f64 {
        f64::from(self.numerator) / f64::from(self.denominator)
    }

    /// Number of the frame that begins nearest to a time in seconds from the first frame on, of two the later one. The time is
    /// taken to nanoseconds, so that 612.3 s are 15307.5 frames of 25 a second, and not a bit less as an f64 has it.
    pub fn frame_at(self, seconds: f64) -> u64 {
        let nanos = (seconds * 1e9).round().max(0.0) as u128;
        let (n, d) = (u128::from(self.numerator), u128::from(self.denominator) * 1_000_000_000);
        u64::try_from((nanos * n * 2 + d) / (d * 2)).unwrap_or(u64::MAX)
    }

    /// Microseconds from the first frame to so many tenths of a frame later, cut off.
    pub fn micros(self, tenths: u64) -> u64 {
        let micros = u128::from(tenths) * u128::from(self.denominator) * 100_000 / u128::from(self.numerator);
        u64::try_from(micros).unwrap_or(u64::MAX)
    }

    /// Frames that time codes count in a second.
    pub fn base(self) -> u32 {
        ((self.numerator + self.denominator / 2) / self.denominator).max(1)
    }

    /// Labels that drop-frame time codes leave out in a minute, but not in every tenth; none where there are no such codes.
    pub fn dropped(self) -> Option<u32> {
        match (self.numerator, self.denominator) {
            (30_000, 1001) => Some(2),
            (60_000, 1001) => Some(4),
            _ => None,
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.denominator {
            1 => write!(f, "{}", self.numerator),
            denominator => write!(f, "{}/{denominator}", self.numerator),
        }
    }
}

/// The first convergent of a number's continued fraction that is as near as 1e-9 of it, or the last one with a denominator
/// of at most [`MOST_DENOMINATOR`]; none for 0.
fn fraction(value: f64) -> Option<(u32, u32)> {
    let mut before: (u64, u64) = (1, 0);
    let mut at: (u64, u64) = (value.floor() as u64, 1);
    let mut rest = value - value.floor();
    while rest > 1e-9 && (at.0 as f64 / at.1 as f64 - value).abs() > value * 1e-9 {
        let term = rest.recip();
        let whole = term.floor() as u64;
        let next = (whole * at.0 + before.0, whole * at.1 + before.1);
        if next.1 > MOST_DENOMINATOR {
            break;
        }
        (before, at) = (at, next);
        rest = term - term.floor();
    }
    let numerator = u32::try_from(at.0).ok().filter(|&n| n > 0)?;
    Some((numerator, u32::try_from(at.1).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fraction_of(average: f64, duration_s: f64) -> (u32, u32, bool) {
        let rate = Rate::of(average, duration_s).unwrap();
        (rate.numerator, rate.denominator, rate.is_average)
    }

    #[test]
    fn a_standard_rate_is_found_however_a_container_rounds_it() {
        for (n, d) in [(24, 1), (25, 1), (30, 1), (50, 1), (60, 1), (120, 1), (1, 1), (10, 1)] {
            assert_eq!(fraction_of(f64::from(n), 5000.0), (n, d, false));
        }
        for n in [24_000, 30_000, 48_000, 60_000, 120_000] {
            assert_eq!(fraction_of(f64::from(n) / 1001.0, 86_400.0), (n, 1001, false));
        }
        // Nanoseconds of a frame in Matroska, and a length rounded to milliseconds.
        assert_eq!(fraction_of(1e9 / 33_366_666.0, 7200.0), (30_000, 1001, false));
        assert_eq!(fraction_of(299.0 / 9.977, 10.0), (30_000, 1001, false));
        assert_eq!(fraction_of(299.0 / 9.967, 10.0), (30, 1, false));
    }

    #[test]
    fn a_variable_rate_is_its_average_and_says_so() {
        // Between 29.97 and 30, and near 30 for too long to keep the numbers of frames.
        assert_eq!(fraction_of(29.985, 60.0), (5997, 200, true));
        assert_eq!(fraction_of(29.9995, 60.0), (30, 1, false));
        assert_eq!(fraction_of(29.9995, 3600.0), (59_999, 2000, true));
        assert_eq!(fraction_of(12.5, 60.0), (25, 2, true));
        let odd = Rate::of(23.456_789_012, 60.0).unwrap();
        assert!(odd.is_average && (odd.per_second() - 23.456_789_012).abs() < 1e-5, "{odd:?}");
        for none in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300, 1e-300] {
            assert_eq!(Rate::of(none, 10.0), None, "{none}");
        }
    }

    #[test]
    fn a_time_is_the_frame_that_begins_nearest_to_it() {
        let ntsc = Rate::of(30_000.0 / 1001.0, 10.0).unwrap();
        // 0.29 of 100 s is 28.999999999999996 in f64.
        let pal = Rate::of(25.0, 100.0).unwrap();
        assert_eq!([28.999_999_999_999_996, 612.3, 612.299].map(|s| pal.frame_at(s)), [725, 15_308, 15_307]);
        assert_eq!([0.0, 1001.0 / 30.0, 3600.0, -5.0].map(|s| ntsc.frame_at(s)), [0, 1000, 107_892, 0]);
        assert_eq!((ntsc.micros(10), ntsc.micros(300_000), ntsc.micros(9)), (33_366, 1_001_000_000, 30_030));
        assert_eq!((ntsc.base(), ntsc.dropped(), ntsc.to_string()), (30, Some(2), "30000/1001".to_owned()));
    }
}
