//! Result of examining a file, whatever its container.

use protocol::plan::{MediaInfo, SAMPLE_RATE};
use protocol::wire::VERSION;

use crate::picture::Turn;
use crate::pipeline::Selection;
use crate::timeline::Timeline;

/// Facts about a file, and its selected tracks with what decoding needs to arrive at the same facts.
#[derive(Clone, Debug)]
pub(crate) struct Examined {
    pub(crate) info: MediaInfo,
    pub(crate) video: Option<VideoTrack>,
    pub(crate) audio: Option<AudioTrack>,
}

/// Selected video track.
#[derive(Clone, Debug)]
pub(crate) struct VideoTrack {
    pub(crate) selection: Selection,
    pub(crate) timeline: Timeline,
    pub(crate) turn: Turn,
}

/// Selected audio track.
#[derive(Clone, Debug)]
pub(crate) struct AudioTrack {
    pub(crate) selection: Selection,
    pub(crate) trim: Trim,
}

/// Decoded audio that is not part of the track: codec priming, padding, and what an edit list cuts off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trim {
    /// Ticks to drop at the start.
    pub(crate) skip: u64,
    /// Ticks to keep after those; none for all.
    pub(crate) keep: Option<u64>,
    /// Ticks to drop at the end.
    pub(crate) discard: u64,
    /// Ticks per second; 0 if a tick is a sample.
    pub(crate) timescale: u64,
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
        has_audio: false,
        audio_samples: 0,
        container: container.to_owned(),
        codecs: Vec::new(),
        content_id: String::new(),
    }
}

/// Number of samples at 16 kHz in so many seconds.
pub(super) fn samples(seconds: f64) -> u64 {
    (seconds * SAMPLE_RATE as f64).round() as u64
}

/// Width and height once the picture is turned upright.
pub(super) fn upright(turn: Turn, width: u32, height: u32) -> (u32, u32) {
    if matches!(turn, Turn::Left | Turn::Right) { (height, width) } else { (width, height) }
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
        "audio/x-raw" | "A_PCM/INT/LIT" | "sowt" | "twos" => "pcm",
        other => other,
    };
    name.to_owned()
}
