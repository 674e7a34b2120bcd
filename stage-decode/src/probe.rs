//! What a file is, settled without decoding any of it.
//!
//! mp4 and Matroska are read by [`mp4`] and [`matroska`], which only touch the index; everything else goes through
//! GStreamer's demuxers and parsers in [`scan`]. Counts and rates are those of ffmpeg's `ffprobe -count_frames`.

mod bytes;
mod ebml;
mod matroska;
mod mp3;
mod mp4;
mod ogg;
mod scan;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use protocol::error::JobError;
use protocol::plan::{MediaInfo, SAMPLE_RATE};
use protocol::wire::VERSION;

use crate::failure;
use crate::identity;
use crate::picture::Turn;
use crate::pipeline::{Kind, Selection};
use crate::timeline::Timeline;
use bytes::Bytes;

/// A file's facts, and what decoding needs to know to arrive at the same ones.
#[derive(Clone, Debug)]
pub(crate) struct Examined {
    pub(crate) info: MediaInfo,
    pub(crate) picture: Option<PictureTrack>,
    pub(crate) sound: Option<SoundTrack>,
}

/// The picture track.
#[derive(Clone, Debug)]
pub(crate) struct PictureTrack {
    pub(crate) selection: Selection,
    pub(crate) timeline: Timeline,
    pub(crate) turn: Turn,
}

/// The sound track.
#[derive(Clone, Debug)]
pub(crate) struct SoundTrack {
    pub(crate) selection: Selection,
    pub(crate) trim: Trim,
}

/// What of the decoded sound is not part of it: codec priming, padding, and what an edit list cuts off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trim {
    /// Ticks to leave out at the start.
    pub(crate) skip: u64,
    /// Ticks to keep after that.
    pub(crate) keep: Option<u64>,
    /// Ticks to leave out at the end.
    pub(crate) discard: u64,
    /// Ticks a second; 0: ticks are samples.
    pub(crate) timescale: u64,
}

/// What a file is: exact counts, rates and identity, without decoding it (PROTOCOL.md, `MediaInfo`).
///
/// # Errors
/// `media_not_found` if it cannot be read, `unsupported_media` if it is empty, cut short or no medium at all.
pub fn probe(path: &Path) -> Result<MediaInfo, JobError> {
    examine(path, Duration::from_secs(30)).map(|e| e.info)
}

/// As [`probe`], with what decoding needs. `stall` bounds how long GStreamer may stand still.
pub(crate) fn examine(path: &Path, stall: Duration) -> Result<Examined, JobError> {
    let unreadable = |e: std::io::Error| failure::unreadable(path, &e);
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Bytes::new(&file).map_err(unreadable)?;
    if bytes.size() == 0 {
        return Err(failure::unsupported(path, "the file is empty"));
    }
    let content_id = identity::content_id(&file).map_err(unreadable)?;
    let head = bytes.array::<12>(0).unwrap_or_default();
    let mut examined = match &head[4..8] {
        b"ftyp" | b"moov" | b"mdat" | b"wide" | b"free" | b"skip" | b"pnot" => match mp4::Movie::read(&mut bytes) {
            Ok(Some(movie)) => from_movie(&movie, &head[4..] == b"ftypqt  "),
            Ok(None) => {
                return Err(failure::unsupported(
                    path,
                    "the index (moov) is missing: the recording or download was cut short",
                ));
            }
            Err(error) => return Err(failure::unsupported(path, &format!("the index (moov) is damaged: {error}"))),
        },
        _ => match matroska::Segment::read(&mut bytes) {
            Ok(Some(segment)) => from_segment(&segment),
            Ok(None) => scan::scan(path, &mut bytes, stall)?,
            Err(error) => return Err(failure::unsupported(path, &format!("the Matroska header is damaged: {error}"))),
        },
    };
    if examined.picture.is_none() && examined.sound.is_none() {
        return Err(failure::unsupported(path, "there is no picture or sound track in it"));
    }
    examined.info.content_id = content_id;
    Ok(examined)
}

