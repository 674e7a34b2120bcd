//! Scan of any other container: GStreamer demuxes and parses the whole file, and the packets of each track are counted
//! ([`counted`]); the end of the file may be cut ([`ending`]); of a transport stream the times that its packets state are read besides ([`clock`]); by both it is told how long
//! the file lasts ([`length`]), and by the codec what of a sound is kept ([`trim`]).

mod clock;
mod counted;
mod ending;
mod length;
mod trim;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gst::prelude::*;
use gstreamer as gst;
use protocol::plan::MediaInfo;
use protocol::stage::Stop;

use super::bytes::Bytes;
use super::choice::{Candidate, Choice};
use super::examined::{AudioTrack, Examined, VideoTrack, blank, samples, uneven};
use super::flv;
use crate::crew::Progress;
use crate::failure::{self, Missing};
use crate::media_file::MediaFile;
use crate::picture::Orientation;
use crate::pipeline::{self, Kind, MediaSource, Refusal, Running, Selection, Told, lock};
use crate::timeline::Pass;
use clock::StatedClock;
use counted::{Counted, watch};
use ending::Ending;
use length::length_s;
use trim::trim;

/// Times its size that a file is read at most, besides what demuxers look up at both ends: one that goes on reads in circles.
const MAX_TIMES: u64 = 4;
/// Bytes that are read at most besides.
const SEEKS_BYTES: u64 = 256 << 20;

/// Longest time without progress after a track was found to have nothing: then the others have come, if there are any.
const NOTHING_MORE: Duration = Duration::from_secs(4);

/// Tracks whose last packets are kept at most.
const MAX_ASKED: usize = 8;

/// Why AAC in LATM packets is not read.
const LATM: &str = "it is AAC in LATM packets, of which GStreamer's parser loses some";

type Tracks = Arc<Mutex<Vec<Arc<Mutex<Counted>>>>>;

/// What a scan found besides its tracks.
struct Scanned {
    /// GStreamer's word for the duration; 0 for none.
    duration_s: f64,
    container: Option<String>,
    ending: Ending,
    /// Tracks, or a whole file, that no plugin reads.
    missing: Vec<Missing>,
    clock: StatedClock,
}

/// Facts and tracks of a file, from a count of the packets of every track.
pub(super) fn scan(
    media: &MediaFile,
    bytes: &mut Bytes<'_>,
    choice: &mut Choice<'_>,
    cancelled: &dyn Fn() -> bool,
) -> Result<Examined, Stop> {
    pipeline::init()?;
    let running = Running(gst::Pipeline::new());
    let refusal = Refusal::default();
    let stop = |error: io::Error| match cancelled() {
        true => Stop::Cancelled,
        false => Stop::Failed(failure::unreadable(media.path(), &error)),
    };
    if is_latm(bytes) {
        return Err(failure::unsupported(media.path(), LATM).into());
    }
    let ending = Ending::read(bytes).map_err(stop)?;
    let source = MediaSource::new(media, ending.overlays.clone(), None);
    let parse = pipeline::parser(media, &refusal, &Told::default(), None)?;
    let clock = StatedClock::default();
    clock.follow(&running.0, &parse);
    let built = running.0.add_many([source.upcast_ref(), &parse]).and_then(|()| source.link(&parse));
    built.map_err(|_| failure::no_element("parsebin"))?;
    let tracks = Tracks::default();
    let is_ogg = bytes.array::<4>(0).is_ok_and(|start| &start == b"OggS");
    parse.connect_pad_added({
        let (pipeline, tracks, reading) = (running.0.downgrade(), tracks.clone(), media.reading().clone());
        move |_, pad| {
            let Some(whole) = pipeline.upgrade() else { return };
            let mut tracks = lock(&tracks);
            // In Ogg all tracks of a link begin before there is data of any.
            let last = tracks.last().map_or(0, |track| lock(track).link);
            let flows = tracks.iter().map(|t| lock(t)).filter(|t| t.link == last).all(|t| t.buffers > 0);
            let link = if is_ogg && flows && !tracks.is_empty() { last + 1 } else { last };
            let keeps_last = tracks.len() < MAX_ASKED;
            let counted = Arc::new(Mutex::new(Counted { link, keeps_last, ..Counted::default() }));
            tracks.push(counted.clone());
            drop(tracks);
            lock(&counted).name = pipeline::track_name(pad);
            watch(pad, counted, reading.clone());
            pipeline::discard(&whole, pad);
        }
    });
    let mut missing = Vec::new();
    let ended = run(media, &running.0, &mut missing, &|| cancelled() || refusal.get().is_some());
    if let Some(error) = refusal.get() {
        return Err(error.into());
    }
    let container = ended?;
    let duration = running.0.query_duration::<gst::ClockTime>().map_or(0.0, |d| d.nseconds() as f64 / 1e9);
    drop(running);
    let tracks: Vec<_> = lock(&tracks).drain(..).collect();
    let scanned = Scanned { duration_s: duration, container, ending, missing, clock };
    sum_up(bytes, &tracks, scanned, choice)
}

