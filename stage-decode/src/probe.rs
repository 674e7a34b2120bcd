//! Probe of a media file: exact counts, rates and identity, without decoding.
//!
//! [`mp4`] and [`matroska`] read only the index of their containers; [`scan`] runs any other file through GStreamer's
//! demuxer and parsers. Counts and rates are those of ffmpeg's `ffprobe -count_frames`. In reading order: [`bytes`]
//! (reads by position), [`examined`] (the result), [`known`] (files that were examined lately), [`h264`] (which packets are fields), [`reference`](mod@reference) (files that name media elsewhere),
//! [`still`] (pictures that are no film), [`choice`] (which track is used), [`mp4`], [`ebml`] and [`matroska`], [`mp3`] and
//! [`ogg`] (what an encoder padded), [`asf`], [`avi`], [`ps`] and [`wav`] (a cut end), [`flv`] (times that jump), [`ts`] (sounds without a word), [`scan`].
//!
//! Where it is not as in ffmpeg 5.1: of a chained Ogg with picture and sound ffmpeg reads the first link alone, here every one is
//! read, and of joined recordings in Opus each one's own delay is left out, where ffmpeg leaves the first one's out. A part of an
//! edit list that begins with the very first packet of an AAC track, after others, differs in that packet: ffmpeg's decoder adds what it
//! kept of the part before, which is of another moment; here it sounds as ffmpeg has the part alone. Of AV1 with an edit list ffmpeg 5.1 shows what the list
//! leaves out where dav1d decodes it, and not where libaom does. Fields of MPEG-2 and VC-1 in packets of their own are joined by
//! GStreamer's parsers or not at all; no encoder makes any to try. Of a transport stream that is cut at its start what comes before
//! its first tables is not read. Of a data packet
//! of Windows Media that holds a single payload, and is cut, nothing is read. Of an MP2 packet that is cut ffmpeg's decoder of whole numbers makes
//! another noise at times than the one of floating point. Before a further part of an edit list ffmpeg
//! plays one packet of AC-3 in place of another (35 ms): `parse_packet` in libavformat gives each the mark of the one after it.
//! How long a file lasts is what its packets span where ffprobe says something else: of a sound in Ogg that begins late it says where
//! it ends, of AVI and Windows Media what the header says, of FLV that is cut too, of a transport stream it guesses the length of the last
//! packet, of a bare sound all of it by the bit rate, of a program stream that is cut it leaves out a last picture without a time, and
//! of an MP3 it believes a header that may be another sound's.

mod asf;
mod avi;
mod bytes;
mod choice;
mod ebml;
mod examined;
mod flv;
mod h264;
mod known;
mod matroska;
mod mp3;
mod mp4;
mod ogg;
mod ps;
mod reference;
mod scan;
mod still;
mod ts;
mod wav;

use std::sync::Arc;

use protocol::stage::Stop;

use crate::failure;
use crate::identity;
use crate::media_file::MediaFile;
use crate::pipeline::{Kind, Limits, Selection};
use crate::timeline::{Pass, Timeline};
use bytes::Bytes;
use choice::{Candidate, Choice};
pub(crate) use examined::{AudioTrack, Examined, Trim, VideoTrack};
use examined::{blank, codec_name, samples, uneven};
pub(crate) use known::Known;

/// Facts of a media file, exact counts, rates and identity (PROTOCOL.md, `MediaInfo`), and the tracks to decode; of a file
/// that is known already what was found then.
///
/// # Errors
/// `media_not_found` if the file cannot be read; `unsupported_media` if it is empty, truncated, no media file, names media
/// elsewhere or exceeds a limit; `Cancelled` once `cancelled` says so.
pub(crate) fn examine(
    media: &MediaFile,
    limits: Limits,
    known: &Known,
    cancelled: &dyn Fn() -> bool,
) -> Result<Arc<Examined>, Stop> {
    let path = media.path();
    let unreadable = |e: std::io::Error| failure::unreadable(path, &e);
    if media.reading().size() == 0 {
        return Err(failure::unsupported(path, "the file is empty").into());
    }
    let content_id = identity::content_id(media).map_err(unreadable)?;
    if let Some(examined) = known.get(media, &content_id) {
        return Ok(examined);
    }
    let mut examined = read_through(media, limits, cancelled)?;
    examined.info.content_id.clone_from(&content_id);
    let examined = Arc::new(examined);
    known.keep(media, &content_id, &examined);
    Ok(examined)
}

