//! Videos that were answered about, kept for the next question: keys and values of a video do not depend on the question
//! (ARCHITECTURE.md), so a second question costs only its text. As many are kept as the budget holds, the least recently used go
//! first; what is [parked](mod@crate::job::parked) is on disk besides.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use config::LlmConfig;
use protocol::error::ErrorKind;
use protocol::event::JobResult;
use protocol::plan::MediaPlan;
use protocol::stage::{KeptVideo, Stop};

use crate::job::fit::Fit;
use crate::job::parked::{self, Parked};
pub use crate::job::video::{Video, VideoKey};

/// Videos in memory, the least recently used first.
type Shelf = Arc<Mutex<Vec<Video>>>;

/// Videos that are kept between two questions, in memory and on disk.
#[derive(Default)]
pub struct Kept {
    shelf: Shelf,
    parked: Option<Parked>,
    /// Whether videos stay in memory for the next question; else until they are parked.
    in_memory: bool,
}

impl Kept {
    /// No video yet, but those that are parked already. `model` is what they are of.
    pub fn new(llm: &LlmConfig, model: parked::Model) -> Self {
        let shelf = Shelf::default();
        let mut kept = Kept { shelf: shelf.clone(), parked: None, in_memory: llm.keep_video };
        let Some(directory) = &llm.park_dir else { return kept };
        if model.identity.fingerprint.is_empty() {
            tracing::warn!("videos are not parked: the model has no fingerprint");
            return kept;
        }
        let (identity, in_memory) = (model.identity.clone(), llm.keep_video);
        // What stayed only to be written goes as soon as that is done.
        let ended = move |parking: &parked::parking::Parking| {
            let is_written = |video: &Video| {
                let name = video.key.as_ref().map(|key| parked::format::Key::new(key, &identity).name());
                name.is_some_and(|name| name == parking.name)
            };
            if !in_memory {
                locked(&shelf).retain(|video| !is_written(video));
            }
        };
        match Parked::open(directory, llm.park_bytes, model, Box::new(ended)) {
            Ok(parked) => kept.parked = Some(parked),
            Err(error) => tracing::warn!(%error, "videos are not parked: no thread to write them"),
        }
        kept
    }

    /// Bytes that are free again once all videos in memory are released.
    pub fn bytes(&self) -> u64 {
        self.shelf().iter().map(|video| video.cache.bytes()).sum()
    }

    /// Number of videos in memory and on disk; one may be in both.
    pub fn counts(&self) -> (usize, usize) {
        (self.shelf().len(), self.parked.as_ref().map_or(0, |parked| parked.names().len()))
    }