/// Runs the pipeline to its end; returns the container's name, which the demuxer gives in a tag. What no plugin reads is
/// noted, and is why the file is refused only where nothing else is in it.
fn run(
    media: &MediaFile,
    pipeline: &gst::Pipeline,
    missing: &mut Vec<Missing>,
    cancelled: &dyn Fn() -> bool,
) -> Result<Option<String>, Stop> {
    let bus = pipeline.bus().ok_or_else(|| failure::no_element("bus"))?;
    let (mut container, mut nothing) = (None, None);
    let started = pipeline.set_state(gst::State::Playing);
    let most = media.reading().size().saturating_mul(MAX_TIMES).saturating_add(SEEKS_BYTES);
    loop {
        if cancelled() {
            return Err(Stop::Cancelled);
        }
        if media.reading().bytes() > most {
            return Err(media.circling(most).into());
        }
        if let Some(message) = bus.timed_pop(gst::ClockTime::from_mseconds(50)) {
            if let Some(found) = failure::missing(media.path(), &message) {
                missing.push(found);
                continue;
            }
            if let Some(found) = failure::nothing_found(media.path(), &message) {
                missing.push(found);
                nothing.get_or_insert_with(|| Progress::new(media));
                continue;
            }
            if let Some(error) = failure::from_bus(media.path(), &message) {
                // GStreamer's own words for a file of nothing that it reads say less.
                return Err(missing.drain(..).next().map_or(error, |missing| missing.error).into());
            }
            match message.view() {
                gst::MessageView::Eos(_) => return Ok(container),
                gst::MessageView::Tag(tag) => {
                    let name = tag.tags().get::<gst::tags::ContainerFormat>().map(|v| v.get().to_lowercase());
                    container = container.or(name);
                }
                _ => {}
            }
            continue;
        }
        // A pipeline of nothing else may not end.
        if nothing.as_mut().is_some_and(|progress| progress.quiet() > NOTHING_MORE) {
            return Ok(container);
        }
        if started.is_err() {
            return Err(failure::unsupported(media.path(), "GStreamer cannot open it").into());
        }
    }
}