/// Facts and tracks of a file that is not known yet, but for its identity.
fn read_through(media: &MediaFile, limits: Limits, cancelled: &dyn Fn() -> bool) -> Result<Examined, Stop> {
    let path = media.path();
    let unreadable = |e: std::io::Error| failure::unreadable(path, &e);
    let mut bytes = Bytes::new(media, cancelled).map_err(unreadable)?;
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
            Ok(Some((first, later))) => from_recordings(&first, &later, bytes.size(), &mut choice)?,
            Ok(None) => scan::scan(media, &mut bytes, &mut choice, cancelled)?,
            Err(error) => return Err(unsupported(&format!("the Matroska header is not usable: {error}"))),
        },
    };
    examined.info.notes.append(&mut choice.notes);
    if let Some([pass]) = examined.video.as_ref().map(|video| &video.passes[..]) {
        examined.info.notes.extend(uneven(pass.timeline.unevenness_s(), &examined.info));
    }
    if examined.video.is_none() && examined.audio.is_none() {
        let notes = &examined.info.notes;
        return Err(match &notes[..] {
            [] => unsupported("it has no video or audio track"),
            notes => unsupported(&notes.join("; ")),
        });
    }
    limits.check(path, [examined.info.width, examined.info.height])?;
    Ok(examined)
}

/// Facts and tracks of an mp4 or mov file.
fn from_movie<'m>(movie: &'m mp4::Movie, quicktime: bool, choice: &mut Choice<'_>) -> Result<Examined, Stop> {
    let chapters = movie.chapters();
    let select = |kind| {
        move |track: &'m mp4::Track| {
            // GStreamer's name of an mp4 track is its number, in three digits at least.
            let name = Some(format!("{:03}", track.id));
            Selection {
                kind,
                track: name,
                is_later: false,
                unmarked: false,
                overlays: movie.overlays(track),
                part: None,
                cut: track.cut_sample(),
                leaves_last: false,
            }
        }
    };
    let candidates = |handler: &[u8; 4]| -> Vec<Candidate<'m, mp4::Track>> {
        let films = movie.tracks.iter().filter(|t| &t.handler == handler && t.average_rate() > 0.0);
        let candidate = |track: &'m mp4::Track| {
            let is_pcm = track.pcm.is_some();
            let codec = if is_pcm { "pcm".to_owned() } else { codec_name(&String::from_utf8_lossy(&track.codec)) };
            Candidate { track, number: Some(track.id.into()), codec, excess: track.excess_of_edits(movie.timescale) }
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
    let film = choice.first(films, &select(Kind::Video))?;
    let [gives_last, is_given] =
        film.as_ref().map_or(Ok([true; 2]), |(_, selection)| choice.gives_cut_sample(selection))?;
    let video = film.map(|(Candidate { track, codec, .. }, mut selection)| {
        selection.leaves_last = is_given && !gives_last;
        let passes = track.pictures(movie.timescale, gives_last);
        info.frames = passes.iter().map(|pass| pass.frames).sum();
        info.avg_fps = track.average_rate();
        let orientation = track.orientation;
        (info.width, info.height) = orientation.shown(track.width, track.height);
        (info.rotation, info.mirrored) = (orientation.turn.degrees(), orientation.mirrored);
        info.codecs.push(codec);
        VideoTrack { selection, links: Vec::new(), passes, orientation, full_range: track.full_range }
    });
    let audio = choice.first(sounds, &select(Kind::Audio))?.map(|(Candidate { track, codec, .. }, selection)| {
        info.has_audio = true;
        info.audio_samples = samples(track.audio_s(movie.timescale));
        info.codecs.push(codec);
        let passes = track.heard(movie.timescale);
        let trim = Trim { passes, timescale: track.timescale.into(), ..Trim::default() };
        AudioTrack { selection, links: Vec::new(), pcm: track.pcm.clone(), trim }
    });
    Ok(Examined { info, video, audio })
}

