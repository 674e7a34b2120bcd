//! Waiting in place of computing, as long as it takes on average: what one wait takes too long is taken off the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Most that a wait may be shortened for the ones before it: a process that was stopped has not computed meanwhile.
const MOST_AHEAD_S: f64 = 0.05;

/// Waits of one replica.
pub struct Pace {
    /// Times that the simulation's clock is faster than the real one; infinite for no waits at all.
    speed: f64,
    /// Seconds of the real clock that are still to be waited, or were waited too long.
    owed_s: f64,
    computed_us: Arc<AtomicU64>,
}

impl Pace {
    /// Waits at so many times the real speed; what they come to, in microseconds of the simulation's clock, is added to
    /// `computed_us`.
    pub fn new(speed: f64, computed_us: Arc<AtomicU64>) -> Self {
        Pace { speed, owed_s: 0.0, computed_us }
    }

    /// Waits for what takes a stage so many seconds.
    pub fn wait(&mut self, seconds: f64) {
        self.computed_us.fetch_add((seconds * 1e6) as u64, Ordering::Relaxed);
        self.owed_s += seconds / self.speed;
        if self.owed_s > 0.0 {
            let began = Instant::now();
            std::thread::sleep(Duration::from_secs_f64(self.owed_s));
            self.owed_s = (self.owed_s - began.elapsed().as_secs_f64()).max(-MOST_AHEAD_S);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_short_waits_take_as_long_as_they_say_together() {
        let computed = Arc::new(AtomicU64::new(0));
        let mut pace = Pace::new(10.0, computed.clone());
        let began = Instant::now();
        (0..1000).for_each(|_| pace.wait(1e-3));
        let took = began.elapsed().as_secs_f64();
        // Never less than asked for, but for what may be taken off the last ones; a busy machine may take longer.
        assert!(took >= 0.1 - MOST_AHEAD_S, "{took}");
        assert_eq!(computed.load(Ordering::Relaxed), 1_000_000);
        let began = Instant::now();
        (0..1000).for_each(|_| Pace::new(f64::INFINITY, computed.clone()).wait(1e3));
        assert!(began.elapsed() < Duration::from_secs(60));
    }
}