/// Facts and selected tracks from the counts.
fn sum_up(
    bytes: &mut Bytes<'_>,
    tracks: &[Arc<Mutex<Counted>>],
    scanned: Scanned,
    choice: &mut Choice<'_>,
) -> Result<Examined, Stop> {
    let tracks: Vec<_> = tracks.iter().map(|t| lock(t)).filter(|t| t.buffers > 0).collect();
    if tracks.is_empty()
        && let Some(missing) = scanned.missing.first()
    {
        return Err(missing.error.clone().into());
    }
    let Scanned { duration_s, container, ending, missing, clock } = scanned;
    let stated = ending.tags.as_ref();
    let told = length::Told { duration_s, names_container: container.is_some(), clock: &clock, tags: stated };
    let mut info = blank("", length_s(bytes, &tracks, &told));
    // The times of AVI are those of decoding.
    let is_avi = bytes.array::<4>(8).is_ok_and(|kind| &kind == b"AVI ");
    // As ffmpeg selects: the largest picture, the audio with the most channels, of equals the first.
    let every = |kind: Kind| tracks.iter().filter(move |t| t.caps_name().is_some_and(|name| kind.takes(name)));
    let of_kind = |kind: Kind| every(kind).filter(|t| t.link == 0);
    let is_chained = tracks.iter().any(|t| t.link > 0);
    let moved = stated.is_some_and(flv::Times::moves_pictures);
    let unread = |kind: Kind| missing.iter().filter(move |missing| kind.takes(&missing.caps_name));
    for kind in [Kind::Video, Kind::Audio] {
        unread(kind).for_each(|missing| choice.leave_out(kind, missing));
    }
    // The only track of a kind needs no name, and without a container its name may change from run to run.
    let selection = |kind, t: &Counted| {
        let track = if every(kind).count() + unread(kind).count() > 1 { t.name.clone() } else { None };
        let (is_later, overlays) = (t.link > 0, ending.overlays.clone());
        Selection { kind, track, is_later, unmarked: false, overlays, part: None, cut: None, leaves_last: false }
    };
    let mut best = |kind: Kind, rank: &dyn Fn(&Counted) -> u64| {
        let mut all: Vec<&Counted> = of_kind(kind).map(|t| &**t).collect();
        all.sort_by_key(|t| std::cmp::Reverse(rank(t)));
        choice.first(all.into_iter().map(candidate).collect(), &|track| selection(kind, track))
    };
    let video = best(Kind::Video, &|t| t.first_size().iter().map(|side| u64::from(*side)).product())?;
    let audio = best(Kind::Audio, &|t| t.number("channels").into())?;
    video.iter().try_for_each(|(chosen, _)| choice.check_size(chosen.track.largest()))?;
    // Those of its kind that follow it in a chained file.
    let later = |kind: Kind, track: &Counted| -> Vec<&Counted> {
        let name = track.caps_name().map(str::to_owned);
        every(kind).map(|t| &**t).filter(|t| t.link > 0 && t.caps_name() == name.as_deref()).collect()
    };

    let film = video.as_ref().map(|(chosen, _)| chosen.track);
    let gives_last = film.map_or(Ok(true), |track| ending.gives_last(bytes, track, choice))?;
    let video = video.map(|(Candidate { track, codec, .. }, mut selected)| {
        selected.leaves_last = !gives_last;
        let orientation = show(&mut info, track);
        let later = later(Kind::Video, track);
        let all = std::iter::once(track).chain(later.iter().copied());
        let pass = |track: &Counted| track.pass(!is_avi && !moved && !clock.jumps(track), gives_last);
        let passes: Vec<Pass> = all.map(pass).collect();
        info.frames = passes.iter().map(|pass| pass.frames).sum();
        info.avg_fps = track.average_rate();
        let times = stated.filter(|_| moved);
        info.notes.extend(times.and_then(|times| uneven(times.unevenness_s(), &info)));
        info.codecs.push(codec);
        let links = later.iter().map(|t| selection(Kind::Video, t)).collect();
        VideoTrack { selection: selected, links, passes, orientation, full_range: None }
    });
    let audio = audio.map(|(Candidate { track, codec, .. }, selected)| {
        let mut trim = trim(bytes, track, &codec, is_chained);
        info.has_audio = true;
        let later = later(Kind::Audio, track);
        info.audio_samples = samples(track.length_s() + later.iter().map(|t| t.length_s()).sum::<f64>());
        if let Some((seconds, kept)) = ending.cut_sound(&codec) {
            (info.duration_s, info.audio_samples, trim) = (seconds, samples(seconds), kept);
        }
        info.codecs.push(codec);
        let links = later.iter().map(|t| selection(Kind::Audio, t)).collect();
        AudioTrack { selection: selected, links, pcm: None, trim }
    });
    info.container = container.unwrap_or_else(|| info.codecs.first().cloned().unwrap_or_default());
    Ok(Examined { info, video, audio })
}

/// Tells how the pictures of a track are shown.
fn show(info: &mut MediaInfo, track: &Counted) -> Orientation {
    let (orientation, [width, height]) = (track.orientation, track.first_size());
    (info.width, info.height) = orientation.shown(width, height);
    info.notes.extend(track.changes_size());
    (info.rotation, info.mirrored) = (orientation.turn.degrees(), orientation.mirrored);
    orientation
}

/// Whether a file begins with three packets of LATM one behind the other (ISO/IEC 14496-3, 1.7.2): GStreamer may take it for another form.
fn is_latm(bytes: &mut Bytes<'_>) -> bool {
    let mut packet = |at: u64| {
        let [first, second, third] = bytes.array(at).ok()?;
        let length = u64::from(u16::from_be_bytes([second & 0x1f, third]));
        (first == 0x56 && second & 0xe0 == 0xe0 && length > 0).then_some(at + 3 + length)
    };
    packet(0).and_then(&mut packet).and_then(packet).is_some()
}

/// A track that might be used.
fn candidate(track: &Counted) -> Candidate<'_, Counted> {
    let decodes = track.caps.as_ref().is_some_and(|caps| pipeline::decodes(caps));
    let excess = match track.field::<String>("stream-format").as_deref() {
        Some("loas") => Some(LATM.to_owned()),
        _ => (!decodes).then(|| "GStreamer has no decoder for it".to_owned()),
    };
    Candidate { track, number: None, codec: track.codec(), excess }
}
