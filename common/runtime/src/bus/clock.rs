//! Time: of this host, and of the broker as it was told last.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time for which an answer of the broker holds.
const FRESH: Duration = Duration::from_secs(10);

/// Unix time in milliseconds, by the clock of this host. What is compared with another process's is the broker's:
/// [`Bus::broker_ms`](super::Bus::broker_ms).
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// The broker's clock, as it was told last. The time that has passed since is added by the clock of this host that nobody
/// sets.
#[derive(Default)]
pub(super) struct Clock(Mutex<Option<Told>>);

/// Time that the broker told.
#[derive(Clone, Copy)]
pub(super) struct Told {
    /// When it told it.
    pub at: Instant,
    /// Unix milliseconds.
    pub broker_ms: u64,
}

impl Told {
    /// Time of the broker now, if its clock goes as ours does.
    pub fn now_ms(self) -> u64 {
        self.broker_ms.saturating_add(self.at.elapsed().as_millis() as u64)
    }

    /// Whether it need not be asked again yet.
    pub fn is_fresh(self) -> bool {
        self.at.elapsed() < FRESH
    }
}

impl Clock {
    /// What was told last.
    pub fn told(&self) -> Option<Told> {
        *self.0.lock().expect("no holder panics. This is a bug.")
    }

    /// Notes what was told.
    pub fn set(&self, told: Told) {
        *self.0.lock().expect("no holder panics. This is a bug.") = Some(told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_goes_on_as_time_passes_and_is_asked_for_anew_after_a_while() {
        let clock = Clock::default();
        assert!(clock.told().is_none());
        // Two minutes off what this host thinks, which is never looked at.
        let broker_ms = now_ms() + 120_000;
        for (passed, fresh) in [(Duration::from_secs(3), true), (FRESH, false)] {
            let at = Instant::now().checked_sub(passed).expect("the machine runs for longer");
            clock.set(Told { at, broker_ms });
            let told = clock.told().expect("just set");
            let expected = broker_ms + passed.as_millis() as u64;
            assert!((expected..expected + 1000).contains(&told.now_ms()), "{} is not {expected}", told.now_ms());
            assert_eq!(told.is_fresh(), fresh);
        }
    }
}
