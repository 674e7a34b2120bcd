//! Result of examining a file, whatever its container.

use std::ops::Range;

use protocol::plan::{MediaInfo, SAMPLE_RATE};
use protocol::wire::VERSION;

use crate::pcm::Pcm;
use crate::picture::Orientation;
use crate::pipeline::Selection;
use crate::timeline::Pass;

/// Facts about a file, and its selected tracks with what decoding needs to arrive at the same facts.
#[derive(Clone, Debug)]
pub(crate) struct Examined {
    pub(crate) info: MediaInfo,
    pub(crate) video: Option<VideoTrack>,
    pub(crate) audio: Option<AudioTrack>,
}

impl Examined {
    /// Times and places that it keeps, by which it takes memory.
    pub(super) fn listed(&self) -> usize {
        let pictures = self.video.iter().flat_map(|video| &video.passes).map(|pass| pass.timeline.len());
        let chunks = self.audio.iter().filter_map(|audio| audio.pcm.as_ref()).map(|pcm| 2 * pcm.chunks.len());
        pictures.chain(chunks).sum()
    }
}

/// Selected video track.
#[derive(Clone, Debug)]
pub(crate) struct VideoTrack {
    pub(crate) selection: Selection,
    /// Tracks that follow it one after the other, each in a pass of its own (joined recordings).
    pub(crate) links: Vec<Selection>,
    /// Pictures that are shown, pass by pass.
    pub(crate) passes: Vec<Pass>,
    pub(crate) orientation: Orientation,
    /// Whether the container says that values take their full range; none where the demuxer tells, or nobody.
    pub(crate) full_range: Option<bool>,
}

/// Selected audio track.
#[derive(Clone, Debug)]
pub(crate) struct AudioTrack {
    pub(crate) selection: Selection,
    /// Tracks that follow it one after the other (the later links of a chained Ogg file, joined recordings).
    pub(crate) links: Vec<Selection>,
    /// Uncompressed sound that is read without GStreamer.
    pub(crate) pcm: Option<Pcm>,
    pub(crate) trim: Trim,
}

/// Decoded audio that is part of the track: what codec priming, padding and an edit list leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trim {
    /// Ticks to keep, in passes over the track, each in ascending order; of none all.
    pub(crate) passes: Vec<Vec<Range<u64>>>,
    /// Ticks to drop at the end of each pass; beyond the last one none.
    pub(crate) discard: Vec<u64>,
    /// Ticks per second; 0 if a tick is a sample.
    pub(crate) timescale: u64,
}

impl Trim {
    /// Keeps `keep` ticks after the first `skip`; all of them for none.
    pub(crate) fn after(skip: u64, keep: Option<u64>) -> Self {
        let end = keep.map_or(u64::MAX, |keep| skip.saturating_add(keep));
        Trim { passes: vec![vec![skip..end]], ..Trim::default() }
    }
}

/// Facts of a file without tracks, to be filled in.
pub(super) fn blank(container: &str, duration_s: f64) -> MediaInfo {
    MediaInfo {
        v: VERSION,
        duration_s,
        frames: 0,
        avg_fps: 0.0,
        width: 0,
        height: 0,
        rotation: 0,
        mirrored: false,
        has_audio: false,
        audio_samples: 0,
        container: container.to_owned(),
        codecs: Vec::new(),
        content_id: String::new(),
        notes: Vec::new(),
    }
}

/// Seconds by which pictures may come unevenly without a word.
const UNEVEN_S: f64 = 1.0;

/// Sentence about pictures that are shown so many seconds at most before or after their numbers say, by which they are picked all
/// the same (MODEL.md, "Decisions"); none where that is little, or where a clock jumps by more than the file lasts.
pub(super) fn uneven(off_s: f64, info: &MediaInfo) -> Option<String> {
    (off_s > UNEVEN_S && off_s < info.duration_s).then(|| {
        let (rate, off_s) = (info.avg_fps.max(10.0).round(), (off_s * 10.0).ceil() / 10.0);
        format!(
            "the rate of the pictures varies: times can be off by up to {off_s:.1} s (ffmpeg -i IN -vf fps={rate} OUT.mp4 evens it)"
        )
    })
}

/// Number of samples at 16 kHz in so many seconds.
pub(super) fn samples(seconds: f64) -> u64 {
    (seconds * SAMPLE_RATE as f64).round() as u64
}

/// Common name of a codec; the container's code where none is listed.
pub(super) fn codec_name(code: &str) -> String {
    let name = match code.trim_end_matches(['\0', ' ']) {
        "avc1" | "avc3" | "V_MPEG4/ISO/AVC" | "video/x-h264" => "h264",
        "hvc1" | "hev1" | "V_MPEGH/ISO/HEVC" | "video/x-h265" => "h265",
        "vp08" | "V_VP8" | "video/x-vp8" => "vp8",
        "vp09" | "V_VP9" | "video/x-vp9" => "vp9",
        "av01" | "V_AV1" | "video/x-av1" => "av1",
        "mp4a" | "A_AAC" => "aac",
        "Opus" | "A_OPUS" | "audio/x-opus" => "opus",
        ".mp3" | "A_MPEG/L3" => "mp3",
        "fLaC" | "A_FLAC" | "audio/x-flac" => "flac",
        "A_VORBIS" | "audio/x-vorbis" => "vorbis",
        "ac-3" | "A_AC3" | "audio/x-ac3" => "ac3",
        "ec-3" | "A_EAC3" | "audio/x-eac3" => "eac3",
        "audio/x-raw" | "A_PCM/INT/LIT" => "pcm",
        other => other,
    };
    name.to_owned()
}
