//! Scan of any other container: GStreamer demuxes and parses the whole file, and the packets of each track are counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use gst::prelude::*;
use gstreamer as gst;
use gstreamer_audio as gst_audio;
use protocol::stage::Stop;

use super::bytes::Bytes;
use super::choice::note;
use super::examined::{AudioTrack, Examined, Trim, VideoTrack, blank, codec_name, samples};
use super::{mp3, ogg};
use crate::failure;
use crate::media_file::MediaFile;
use crate::picture::Orientation;
use crate::pipeline::{self, Kind, Limits, MediaSource, Refusal, Selection, lock};
use crate::timeline::{MAX_LISTED, Pass, Timeline};

/// Longest time that one picture is shown in a broadcast.
const LAST_PICTURE_S: f64 = 0.1;

/// Counts of one parsed pad.
#[derive(Default)]
struct Counted {
    name: Option<String>,
    caps: Option<gst::Caps>,
    buffers: u64,
    bytes: u64,
    /// Timestamps of pictures, in file order.
    times: Vec<Option<gst::ClockTime>>,
    /// First timestamp and end of the last packet, in nanoseconds.
    span: Option<(u64, u64)>,
    /// Number of the link of a chained file that it belongs to.
    link: usize,
    orientation: Orientation,
}

impl Counted {
    fn length_s(&self) -> f64 {
        let raw =
            self.caps.as_ref().and_then(|c| gst_audio::AudioInfo::from_caps(c).ok()).filter(|info| info.bpf() > 0);
        match (raw, self.span) {
            (Some(info), _) => (self.bytes / u64::from(info.bpf())) as f64 / f64::from(info.rate()),
            (None, Some((start, end))) => (end - start) as f64 / 1e9,
            (None, None) => 0.0,
        }
    }

    fn caps_name(&self) -> Option<&str> {
        Some(self.caps.as_ref()?.structure(0)?.name().as_str())
    }

    fn codec(&self) -> String {
        match (self.caps_name().unwrap_or_default(), self.field::<i32>("mpegversion")) {
            ("audio/mpeg", Some(1)) => "mp3".to_owned(),
            ("audio/mpeg", Some(_)) => "aac".to_owned(),
            (name, _) => codec_name(name),
        }
    }

    fn field<'a, T: gst::glib::value::FromValue<'a>>(&'a self, name: &str) -> Option<T> {
        self.caps.as_ref()?.structure(0)?.get(name).ok()
    }
}

type Tracks = Arc<Mutex<Vec<Arc<Mutex<Counted>>>>>;

/// A pipeline that is stopped when it is dropped.
struct Running(gst::Pipeline);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.set_state(gst::State::Null);
    }
}

/// Facts and tracks of a file, from a count of the packets of every track.
pub(super) fn scan(
    media: &MediaFile,
    bytes: &mut Bytes<'_>,
    limits: Limits,
    cancelled: &dyn Fn() -> bool,
) -> Result<Examined, Stop> {
    pipeline::init()?;
    let running = Running(gst::Pipeline::new());
    let refusal = Refusal::default();
    let source = MediaSource::new(media, Vec::new());
    let parse = pipeline::parser(media, &refusal)?;
    let built = running.0.add_many([source.upcast_ref(), &parse]).and_then(|()| source.link(&parse));
    built.map_err(|_| failure::no_element("parsebin"))?;
    let tracks = Tracks::default();
    let progress = Arc::new(AtomicU64::new(0));
    let is_ogg = bytes.array::<4>(0).is_ok_and(|start| &start == b"OggS");
    parse.connect_pad_added({
        let (pipeline, tracks, progress) = (running.0.downgrade(), tracks.clone(), progress.clone());
        move |_, pad| {
            let Some(whole) = pipeline.upgrade() else { return };
            let mut tracks = lock(&tracks);
            // In Ogg all tracks of a link begin before there is data of any.
            let last = tracks.last().map_or(0, |track| lock(track).link);
            let flows = tracks.iter().map(|t| lock(t)).filter(|t| t.link == last).all(|t| t.buffers > 0);
            let link = if is_ogg && flows && !tracks.is_empty() { last + 1 } else { last };
            let counted = Arc::new(Mutex::new(Counted { link, ..Counted::default() }));
            tracks.push(counted.clone());
            drop(tracks);
            lock(&counted).name = pipeline::track_name(pad);
            watch(pad, counted, progress.clone());
            pipeline::discard(&whole, pad);
        }
    });
    let ended = run(media, &running.0, &progress, limits, &|| cancelled() || refusal.get().is_some());
    if let Some(error) = refusal.get() {
        return Err(error.into());
    }
    let container = ended?;
    let duration = running.0.query_duration::<gst::ClockTime>().map_or(0.0, |d| d.nseconds() as f64 / 1e9);
    drop(running);
    let tracks: Vec<_> = lock(&tracks).drain(..).collect();
    Ok(sum_up(bytes, &tracks, duration, container))
}

