//! Timings of a job, and its progress events.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use protocol::error::StageName;
use protocol::event::{Event, StageTiming, Timings};
use protocol::stage::{JobPort, Stop};

/// Least time between two progress events: four a second (PROTOCOL.md).
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Progress of a job as its client hears of it, not too often.
#[derive(Debug, Default)]
pub struct Progress {
    last: Option<Instant>,
}

impl Progress {
    /// Sends a progress event if it is the last one, or if the one before was sent long enough ago.
    ///
    /// # Errors
    /// Errors of the port.
    pub fn tell(&mut self, port: &mut dyn JobPort, done: u64, total: u64) -> Result<(), Stop> {
        let due = self.last.is_none_or(|t| t.elapsed() >= PROGRESS_EVERY);
        if !due && done < total {
            return Ok(());
        }
        self.last = Some(Instant::now());
        port.event(Event::Progress { stage: StageName::Llm, done, total })
    }
}

/// Clock of a job: times of waiting, of work and of tokens.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    start_ms: u64,
    waited: Duration,
    first_token: Option<Instant>,
}

impl Clock {
    /// Clock that starts now.
    pub fn start() -> Self {
        Clock { start: Instant::now(), start_ms: unix_ms(), waited: Duration::ZERO, first_token: None }
    }

    /// Counts the time of `f` as waiting for others.
    pub fn waiting<T>(&mut self, f: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let outcome = f();
        self.waited += start.elapsed();
        outcome
    }

    /// Notes that a token was generated.
    pub fn token(&mut self) {
        self.first_token.get_or_insert_with(Instant::now);
    }

    /// Timings so far, with `tokens` generated.
    pub fn timings(&self, tokens: usize) -> Timings {
        let elapsed = self.start.elapsed();
        let first = self.first_token.unwrap_or(self.start);
        let writing_s = first.elapsed().as_secs_f64();
        let stage = StageTiming {
            busy_s: elapsed.saturating_sub(self.waited).as_secs_f64(),
            wait_s: self.waited.as_secs_f64(),
            first_at_ms: self.start_ms,
            last_at_ms: unix_ms(),
        };
        Timings {
            stages: BTreeMap::from([(StageName::Llm, stage)]),
            first_token_s: (first - self.start).as_secs_f64(),
            tokens_per_s: if tokens > 1 && writing_s > 0.0 { (tokens - 1) as f64 / writing_s } else { 0.0 },
        }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