/// Facts and tracks of a Matroska or WebM file: those of its first recording, and what the later ones have of the same.
fn from_recordings(
    first: &matroska::Segment,
    later: &[matroska::Segment],
    size: u64,
    choice: &mut Choice<'_>,
) -> Result<Examined, Stop> {
    let select = |segment: &matroska::Segment, kind, track: &matroska::Track| of_recording(segment, size, kind, track);
    let candidates = |number: u64| -> Vec<Candidate<'_, matroska::Track>> {
        let candidate = |track| matroska_candidate(track);
        first.tracks.iter().filter(|t| t.kind == number && t.blocks > 0).map(candidate).collect()
    };
    let area = |t: &matroska::Track| u64::from(t.width) * u64::from(t.height);
    let mut films = candidates(matroska::VIDEO);
    films.sort_by_key(|c| std::cmp::Reverse((c.track.default, area(c.track), std::cmp::Reverse(c.track.uid))));
    let mut sounds = candidates(matroska::AUDIO);
    sounds.sort_by_key(|c| std::cmp::Reverse((c.track.default, c.track.channels, std::cmp::Reverse(c.track.uid))));

    let mut info = blank(first.container(), first.duration_s());
    let film = choice.first(films, &|track| select(first, Kind::Video, track))?;
    let sound = choice.first(sounds, &|track| select(first, Kind::Audio, track))?;
    let chosen: Vec<&matroska::Track> = [&film, &sound].into_iter().flatten().map(|(chosen, _)| chosen.track).collect();
    let goes_on = |segment: &&matroska::Segment| chosen.iter().any(|track| segment.same(track).is_some());
    info.duration_s += later.iter().filter(goes_on).map(matroska::Segment::duration_s).sum::<f64>();
    let video = film.map(|(chosen, selection)| {
        let track = chosen.track;
        let same = later.iter().filter_map(|segment| Some((segment, segment.same(track)?)));
        let all: Vec<_> = std::iter::once((first, track)).chain(same).collect();
        let links = all[1..].iter().map(|(segment, track)| select(segment, Kind::Video, track)).collect();
        // GStreamer 1.22 gives packets of ProRes without their times, and its decoder invents some: none is reordered, so they are
        // told by their order.
        let is_timed = track.codec != "V_PRORES";
        let pass = |(segment, track): &(&matroska::Segment, &matroska::Track)| Pass {
            frames: track.blocks,
            timeline: if is_timed { segment.timeline(track) } else { Timeline::default() },
        };
        let passes: Vec<Pass> = all.iter().map(pass).collect();
        info.frames = passes.iter().map(|pass| pass.frames).sum();
        let seconds = |(segment, track): &(&matroska::Segment, &matroska::Track)| {
            track.blocks as f64 / segment.average_rate(track).max(f64::MIN_POSITIVE)
        };
        info.avg_fps = match &all[..] {
            [(segment, track)] => segment.average_rate(track),
            all => info.frames as f64 / all.iter().map(seconds).sum::<f64>(),
        };
        if !is_timed && all.len() == 1 {
            info.notes.extend(uneven(first.timeline(track).unevenness_s(), &info));
        }
        let orientation = track.orientation;
        (info.width, info.height) = orientation.shown(track.width, track.height);
        (info.rotation, info.mirrored) = (orientation.turn.degrees(), orientation.mirrored);
        info.codecs.push(chosen.codec);
        VideoTrack { selection, links, passes, orientation, full_range: None }
    });
    let audio = sound.map(|(chosen, selection)| {
        let same = later.iter().filter_map(|segment| Some((segment, segment.same(chosen.track)?)));
        let all: Vec<_> = std::iter::once((first, chosen.track)).chain(same).collect();
        let links = all[1..].iter().map(|(segment, track)| select(segment, Kind::Audio, track)).collect();
        info.has_audio = true;
        info.audio_samples = samples(all.iter().map(|(segment, track)| segment.audio_s(track)).sum());
        info.codecs.push(chosen.codec);
        let trim = Trim {
            passes: all.iter().map(|(_, track)| std::iter::once(track.delay_ns..u64::MAX).collect()).collect(),
            discard: all.iter().map(|(_, track)| track.discard_ns).collect(),
            timescale: 1_000_000_000,
        };
        AudioTrack { selection, links, pcm: None, trim }
    });
    let is_whole = later.iter().all(|segment| chosen.iter().all(|track| segment.same(track).is_some()));
    if later.last().unwrap_or(first).part.end < size || !is_whole {
        let text = "of the recordings that follow each other in the file some have other tracks or cannot be read, and are left \
                    out: ffmpeg -f concat joins recordings";
        info.notes.push(text.to_owned());
    }
    Ok(Examined { info, video, audio })
}

/// How a track of a recording in a file of that size is selected.
fn of_recording(segment: &matroska::Segment, size: u64, kind: Kind, track: &matroska::Track) -> Selection {
    // GStreamer's name of a Matroska track is its number and UID, in three digits at least.
    let track = Some(format!("{:03}:{:03}", track.number, track.uid));
    let part = if segment.part != (0..size) { Some(segment.part.clone()) } else { None };
    let overlays = Vec::new();
    Selection { kind, track, is_later: false, unmarked: true, overlays, part, cut: None, leaves_last: false }
}

/// A track of a Matroska file that might be used.
fn matroska_candidate(track: &matroska::Track) -> Candidate<'_, matroska::Track> {
    Candidate { track, number: Some(track.number), codec: codec_name(&track.codec), excess: None }
}
