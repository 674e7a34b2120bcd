//! State that a pipeline's own threads write and the calling thread reads.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gstreamer as gst;
use protocol::error::JobError;

use crate::media_file::Reading;

/// State shared with GStreamer's threads.
#[derive(Default)]
pub(super) struct Shared {
    /// Refusal of the file, whatever was decoded of it before.
    pub(super) refusal: Refusal,
    /// Colours that the container tells.
    pub(super) told: Told,
    /// First failure that a thread reported.
    pub(super) failure: Mutex<Option<JobError>>,
    /// First plugin that GStreamer missed, for whichever track.
    pub(super) missing: Mutex<Option<JobError>>,
    /// Work on the file; it stops growing when the pipeline stalls.
    pub(super) reading: Reading,
    /// Whether the selected track has been found.
    pub(super) found: AtomicBool,
    /// Whether the decoder is one of ffmpeg's.
    pub(super) is_ffmpegs: AtomicBool,
    /// Caps of the selected track in front of its decoder.
    pub(super) parsed: Mutex<Option<gst::Caps>>,
}

/// Name of a track, and the colours that its container tells.
type Colours = (Option<String>, String);

/// Colours that a container tells of its tracks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told(Arc<Mutex<Vec<Colours>>>);

impl Told {
    /// Notes those of a track.
    pub(super) fn note(&self, track: Option<String>, colours: String) {
        lock(&self.0).push((track, colours));
    }

    /// Those of a track, or of the only one.
    pub(super) fn get(&self, track: Option<&str>) -> Option<String> {
        let all = lock(&self.0);
        let found = all.iter().find(|(name, _)| track.is_none() || name.as_deref() == track);
        found.map(|(_, colours)| colours.clone())
    }
}

/// Reason why a file is refused, once there is one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusal(Arc<Mutex<Option<JobError>>>);

impl Refusal {
    /// Sets the reason, unless there is one already.
    pub(crate) fn set(&self, error: JobError) {
        lock(&self.0).get_or_insert(error);
    }

    /// The reason, if there is one.
    pub(crate) fn get(&self) -> Option<JobError> {
        lock(&self.0).clone()
    }
}

/// A lock that a panic of another holder does not spoil.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