/// Runs the pipeline to its end; returns the container's name, which the demuxer gives in a tag.
fn run(
    media: &MediaFile,
    pipeline: &gst::Pipeline,
    progress: &AtomicU64,
    limits: Limits,
    cancelled: &dyn Fn() -> bool,
) -> Result<Option<String>, Stop> {
    let bus = pipeline.bus().ok_or_else(|| failure::no_element("bus"))?;
    let mut container = None;
    let started = pipeline.set_state(gst::State::Playing);
    let (mut seen, mut since) = (0, Instant::now());
    loop {
        if cancelled() {
            return Err(Stop::Cancelled);
        }
        if let Some(message) = bus.timed_pop(gst::ClockTime::from_mseconds(50)) {
            if let Some(error) = failure::from_bus(media.path(), &message) {
                return Err(error.into());
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
        if started.is_err() {
            return Err(failure::unsupported(media.path(), "GStreamer cannot open it").into());
        }
        let now = progress.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() > limits.stall {
            return Err(failure::stalled(media.path(), limits.stall.as_secs_f64()).into());
        }
    }
}

/// Counts the packets that pass a pad.
fn watch(pad: &gst::Pad, counted: Arc<Mutex<Counted>>, progress: Arc<AtomicU64>) {
    let mask = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
    pad.add_probe(mask, move |_, info| {
        let mut counted = lock(&counted);
        match &info.data {
            Some(gst::PadProbeData::Buffer(buffer)) => {
                progress.fetch_add(1, Ordering::Relaxed);
                // Theora's three headers are packets too.
                if counted.caps_name() == Some("video/x-theora") && buffer.flags().contains(gst::BufferFlags::HEADER) {
                    return gst::PadProbeReturn::Ok;
                }
                counted.buffers += 1;
                counted.bytes += buffer.size() as u64;
                // One beyond the limit tells the timeline that there are more.
                let listed = counted.times.len() <= MAX_LISTED;
                if listed && counted.caps_name().is_some_and(|name| Kind::Video.takes(name)) {
                    counted.times.push(buffer.pts());
                }
                if let Some(start) = buffer.pts().map(|t| t.nseconds()) {
                    let end = start + buffer.duration().map_or(0, |d| d.nseconds());
                    let (first, last) = counted.span.unwrap_or((start, end));
                    counted.span = Some((first.min(start), last.max(end)));
                }
            }
            Some(gst::PadProbeData::Event(event)) => match event.view() {
                gst::EventView::Caps(caps) => counted.caps = Some(caps.caps_owned()),
                gst::EventView::Tag(tag) => {
                    if let Some(orientation) = tag.tag().get::<gst::tags::ImageOrientation>() {
                        counted.orientation = Orientation::from_tag(orientation.get());
                    }
                }
                _ => {}
            },
            _ => {}
        }
        gst::PadProbeReturn::Ok
    });
}

/// Facts and selected tracks from the counts.
fn sum_up(
    bytes: &mut Bytes<'_>,
    tracks: &[Arc<Mutex<Counted>>],
    duration_s: f64,
    container: Option<String>,
) -> Examined {
    let mut info = blank("", duration_s);
    let tracks: Vec<_> = tracks.iter().map(|t| lock(t)).filter(|t| t.buffers > 0).collect();
    // Demuxers of MPEG streams leave out how long the last picture is shown.
    let spans = || tracks.iter().filter_map(|t| t.span);
    let (start, end) = (spans().map(|s| s.0).min().unwrap_or(0), spans().map(|s| s.1).max().unwrap_or(0));
    let spanned_s = (end - start) as f64 / 1e9;
    if (0.0..LAST_PICTURE_S).contains(&(spanned_s - duration_s)) {
        info.duration_s = spanned_s;
    }
    if duration_s == 0.0 {
        info.duration_s = tracks.iter().map(|t| t.length_s()).fold(0.0, f64::max);
    }
    // As ffmpeg selects: the largest picture, the audio with the most channels, of equals the first.
    let every = |kind: Kind| tracks.iter().filter(move |t| t.caps_name().is_some_and(|name| kind.takes(name)));
    let of_kind = |kind: Kind| every(kind).filter(|t| t.link == 0);
    let is_chained = tracks.iter().any(|t| t.link > 0);
    let number = |t: &Counted, name: &str| t.field::<i32>(name).unwrap_or(0) as u32;
    let mut best = |kind: Kind, rank: &dyn Fn(&Counted) -> u64| {
        let mut all: Vec<&Counted> = of_kind(kind).map(|t| &**t).collect();
        all.sort_by_key(|t| std::cmp::Reverse(rank(t)));
        for track in all {
            if track.caps.as_ref().is_some_and(|caps| pipeline::decodes(caps)) {
                return Some(track);
            }
            let codec = track.codec();
            info.notes.push(note(kind, None, &codec, "GStreamer has no decoder for it"));
        }
        None
    };
    let video = best(Kind::Video, &|t| u64::from(number(t, "width")) * u64::from(number(t, "height")));
    let audio = best(Kind::Audio, &|t| number(t, "channels").into());
    // The only track of a kind needs no name, and without a container its name may change from run to run.
    let selection = |kind, t: &Counted| {
        let track = if every(kind).count() > 1 { t.name.clone() } else { None };
        Selection { kind, track, is_later: t.link > 0, unmarked: false, overlays: Vec::new() }
    };

    if is_chained && video.is_some() {
        let text =
            "of the picture only the first of several recordings that follow each other is read: ffmpeg joins them";
        info.notes.push(text.to_owned());
    }
    let video = video.map(|track| {
        let orientation = track.orientation;
        (info.width, info.height) = orientation.shown(number(track, "width"), number(track, "height"));
        (info.rotation, info.mirrored) = (orientation.turn.degrees(), orientation.mirrored);
        info.frames = track.buffers;
        let told = track.field::<gst::Fraction>("framerate").filter(|f| f.numer() > 0);
        info.avg_fps = match told {
            Some(rate) => f64::from(rate.numer()) / f64::from(rate.denom()),
            None => track.buffers as f64 / track.length_s().max(1e-3),
        };
        info.codecs.push(track.codec());
        let timeline = Timeline::new(track.times.iter().map(|at| Some((at.as_ref()?.nseconds(), true))));
        let pass = Pass { frames: track.buffers, timeline };
        VideoTrack { selection: selection(Kind::Video, track), passes: vec![pass], orientation }
    });
    let audio = audio.map(|track| {
        let trim = match track.codec().as_str() {
            "mp3" => mp3::trim(bytes),
            "vorbis" if !is_chained => ogg::trim(bytes),
            _ => Trim::default(),
        };
        info.has_audio = true;
        let later = || every(Kind::Audio).filter(|t| t.link > 0 && t.caps_name() == track.caps_name());
        info.audio_samples = samples(track.length_s() + later().map(|t| t.length_s()).sum::<f64>());
        let links = later().map(|t| selection(Kind::Audio, t)).collect();
        info.codecs.push(track.codec());
        AudioTrack { selection: selection(Kind::Audio, track), links, pcm: None, trim }
    });
    info.container = container.unwrap_or_else(|| info.codecs.first().cloned().unwrap_or_default());
    Examined { info, video, audio }
}
