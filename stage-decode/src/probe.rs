//! Probe of a media file: exact counts, rates and identity, without decoding.
//!
//! [`mp4`] and [`matroska`] read only the index of their containers; [`scan`] runs any other file through GStreamer's
//! demuxer and parsers. Counts and rates are those of ffmpeg's `ffprobe -count_frames`. In reading order: [`bytes`]
//! (reads by position), [`examined`] (the result), [`reference`](mod@reference) (files that name media elsewhere),
//! [`still`] (pictures that are no film), [`choice`] (which track is used), [`mp4`], [`ebml`] and [`matroska`], [`mp3`] and
//! [`ogg`] (what an encoder padded), [`scan`].

mod bytes;
mod choice;
mod ebml;
mod examined;
mod matroska;
mod mp3;
mod mp4;
mod ogg;
mod reference;
mod scan;
mod still;

use protocol::stage::Stop;

use crate::failure;
use crate::identity;
use crate::media_file::MediaFile;
use crate::pipeline::{Kind, Limits, Selection};
use crate::timeline::Pass;
use bytes::Bytes;
use choice::{Candidate, Choice};
pub(crate) use examined::{AudioTrack, Examined, Trim, VideoTrack};
use examined::{blank, codec_name, samples};

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
    if let Some(what) = still::kind(&start) {
        return Err(failure::still(path, what).into());
    }
    let head = bytes.array::<12>(0).unwrap_or_default();
    let mut choice = Choice::new(media, limits, cancelled);
    let unsupported = |what: &str| match cancelled() {
        true => Stop::Cancelled,
        false => failure::unsupported(path, what).into(),
    };
    let mut examined = match &head[4..8] {
        b"ftyp" | b"moov" | b"mdat" | b"wide" | b"free" | b"skip" | b"pnot" => match mp4::Movie::read(&mut bytes) {
            Ok(Some(movie)) => from_movie(&movie, &head[4..] == b"ftypqt  ", &mut choice)?,
            Ok(None) => {
                return Err(unsupported("the index (moov) is missing: the recording or download is truncated"));
            }
            Err(error) => return Err(unsupported(&format!("the index (moov) is not usable: {error}"))),
        },
        _ => match matroska::Segment::read(&mut bytes) {
            Ok(Some(segment)) => from_segment(&segment, &mut choice)?,
            Ok(None) => scan::scan(media, &mut bytes, limits, cancelled)?,
            Err(error) => return Err(unsupported(&format!("the Matroska header is not usable: {error}"))),
        },
    };
    examined.info.notes.append(&mut choice.notes);
    if examined.video.is_none() && examined.audio.is_none() {
        let notes = &examined.info.notes;
        return Err(match &notes[..] {
            [] => unsupported("it has no video or audio track"),
            notes => unsupported(&notes.join("; ")),
        });
    }
    limits.check(path, [examined.info.width, examined.info.height])?;
    examined.info.content_id = content_id;
    Ok(examined)
}

