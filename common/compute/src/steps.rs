//! What the start of a stage takes.

use std::time::Instant;

/// Times of the steps of a start, for the log at `debug`.
#[derive(Debug)]
pub struct Steps(Instant);

impl Default for Steps {
    /// The first step begins now.
    fn default() -> Self {
        Steps(Instant::now())
    }
}

impl Steps {
    /// A step has ended, and the next one begins.
    pub fn ended(&mut self, step: &str) {
        tracing::debug!(ms = self.0.elapsed().as_millis() as u64, "{step}");
        self.0 = Instant::now();
    }
}