    /// Videos in memory, the last one used first, then those that are on disk alone.
    pub fn names(&self) -> Vec<KeptVideo> {
        let mut names: Vec<KeptVideo> = self.shelf().iter().rev().map(|video| video.asked.clone()).collect();
        let on_disk = self.parked.as_ref().map(Parked::names).unwrap_or_default();
        for name in on_disk {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Parked videos; none where nothing is parked.
    pub fn parked(&self) -> Option<&Parked> {
        self.parked.as_ref()
    }

    /// Hands the video over that has this key, if it is in memory and `fits`.
    pub fn take(&mut self, key: Option<&VideoKey>, fits: impl Fn(&MediaPlan) -> bool) -> Option<Video> {
        let mut shelf = self.shelf();
        let at = shelf.iter().position(|video| key.is_some() && video.key.as_ref() == key && fits(&video.plan))?;
        Some(shelf.remove(at))
    }

    /// Releases videos, the least recently used first, until a plan fits beside the others, and none where it does already. The
    /// memory that is left to the job; its memory, too, has been returned, so that the next allocation need not fit between
    /// its pieces.
    pub fn make_room(&mut self, fit: Fit, plan: &MediaPlan, exact: bool) -> Fit {
        self.evict(fit, |fit| fit.check(plan, exact).is_ok())
    }

    /// Releases all videos in memory.
    pub fn clear(&mut self, fit: Fit) -> Fit {
        self.evict(fit, |fit| fit.kept_bytes == 0)
    }

    /// Releases videos until it `is_enough`, or none is left.
    fn evict(&mut self, fit: Fit, is_enough: impl Fn(&Fit) -> bool) -> Fit {
        let mut released = false;
        let left = loop {
            let left = Fit { kept_bytes: self.shelf().iter().map(|video| fit.video_bytes(&video.plan)).sum(), ..fit };
            if is_enough(&left) {
                break left;
            }
            let Some(video) = self.first() else { break left };
            tracing::info!(video = video.asked.video, bytes = video.cache.bytes(), "a kept video gives way");
            self.let_go(&video);
            released = true;
        };
        if released {
            compute::trim();
        }
        left
    }

    /// Takes the least recently used video off the shelf.
    fn first(&self) -> Option<Video> {
        let mut shelf = self.shelf();
        (!shelf.is_empty()).then(|| shelf.remove(0))
    }

    /// Lets go of what else holds a video's memory.
    fn let_go(&self, video: &Video) {
        if let (Some(parked), Some(key)) = (&self.parked, &video.key) {
            parked.release(key);
        }
    }

    /// Takes a video after a job. One that [is sound](is_sound) is written to disk, if it is not there, and stays in memory if
    /// it fits beside the encoders with `fit`, in place of the least recently used others.
    pub fn put_back(&mut self, video: Video, fit: Fit, sound: bool) {
        if !sound {
            if let (Some(parked), Some(key)) = (&self.parked, &video.key) {
                parked.forget(key);
            }
            return;
        }
        if let Some(parked) = &self.parked {
            parked.park(&video);
        }
        let key = video.key.clone();
        self.shelf().retain(|kept| key.is_none() || kept.key != key);
        let bytes = fit.video_bytes(&video.plan);
        if !(Fit { kept_bytes: 0, ..fit }).leaves(bytes) {
            // After a job in phases the encoders come back: it goes before they do.
            self.let_go(&video);
            return;
        }
        if key.is_none() || !(self.in_memory || self.is_waiting(key.as_ref())) {
            return;
        }
        self.evict(Fit { kept_bytes: 0, ..fit }, |fit| fit.leaves(bytes));
        self.shelf().push(video);
        // It may have been written between the question above and this.
        if !self.in_memory && !self.is_waiting(key.as_ref()) {
            self.shelf().retain(|video| video.key != key);
        }
    }

    fn is_waiting(&self, key: Option<&VideoKey>) -> bool {
        self.parked.as_ref().zip(key).is_some_and(|(parked, key)| parked.is_waiting(key))
    }

    fn shelf(&self) -> MutexGuard<'_, Vec<Video>> {
        locked(&self.shelf)
    }
}

fn locked(shelf: &Mutex<Vec<Video>>) -> MutexGuard<'_, Vec<Video>> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a video's keys and values may be kept after a job that ended so. A job that was cancelled, or lost its
/// broker, says nothing against them. One that failed in the model does: no second answer is built on data that may be
/// damaged, and no memory is held where there was too little.
pub fn is_sound(outcome: &Result<JobResult, Stop>) -> bool {
    match outcome {
        Ok(_) | Err(Stop::Cancelled | Stop::Unavailable(_)) => true,
        Err(Stop::Failed(error)) => {
            !matches!(error.kind, ErrorKind::Model | ErrorKind::Internal | ErrorKind::OutOfMemory)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::error::JobError;

    #[test]
    fn only_a_failure_of_the_model_casts_doubt_on_the_video() {
        let failed = |kind| is_sound(&Err(Stop::Failed(JobError::new(kind, "it failed"))));
        assert!(is_sound(&Err(Stop::Cancelled)) && is_sound(&Err(Stop::Unavailable("away".to_owned()))));
        assert!(failed(ErrorKind::WorkerLost));
        assert!(!failed(ErrorKind::Model) && !failed(ErrorKind::Internal) && !failed(ErrorKind::OutOfMemory));
    }
}