/// Facts and tracks of an mp4 or mov file.
fn from_movie<'m>(movie: &'m mp4::Movie, quicktime: bool, choice: &mut Choice<'_>) -> Result<Examined, Stop> {
    let chapters = movie.chapters();
    let select = |kind| {
        move |track: &'m mp4::Track| {
            // GStreamer's name of an mp4 track is its number, in three digits at least.
            let name = Some(format!("{:03}", track.id));
            Selection { kind, track: name, is_later: false, unmarked: false, overlays: movie.overlays(track) }
        }
    };
    let candidates = |handler: &[u8; 4]| -> Vec<Candidate<'m, mp4::Track>> {
        let films = movie.tracks.iter().filter(|t| &t.handler == handler && t.average_rate() > 0.0);
        let candidate = |track: &'m mp4::Track| {
            let is_pcm = track.pcm.is_some() && !movie.fragmented;
            let codec = if is_pcm { "pcm".to_owned() } else { codec_name(&String::from_utf8_lossy(&track.codec)) };
            Candidate { track, number: track.id.into(), codec, excess: track.excess_of_edits(movie.timescale) }
        };
        films.filter(|t| !chapters.contains(&t.id)).map(candidate).collect()
    };
    // A still picture beside a video is a thumbnail.
    let still = |t: &mp4::Track| matches!(&t.codec, b"jpeg" | b"png ");
    let area = |t: &mp4::Track| u64::from(t.width) * u64::from(t.height);
    let mut films = candidates(b"vide");
    films.sort_by_key(|c| {
        std::cmp::Reverse((!still(c.track), c.track.enabled, area(c.track), std::cmp::Reverse(c.number)))
    });
    let mut sounds = candidates(b"soun");
    sounds.sort_by_key(|c| std::cmp::Reverse((c.track.enabled, c.track.channels, std::cmp::Reverse(c.number))));

    let mut info = blank(if quicktime { "mov" } else { "mp4" }, movie.duration_s());
    let video = choice.first(films, &select(Kind::Video))?.map(|(Candidate { track, codec, .. }, selection)| {
        let passes = track.pictures(movie.timescale);
        info.frames = passes.iter().map(|pass| pass.frames).sum();
        info.avg_fps = track.average_rate();
        let orientation = track.orientation;
        (info.width, info.height) = orientation.shown(track.width, track.height);
        (info.rotation, info.mirrored) = (orientation.turn.degrees(), orientation.mirrored);
        info.codecs.push(codec);
        VideoTrack { selection, passes, orientation }
    });
    let audio = choice.first(sounds, &select(Kind::Audio))?.map(|(Candidate { track, codec, .. }, selection)| {
        info.has_audio = true;
        info.audio_samples = samples(track.audio_s(movie.timescale));
        info.codecs.push(codec);
        let passes = track.heard(movie.timescale);
        let trim = Trim { passes, timescale: track.timescale.into(), ..Trim::default() };
        let pcm = track.pcm.clone().filter(|_| !movie.fragmented);
        AudioTrack { selection, links: Vec::new(), pcm, trim }
    });
    Ok(Examined { info, video, audio })
}

/// Facts and tracks of a Matroska or WebM file.
fn from_segment<'s>(segment: &'s matroska::Segment, choice: &mut Choice<'_>) -> Result<Examined, Stop> {
    let select = |kind| {
        move |track: &'s matroska::Track| {
            // GStreamer's name of a Matroska track is its number and UID, in three digits at least.
            let name = format!("{:03}:{:03}", track.number, track.uid);
            Selection { kind, track: Some(name), is_later: false, unmarked: true, overlays: Vec::new() }
        }
    };
    let candidates = |number: u64| -> Vec<Candidate<'s, matroska::Track>> {
        let candidate = |track: &'s matroska::Track| Candidate {
            track,
            number: track.number,
            codec: codec_name(&track.codec),
            excess: None,
        };
        segment.tracks.iter().filter(|t| t.kind == number && t.blocks > 0).map(candidate).collect()
    };
    let area = |t: &matroska::Track| u64::from(t.width) * u64::from(t.height);
    let mut films = candidates(matroska::VIDEO);
    films.sort_by_key(|c| std::cmp::Reverse((c.track.default, area(c.track), std::cmp::Reverse(c.track.uid))));
    let mut sounds = candidates(matroska::AUDIO);
    sounds.sort_by_key(|c| std::cmp::Reverse((c.track.default, c.track.channels, std::cmp::Reverse(c.track.uid))));

    let mut info = blank(segment.container(), segment.duration_s());
    let video = choice.first(films, &select(Kind::Video))?.map(|(Candidate { track, codec, .. }, selection)| {
        info.frames = track.blocks;
        info.avg_fps = segment.average_rate(track);
        let orientation = track.orientation;
        (info.width, info.height) = orientation.shown(track.width, track.height);
        (info.rotation, info.mirrored) = (orientation.turn.degrees(), orientation.mirrored);
        info.codecs.push(codec);
        let pass = Pass { frames: track.blocks, timeline: segment.timeline(track) };
        VideoTrack { selection, passes: vec![pass], orientation }
    });
    if let Some(at) = segment.next {
        let text = format!("another recording begins at byte {at}, which is not read: ffmpeg -f concat joins both");
        info.notes.push(text);
    }
    let audio = choice.first(sounds, &select(Kind::Audio))?.map(|(Candidate { track, codec, .. }, selection)| {
        info.has_audio = true;
        info.audio_samples = samples(segment.audio_s(track));
        info.codecs.push(codec);
        let trim = Trim { discard: track.discard_ns, timescale: 1_000_000_000, ..Trim::after(track.delay_ns, None) };
        AudioTrack { selection, links: Vec::new(), pcm: None, trim }
    });
    Ok(Examined { info, video, audio })
}
