//! Probe of a media file: exact counts, rates and identity, without decoding.
//!
//! [`mp4`] and [`matroska`] read only the index of their containers; [`scan`] runs any other file through GStreamer's
//! demuxer and parsers. Counts and rates are those of ffmpeg's `ffprobe -count_frames`. In reading order: [`bytes`]
//! (reads by position), [`examined`] (the result), [`reference`](mod@reference) (files that name media elsewhere), [`mp4`],
//! [`ebml`] and [`matroska`], [`mp3`] and [`ogg`] (what an encoder padded), [`scan`].

mod bytes;
mod ebml;
mod examined;
mod matroska;
mod mp3;
mod mp4;
mod ogg;
mod reference;
mod scan;

use protocol::stage::Stop;

use crate::failure;
use crate::identity;
use crate::media_file::MediaFile;
use crate::picture::Turn;
use crate::pipeline::{Kind, Limits, Selection};
use bytes::Bytes;
pub(crate) use examined::{AudioTrack, Examined, Trim, VideoTrack};
use examined::{blank, codec_name, samples, upright};

/// Facts of a media file, exact counts, rates and identity (PROTOCOL.md, `MediaInfo`), and the tracks to decode.
///
/// # Errors
/// `media_not_found` if the file cannot be read; `unsupported_media` if it is empty, truncated, no media file, names media
/// elsewhere or exceeds a limit; `Cancelled` once `cancelled` says so.
pub(crate) fn examine(media: &MediaFile, limits: Limits, cancelled: &dyn Fn() -> bool) -> Result<Examined, Stop> {
    let path = media.path();
    let unreadable = |e: std::io::Error| failure::unreadable(path, &e);
    let mut bytes = Bytes::new(media.file(), cancelled).map_err(unreadable)?;
    if bytes.size() == 0 {
        return Err(failure::unsupported(path, "the file is empty").into());
    }
    let content_id = identity::content_id(media.file()).map_err(unreadable)?;
    let mut start = vec![0; bytes.size().min(reference::HEAD_BYTES as u64) as usize];
    bytes.read(0, &mut start).map_err(unreadable)?;
    if let Some(what) = reference::kind(&start) {
        return Err(failure::reference(path, what).into());
    }
    let head = bytes.array::<12>(0).unwrap_or_default();
    let unsupported = |what: &str| match cancelled() {
        true => Stop::Cancelled,
        false => failure::unsupported(path, what).into(),
    };
    let mut examined = match &head[4..8] {
        b"ftyp" | b"moov" | b"mdat" | b"wide" | b"free" | b"skip" | b"pnot" => match mp4::Movie::read(&mut bytes) {
            Ok(Some(movie)) => from_movie(&movie, &head[4..] == b"ftypqt  "),
            Ok(None) => {
                return Err(unsupported("the index (moov) is missing: the recording or download is truncated"));
            }
            Err(error) => return Err(unsupported(&format!("the index (moov) is not usable: {error}"))),
        },
        _ => match matroska::Segment::read(&mut bytes) {
            Ok(Some(segment)) => from_segment(&segment),
            Ok(None) => scan::scan(media, &mut bytes, limits, cancelled)?,
            Err(error) => return Err(unsupported(&format!("the Matroska header is not usable: {error}"))),
        },
    };
    if examined.video.is_none() && examined.audio.is_none() {
        return Err(unsupported("it has no video or audio track"));
    }
    limits.check(path, [examined.info.width, examined.info.height])?;
    examined.info.content_id = content_id;
    Ok(examined)
}

/// Facts and tracks of an mp4 or mov file.
fn from_movie(movie: &mp4::Movie, quicktime: bool) -> Examined {
    let tracks = || movie.tracks.iter();
    let selection = |kind, track: &mp4::Track| {
        // GStreamer's name of an mp4 track is its number, in three digits at least.
        let name = Some(format!("{:03}", track.id));
        Selection { kind, track: name, unmarked: false, overlays: movie.overlays(track) }
    };
    // A still picture beside a video is a chapter's thumbnail.
    let still = |t: &mp4::Track| matches!(&t.codec, b"jpeg" | b"png ");
    let video = tracks()
        .filter(|t| &t.handler == b"vide" && t.average_rate() > 0.0)
        .max_by_key(|t| (!still(t), t.enabled, u64::from(t.width) * u64::from(t.height), std::cmp::Reverse(t.id)));
    let audio = tracks()
        .filter(|t| &t.handler == b"soun" && t.average_rate() > 0.0)
        .max_by_key(|t| (t.enabled, t.channels, std::cmp::Reverse(t.id)));

    let mut info = blank(if quicktime { "mov" } else { "mp4" }, movie.duration_s());
    let video = video.map(|track| {
        let turn = Turn::from_degrees(track.rotation);
        let (frames, timeline) = track.pictures(movie.timescale);
        info.frames = frames;
        info.avg_fps = track.average_rate();
        (info.width, info.height) = upright(turn, track.width, track.height);
        info.rotation = track.rotation;
        info.codecs.push(codec_name(&String::from_utf8_lossy(&track.codec)));
        let selection = selection(Kind::Video, track);
        VideoTrack { selection, timeline, turn }
    });
    let audio = audio.map(|track| {
        let (skip, keep) = track.shown_audio(movie.timescale);
        info.has_audio = true;
        info.audio_samples = samples(track.audio_s(movie.timescale));
        info.codecs.push(codec_name(&String::from_utf8_lossy(&track.codec)));
        let selection = selection(Kind::Audio, track);
        let trim = Trim { skip, keep, timescale: track.timescale.into(), ..Trim::default() };
        AudioTrack { selection, trim }
    });
    Examined { info, video, audio }
}

/// Facts and tracks of a Matroska or WebM file.
fn from_segment(segment: &matroska::Segment) -> Examined {
    let of_kind = |kind| segment.tracks.iter().filter(move |t| t.kind == kind && t.blocks > 0);
    let video = of_kind(matroska::VIDEO)
        .max_by_key(|t| (t.default, u64::from(t.width) * u64::from(t.height), std::cmp::Reverse(t.uid)));
    let audio = of_kind(matroska::AUDIO).max_by_key(|t| (t.default, t.channels, std::cmp::Reverse(t.uid)));
    let selection = |kind, track: &matroska::Track| {
        // GStreamer's name of a Matroska track is its number and UID, in three digits at least.
        let name = format!("{:03}:{:03}", track.number, track.uid);
        Selection { kind, track: Some(name), unmarked: true, overlays: Vec::new() }
    };

    let mut info = blank(segment.container(), segment.duration_s());
    let video = video.map(|track| {
        info.frames = track.blocks;
        info.avg_fps = segment.average_rate(track);
        (info.width, info.height) = (track.width, track.height);
        info.codecs.push(codec_name(&track.codec));
        VideoTrack { selection: selection(Kind::Video, track), timeline: segment.timeline(track), turn: Turn::None }
    });
    let audio = audio.map(|track| {
        info.has_audio = true;
        info.audio_samples = samples(segment.audio_s(track));
        info.codecs.push(codec_name(&track.codec));
        let trim =
            Trim { skip: track.delay_ns, discard: track.discard_ns, timescale: 1_000_000_000, ..Trim::default() };
        AudioTrack { selection: selection(Kind::Audio, track), trim }
    });
    Examined { info, video, audio }
}
