//! Wall and CPU time of the laps of a run.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Time that something took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Took {
    /// Seconds by the clock: what a busy machine lengthens.
    pub wall_s: f64,
    /// Seconds of CPU time of all threads of the process.
    pub cpu_s: f64,
}

impl std::ops::Add for Took {
    type Output = Took;
    fn add(self, other: Took) -> Took {
        Took { wall_s: self.wall_s + other.wall_s, cpu_s: self.cpu_s + other.cpu_s }
    }
}

/// Seconds of CPU time that this process has used so far.
fn cpu_seconds() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is there for the call to fill in.
    let rc = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut now) };
    assert_eq!(rc, 0, "every Linux has the clock of a process");
    now.tv_sec as f64 + now.tv_nsec as f64 * 1e-9
}

/// Laps of a run, one after the other.
pub struct Laps {
    wall: Instant,
    cpu: f64,
    laps: Vec<Took>,
}

impl Laps {
    /// Laps that begin now.
    pub fn begin() -> Self {
        Laps { wall: Instant::now(), cpu: cpu_seconds(), laps: Vec::new() }
    }

    /// Ends a lap and begins the next one.
    pub fn lap(&mut self) {
        let (wall, cpu) = (Instant::now(), cpu_seconds());
        self.laps.push(Took { wall_s: (wall - self.wall).as_secs_f64(), cpu_s: cpu - self.cpu });
        (self.wall, self.cpu) = (wall, cpu);
    }

    /// The laps.
    pub fn finish(self) -> Vec<Took> {
        self.laps
    }
}

/// Median by wall and, on its own, by CPU time; zeros of none.
pub fn median(of: &[Took]) -> Took {
    let middle = |pick: fn(&Took) -> f64| {
        let mut all: Vec<f64> = of.iter().map(pick).collect();
        all.sort_by(f64::total_cmp);
        match all.len() {
            0 => 0.0,
            n => (all[(n - 1) / 2] + all[n / 2]) / 2.0,
        }
    };
    Took { wall_s: middle(|t| t.wall_s), cpu_s: middle(|t| t.cpu_s) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_taken_of_wall_and_cpu_time_apart() {
        let took = |wall_s, cpu_s| Took { wall_s, cpu_s };
        assert_eq!(median(&[]), took(0.0, 0.0));
        assert_eq!(median(&[took(3.0, 1.0), took(1.0, 9.0), took(2.0, 5.0)]), took(2.0, 5.0));
        assert_eq!(median(&[took(3.0, 1.0), took(1.0, 9.0)]), took(2.0, 5.0));
    }
}
