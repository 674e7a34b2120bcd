//! Last video that was answered about, kept for the next question: keys and values of a video do not depend on the
//! question (ARCHITECTURE.md), so the second question costs only its text.

use protocol::error::ErrorKind;
use protocol::event::JobResult;
use protocol::message::JobRequest;
use protocol::plan::MediaPlan;
use protocol::stage::{KeptVideo, Stop};

use crate::job::pictures::Pictures;
use crate::language::cache::VideoCache;

/// Identity of a video's keys and values: all that they depend on, besides the model and its formats, of which a
/// process has one.
#[derive(Clone, Debug, PartialEq)]
pub struct VideoKey {
    /// Plan as probed, so that it is known before anything is decoded: content, frame step, frames, grid, length of the
    /// sound.
    plan: MediaPlan,
    span: Option<[f64; 2]>,
    fps: f64,
}

impl VideoKey {
    /// Key of a video as it was just probed and planned; none where the probe gives the content no identity, since then
    /// it could not be recognized.
    pub fn new(plan: &MediaPlan, request: &JobRequest) -> Option<Self> {
        let known = !plan.content_id.is_empty();
        known.then(|| VideoKey { plan: plan.clone(), span: request.span, fps: request.fps })
    }
}

/// Video with all its keys and values.
#[derive(Debug)]
pub struct Video {
    /// Key of the video; none for one that cannot be recognized.
    pub key: Option<VideoKey>,
    /// Video as the request named it that it was looked at for.
    pub name: KeptVideo,
    /// Plan of the video, all of it settled.
    pub plan: MediaPlan,
    /// Keys and values of every token.
    pub cache: VideoCache,
    /// What is known of its pictures.
    pub pictures: Pictures,
}

/// Video that is kept between two questions, if any.
#[derive(Debug, Default)]
pub struct Kept(Option<Video>);

impl Kept {
    /// Kept video, if it has this key.
    pub fn find(&self, key: Option<&VideoKey>) -> Option<&Video> {
        self.0.as_ref().filter(|video| key.is_some() && video.key.as_ref() == key)
    }

    /// Bytes that are free again once the video is released.
    pub fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |video| video.cache.bytes())
    }

    /// Kept videos as requests name them.
    pub fn names(&self) -> Vec<KeptVideo> {
        self.0.iter().map(|video| video.name.clone()).collect()
    }

    /// Hands the kept video over.
    pub fn take(&mut self) -> Option<Video> {
        self.0.take()
    }

    /// Releases the kept video and returns its memory, so that the next allocation need not fit between its pieces.
    pub fn release(&mut self) {
        if self.0.take().is_some() {
            compute::trim();
        }
    }

    /// Keeps a video, and releases the one before.
    pub fn put(&mut self, video: Video) {
        self.0 = Some(video);
    }
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
    use protocol::message::JobId;
    use protocol::plan::ImagePlan;

    fn request() -> JobRequest {
        JobRequest::new(JobId::new("job").unwrap(), "video.mp4", "a cat")
    }

    fn plan(content_id: &str) -> MediaPlan {
        let image = Some(ImagePlan::new(30, 10));
        MediaPlan { content_id: content_id.to_owned(), duration_s: 10.0, image, audio: None, notes: Vec::new() }
    }

    fn kept(key: Option<VideoKey>) -> Kept {
        let mut kept = Kept::default();
        let name = KeptVideo { video: "video.mp4".to_owned(), span: None, fps: 1.0 };
        kept.put(Video { key, name, plan: plan("a"), cache: VideoCache::default(), pictures: Pictures::default() });
        kept
    }

    #[test]
    fn the_same_content_looked_at_in_the_same_way_is_the_same_video_whatever_it_is_called_or_asked() {
        let kept = kept(VideoKey::new(&plan("a"), &request()));
        let mut other = JobRequest { query: "a dog".to_owned(), seed: 7, ..request() };
        other.video = "copy.mp4".to_owned();
        assert!(kept.find(VideoKey::new(&plan("a"), &other).as_ref()).is_some());
    }

    #[test]
    fn another_content_span_or_rate_is_another_video() {
        let kept = kept(VideoKey::new(&plan("a"), &request()));
        let spanned = JobRequest { span: Some([0.0, 10.0]), ..request() };
        let slower = JobRequest { fps: 0.5, ..request() };
        let longer = MediaPlan { image: Some(ImagePlan::new(30, 11)), ..plan("a") };
        for (plan, request) in [(plan("b"), request()), (plan("a"), spanned), (plan("a"), slower), (longer, request())]
        {
            assert!(kept.find(VideoKey::new(&plan, &request).as_ref()).is_none(), "{plan:?} {request:?}");
        }
    }

    #[test]
    fn contents_without_an_identity_are_never_the_same_video() {
        let nameless = VideoKey::new(&plan(""), &request());
        assert!(nameless.is_none() && kept(nameless.clone()).find(nameless.as_ref()).is_none());
    }

    #[test]
    fn only_a_failure_of_the_model_casts_doubt_on_the_video() {
        let failed = |kind| is_sound(&Err(Stop::Failed(JobError::new(kind, "it failed"))));
        assert!(is_sound(&Err(Stop::Cancelled)) && is_sound(&Err(Stop::Unavailable("away".to_owned()))));
        assert!(failed(ErrorKind::WorkerLost));
        assert!(!failed(ErrorKind::Model) && !failed(ErrorKind::Internal) && !failed(ErrorKind::OutOfMemory));
    }
}
