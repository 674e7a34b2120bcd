//! State that a pipeline's own threads write and the calling thread reads.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gstreamer as gst;
use protocol::error::JobError;

/// State shared with GStreamer's threads.
#[derive(Default)]
pub(super) struct Shared {
    /// First failure that a thread reported.
    pub(super) failure: Mutex<Option<JobError>>,
    /// Number of buffers that passed anywhere in the pipeline; it stops growing when the pipeline stalls.
    pub(super) progress: AtomicU64,
    /// Whether the selected track has been found.
    pub(super) found: AtomicBool,
    /// Caps of the selected track in front of its decoder.
    pub(super) parsed: Mutex<Option<gst::Caps>>,
}

/// A lock that a panic of another holder does not spoil.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
