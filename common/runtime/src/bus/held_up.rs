//! Requests of one process that wait for the broker.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Count of them.
#[derive(Debug, Default)]
pub(super) struct HeldUp(AtomicUsize);

impl HeldUp {
    /// One more waits.
    pub fn begin(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One has its answer, or waits no more.
    pub fn end(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether some wait.
    pub fn is_any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}
