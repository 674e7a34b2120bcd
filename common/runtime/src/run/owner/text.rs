//! Answer text on its way to the client, held back for a moment, so that the bus does not slow generation.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::bus::events::EventLog;

/// Time that a text delta waits for more.
const EVERY: Duration = Duration::from_millis(40);

/// Text that is not told yet.
pub struct HeldText {
    delta: String,
    /// Bytes of the answer before it.
    at: u64,
    /// Bytes of text that an earlier owner of this job told already; none until they are counted.
    already_written: Option<usize>,
    flushed: Instant,
}

impl HeldText {
    /// Text of an answer that has not begun.
    pub fn new() -> Self {
        HeldText { delta: String::new(), at: 0, already_written: None, flushed: Instant::now() }
    }

    /// Adds text that stands behind `at` bytes of the answer; true once it has waited long enough to be told.
    pub fn push(&mut self, delta: &str, at: u64) -> bool {
        if self.delta.is_empty() {
            self.at = at;
        }
        self.delta.push_str(delta);
        self.flushed.elapsed() >= EVERY
    }

    /// Takes what is to be told of the text, all but what an earlier owner told, and the bytes of the answer before it.
    pub async fn take(&mut self, log: &Mutex<EventLog>) -> Option<(String, u64)> {
        self.flushed = Instant::now();
        let delta = std::mem::take(&mut self.delta);
        if delta.is_empty() {
            return None;
        }
        // Counted only now: this owner has written `planned`, so that an earlier one is refused and adds no more.
        let told = match self.already_written {
            Some(told) => told,
            None => log.lock().await.text_written().await,
        };
        let skip = told.min(delta.len());
        self.already_written = Some(told - skip);
        let new = delta.get(skip..).filter(|new| !new.is_empty())?;
        Some((new.to_owned(), self.at + skip as u64))
    }
}
