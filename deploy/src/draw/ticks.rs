//! Ticks of a time axis, at steps that a person counts in.

/// Steps between ticks, seconds: those of a decimal below a minute, those of a clock from there on.
const STEPS: [f64; 28] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0,
    900.0, 1800.0, 3600.0, 7200.0, 10_800.0, 21_600.0, 43_200.0, 86_400.0, 172_800.0,
];

/// Ticks of an axis from 0 on.
#[derive(Clone, Debug, PartialEq)]
pub struct Ticks {
    /// Distance of two, seconds.
    pub step_s: f64,
    /// Their times, seconds: multiples of the step up to the length of the axis.
    pub times: Vec<f64>,
}

impl Ticks {
    /// Ticks of an axis of `length_s` seconds: the finest of the steps that makes at most `most` distances; equal parts of an
    /// axis for which none is coarse enough.
    pub fn new(length_s: f64, most: usize) -> Self {
        let is_enough = |step: &f64| length_s / step <= most as f64;
        // Nothing that a file says its length is may make a picture endless.
        let step_s = STEPS.into_iter().find(is_enough).unwrap_or(length_s / most as f64);
        let count = (length_s / step_s + 1e-9).floor() as usize;
        Ticks { step_s, times: (0..=count).map(|tick| tick as f64 * step_s).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_those_that_a_person_counts_in_and_ticks_reach_the_end() {
        for (length_s, step_s, count) in [
            (20.0, 2.0, 11),
            (3660.0, 600.0, 7),
            (0.004, 0.001, 5),
            (59.9, 5.0, 12),
            (90_000.0, 10_800.0, 9),
            (0.0, 0.001, 1),
        ] {
            let ticks = Ticks::new(length_s, 12);
            assert_eq!((ticks.step_s, ticks.times.len()), (step_s, count), "{length_s}");
            let last = ticks.times.last().copied().unwrap();
            assert!(last <= length_s + 1e-9 && last + step_s > length_s, "{ticks:?}");
        }
        assert_eq!(Ticks::new(1e12, 10).times.len(), 11);
    }
}
