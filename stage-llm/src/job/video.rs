//! Video with its keys and values, and what it is known by.

use protocol::message::JobRequest;
use protocol::plan::MediaPlan;
use protocol::stage::KeptVideo;
use serde::{Deserialize, Serialize};

use crate::job::pictures::Pictures;
use crate::language::cache::VideoCache;

/// Identity of a video's keys and values: all that they depend on, besides the model and its formats, of which a
/// process has one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Video as the request by which it came names it.
    pub asked: KeptVideo,
    /// Plan of the video, all of it settled.
    pub plan: MediaPlan,
    /// Keys and values of every token.
    pub cache: VideoCache,
    /// What is known of its pictures.
    pub pictures: Pictures,
}

/// Video as a request names it.
pub fn asked(request: &JobRequest) -> KeptVideo {
    KeptVideo { video: request.video.clone(), span: request.span, fps: request.fps }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::message::JobId;
    use protocol::plan::ImagePlan;

    fn request() -> JobRequest {
        JobRequest::new(JobId::new("job").unwrap(), "video.mp4", "a cat")
    }

    fn plan(content_id: &str) -> MediaPlan {
        let image = Some(ImagePlan::new(30, 10));
        MediaPlan { content_id: content_id.to_owned(), duration_s: 10.0, image, audio: None, notes: Vec::new() }
    }

    #[test]
    fn the_same_content_looked_at_in_the_same_way_is_the_same_video_whatever_it_is_called_or_asked() {
        let mut other = JobRequest { query: "a dog".to_owned(), seed: 7, ..request() };
        other.video = "copy.mp4".to_owned();
        let key = VideoKey::new(&plan("a"), &request());
        assert!(key.is_some() && key == VideoKey::new(&plan("a"), &other));
    }

    #[test]
    fn another_content_span_or_rate_is_another_video() {
        let key = VideoKey::new(&plan("a"), &request());
        let spanned = JobRequest { span: Some([0.0, 10.0]), ..request() };
        let slower = JobRequest { fps: 0.5, ..request() };
        let longer = MediaPlan { image: Some(ImagePlan::new(30, 11)), ..plan("a") };
        for (plan, request) in [(plan("b"), request()), (plan("a"), spanned), (plan("a"), slower), (longer, request())]
        {
            assert_ne!(VideoKey::new(&plan, &request), key, "{plan:?} {request:?}");
        }
    }

    #[test]
    fn contents_without_an_identity_have_no_key() {
        assert_eq!(VideoKey::new(&plan(""), &request()), None);
    }
}