/// Facts to be filled in: no picture, no sound.
fn blank(container: &str, duration_s: f64) -> MediaInfo {
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

/// 16 kHz samples of so many seconds.
fn samples(seconds: f64) -> u64 {
    (seconds * SAMPLE_RATE as f64).round() as u64
}

fn upright(turn: Turn, width: u32, height: u32) -> (u32, u32) {
    if matches!(turn, Turn::Left | Turn::Right) { (height, width) } else { (width, height) }
}

fn from_movie(movie: &mp4::Movie, quicktime: bool) -> Examined {
    let tracks = || movie.tracks.iter();
    let selection = |kind, track: &mp4::Track| {
        // GStreamer's name of an mp4 track is its number, in three digits at least.
        let name = Some(format!("{:03}", track.id));
        Selection { kind, track: name, unmarked: false, overlays: movie.overlays(track) }
    };
    // A still beside a film is a chapter's thumbnail.
    let still = |t: &mp4::Track| matches!(&t.codec, b"jpeg" | b"png ");
    let picture = tracks()
        .filter(|t| &t.handler == b"vide" && t.average_rate() > 0.0)
        .max_by_key(|t| (!still(t), t.enabled, u64::from(t.width) * u64::from(t.height), std::cmp::Reverse(t.id)));
    let sound = tracks()
        .filter(|t| &t.handler == b"soun" && t.average_rate() > 0.0)
        .max_by_key(|t| (t.enabled, t.channels, std::cmp::Reverse(t.id)));

    let mut info = blank(if quicktime { "mov" } else { "mp4" }, movie.duration_s());
    let picture = picture.map(|track| {
        let turn = Turn::from_degrees(track.rotation);
        let (frames, timeline) = track.pictures(movie.timescale);
        info.frames = frames;
        info.avg_fps = track.average_rate();
        (info.width, info.height) = upright(turn, track.width, track.height);
        info.rotation = track.rotation;
        info.codecs.push(codec_name(&String::from_utf8_lossy(&track.codec)));
        let selection = selection(Kind::Picture, track);
        PictureTrack { selection, timeline, turn }
    });
    let sound = sound.map(|track| {
        let (skip, keep) = track.shown_sound(movie.timescale);
        info.has_audio = true;
        info.audio_samples = samples(track.sound_s(movie.timescale));
        info.codecs.push(codec_name(&String::from_utf8_lossy(&track.codec)));
        let selection = selection(Kind::Sound, track);
        let trim = Trim { skip, keep, timescale: track.timescale.into(), ..Trim::default() };
        SoundTrack { selection, trim }
    });
    Examined { info, picture, sound }
}

fn from_segment(segment: &matroska::Segment) -> Examined {
    let of_kind = |kind| segment.tracks.iter().filter(move |t| t.kind == kind && t.blocks > 0);
    let picture = of_kind(matroska::PICTURE)
        .max_by_key(|t| (t.default, u64::from(t.width) * u64::from(t.height), std::cmp::Reverse(t.uid)));
    let sound = of_kind(matroska::SOUND).max_by_key(|t| (t.default, t.channels, std::cmp::Reverse(t.uid)));
    let selection = |kind, track: &matroska::Track| {
        // GStreamer's name of a Matroska track is its number and UID, in three digits at least.
        let name = format!("{:03}:{:03}", track.number, track.uid);
        Selection { kind, track: Some(name), unmarked: true, overlays: Vec::new() }
    };

    let mut info = blank(segment.container(), segment.duration_s());
    let picture = picture.map(|track| {
        info.frames = track.blocks;
        info.avg_fps = segment.average_rate(track);
        (info.width, info.height) = (track.width, track.height);
        info.codecs.push(codec_name(&track.codec));
        PictureTrack { selection: selection(Kind::Picture, track), timeline: segment.timeline(track), turn: Turn::None }
    });
    let sound = sound.map(|track| {
        info.has_audio = true;
        info.audio_samples = samples(segment.sound_s(track));
        info.codecs.push(codec_name(&track.codec));
        let trim =
            Trim { skip: track.delay_ns, discard: track.discard_ns, timescale: 1_000_000_000, ..Trim::default() };
        SoundTrack { selection: selection(Kind::Sound, track), trim }
    });
    Examined { info, picture, sound }
}

/// A codec by its everyday name; what is not listed keeps the container's.
fn codec_name(code: &str) -> String {
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
