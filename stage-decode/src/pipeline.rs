//! One GStreamer pipeline that decodes one track of one file, and is torn down whenever it is dropped.
//!
//! `filesrc ! parsebin ! <decoder> ! <converter> ! appsink`: parsebin finds demuxer and parser by content; the decoder
//! is chosen here, so that it is the one that ffmpeg would use and never a GPU's.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use common::error::{ErrorKind, JobError};
use common::stage::Stop;
use gst::prelude::*;
use gstreamer as gst;
use gstreamer_app as gst_app;
use gstreamer_video as gst_video;

use crate::failure;

/// How long one wait for a sample lasts before errors and cancellation are looked for.
const POLL: gst::ClockTime = gst::ClockTime::from_mseconds(50);

/// Decoders that give what ffmpeg gives, since they are ffmpeg's, best first.
const PREFERRED: [(&str, &[&str]); 9] = [
    ("video/x-h264", &["avdec_h264"]),
    ("video/x-h265", &["avdec_h265"]),
    ("video/x-vp9", &["avdec_vp9", "vp9dec"]),
    ("video/x-vp8", &["avdec_vp8", "vp8dec"]),
    ("video/x-av1", &["dav1ddec", "av1dec"]),
    ("audio/x-opus", &["avdec_opus", "opusdec"]),
    ("audio/x-flac", &["avdec_flac", "flacdec"]),
    ("audio/x-ac3", &["avdec_ac3"]),
    ("audio/x-eac3", &["avdec_eac3"]),
];

/// Why no further sample comes.
#[derive(Debug)]
pub(crate) enum Interruption {
    /// Nobody waits any more.
    Cancelled,
    /// GStreamer gave up; what came before is good.
    Broken(JobError),
    /// GStreamer stands still.
    Stalled(JobError),
}

impl From<Interruption> for Stop {
    fn from(interruption: Interruption) -> Stop {
        match interruption {
            Interruption::Cancelled => Stop::Cancelled,
            Interruption::Broken(error) | Interruption::Stalled(error) => Stop::Failed(error),
        }
    }
}

/// Which kind of track to decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Picture,
    Sound,
}

impl Kind {
    /// Whether caps of this name are of this kind; motion JPEG goes by the name of its pictures.
    pub(crate) fn takes(self, caps_name: &str) -> bool {
        match self {
            Kind::Picture => caps_name.starts_with("video/") || caps_name == "image/jpeg",
            Kind::Sound => caps_name.starts_with("audio/"),
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Kind::Picture => "picture",
            Kind::Sound => "sound",
        }
    }
}

/// What to decode.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) kind: Kind,
    /// The container's number of the track, where it is known; else the first of its kind.
    pub(crate) track: Option<u64>,
    /// What the demuxer is shown in place of the file's own bytes.
    pub(crate) overlays: Vec<Overlay>,
}

/// Bytes of the index that the demuxer shall see otherwise than they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overlay {
    pub(crate) at: u64,
    pub(crate) bytes: Vec<u8>,
}

/// Loads GStreamer once.
///
/// # Errors
/// `internal`, when its registry cannot be set up.
pub(crate) fn init() -> Result<(), JobError> {
    static READY: OnceLock<Result<(), String>> = OnceLock::new();
    READY.get_or_init(|| gst::init().map_err(|e| e.to_string())).clone().map_err(|e| {
        JobError::new(ErrorKind::Internal, format!("GStreamer does not start: {e}"))
            .hint("install gstreamer1.0-plugins-base")
    })
}

/// An element of the base sets.
pub(crate) fn element(name: &str) -> Result<gst::Element, JobError> {
    gst::ElementFactory::make(name).build().map_err(|_| failure::no_element(name))
}

/// What runs on GStreamer's threads reports here.
#[derive(Default)]
struct Shared {
    failure: Mutex<Option<JobError>>,
    /// Buffers that passed anywhere in the pipeline; it stands still when the pipeline does.
    progress: AtomicU64,
    /// Whether the wanted track was seen.
    found: AtomicBool,
    /// Caps of the parsed track, before its decoder.
    parsed: Mutex<Option<gst::Caps>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pipeline, running.
pub(crate) struct TrackPipeline {
    path: PathBuf,
    pipeline: gst::Pipeline,
    bus: gst::Bus,
    sink: gst_app::AppSink,
    shared: Arc<Shared>,
    stall: Duration,
}

impl Drop for TrackPipeline {
    fn drop(&mut self) {
        // Going down to Null joins the pipeline's threads and closes its file.
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

impl TrackPipeline {
    /// Starts decoding. `tail` goes between decoder and sink.
    pub(crate) fn start(
        path: &Path,
        selection: Selection,
        tail: &gst::Element,
        caps: &gst::Caps,
        stall: Duration,
    ) -> Result<Self, JobError> {
        init()?;
        let pipeline = gst::Pipeline::new();
        let bus = pipeline.bus().ok_or_else(|| failure::no_element("bus"))?;
        let source = element("filesrc")?;
        source.set_property("location", path);
        let parse = element("parsebin")?;
        let sink = gst_app::AppSink::builder().caps(caps).sync(false).max_buffers(4).build();
        let add = |e: &gst::Element| pipeline.add(e).map_err(|_| failure::no_element("bin"));
        [&source, &parse, tail, sink.upcast_ref()].into_iter().try_for_each(add)?;
        let linked = source.link(&parse).and_then(|()| tail.link(&sink));
        linked.map_err(|_| failure::no_element("appsink"))?;

        let shared = Arc::new(Shared::default());
        if !selection.overlays.is_empty() {
            overlay(&source, selection.overlays.clone());
        }
        connect(path, &parse, &pipeline, tail, selection, &shared);
        if let Some(pad) = sink.static_pad("sink") {
            accept_strides(&pad);
        }
        let track = TrackPipeline { path: path.to_owned(), pipeline, bus, sink, shared, stall };
        match track.pipeline.set_state(gst::State::Playing) {
            Ok(_) => Ok(track),
            Err(_) => Err(track.failure().unwrap_or_else(|| failure::unsupported(path, "cannot be opened"))),
        }
    }

    /// Caps of the track as the parser saw it.
    pub(crate) fn parsed_caps(&self) -> Option<gst::Caps> {
        lock(&self.shared.parsed).clone()
    }

    /// The next sample; `None` at the end.
    ///
    /// # Errors
    /// What GStreamer says, `Cancelled` when `cancelled` does, and a stall after a while without any progress.
    pub(crate) fn pull(&self, cancelled: &dyn Fn() -> bool) -> Result<Option<gst::Sample>, Interruption> {
        let mut waited_from = Instant::now();
        let mut seen = self.shared.progress.load(Ordering::Relaxed);
        loop {
            if cancelled() {
                return Err(Interruption::Cancelled);
            }
            if let Some(sample) = self.sink.try_pull_sample(POLL) {
                return Ok(Some(sample));
            }
            if let Some(error) = self.failure() {
                return Err(Interruption::Broken(error));
            }
            if self.sink.is_eos() {
                return Ok(None);
            }
            let progress = self.shared.progress.load(Ordering::Relaxed);
            if progress != seen {
                (seen, waited_from) = (progress, Instant::now());
            } else if waited_from.elapsed() > self.stall {
                return Err(Interruption::Stalled(failure::stalled(&self.path, self.stall.as_secs_f64())));
            }
        }
    }

    fn failure(&self) -> Option<JobError> {
        if let Some(error) = lock(&self.shared.failure).take() {
            return Some(error);
        }
        let kinds = [gst::MessageType::Error, gst::MessageType::Element];
        while let Some(message) = self.bus.pop_filtered(&kinds) {
            if let Some(error) = failure::from_bus(&self.path, &message) {
                return Some(error);
            }
        }
        None
    }
}

/// Lays the overlays over the file's bytes on their way to the demuxer.
fn overlay(source: &gst::Element, overlays: Vec<Overlay>) {
    let Some(pad) = source.static_pad("src") else { return };
    let mask = gst::PadProbeType::BUFFER | gst::PadProbeType::PULL | gst::PadProbeType::PUSH;
    pad.add_probe(mask, move |_, info| {
        let Some(buffer) = info.buffer_mut() else { return gst::PadProbeReturn::Ok };
        let start = buffer.offset();
        let end = start.saturating_add(buffer.size() as u64);
        let touches = |o: &&Overlay| o.at < end && o.at + o.bytes.len() as u64 > start;
        if !overlays.iter().any(|o| touches(&o)) {
            return gst::PadProbeReturn::Ok;
        }
        if let Ok(mut map) = buffer.make_mut().map_writable() {
            for (at, byte) in overlays.iter().filter(touches).flat_map(|o| (o.at..).zip(&o.bytes)) {
                let place = at.checked_sub(start).and_then(|p| map.get_mut(p as usize));
                place.into_iter().for_each(|place| *place = *byte);
            }
        }
        gst::PadProbeReturn::Ok
    });
}

fn count_progress(pad: &gst::Pad, shared: &Arc<Shared>) {
    let shared = shared.clone();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        shared.progress.fetch_add(1, Ordering::Relaxed);
        gst::PadProbeReturn::Ok
    });
}

/// Tells the decoder that its own row strides are welcome: it then decodes straight into what arrives here.
fn accept_strides(pad: &gst::Pad) {
    pad.add_probe(gst::PadProbeType::QUERY_DOWNSTREAM, |_, info| {
        let Some(query) = info.query_mut() else { return gst::PadProbeReturn::Ok };
        let gst::QueryViewMut::Allocation(allocation) = query.view_mut() else { return gst::PadProbeReturn::Ok };
        allocation.add_allocation_meta::<gst_video::VideoMeta>(None);
        gst::PadProbeReturn::Handled
    });
}

/// Links the wanted track to its decoder once parsebin has found it.
fn connect(
    path: &Path,
    parse: &gst::Element,
    pipeline: &gst::Pipeline,
    tail: &gst::Element,
    selection: Selection,
    shared: &Arc<Shared>,
) {
    let (path, kind) = (path.to_owned(), selection.kind);
    let (pipeline, tail) = (pipeline.downgrade(), tail.downgrade());
    let report = {
        let (pipeline, shared) = (pipeline.clone(), shared.clone());
        move |error: JobError| {
            lock(&shared.failure).get_or_insert(error);
            // Wakes the one who waits for a sample.
            if let Some(pipeline) = pipeline.upgrade() {
                let _ = pipeline.post_message(gst::message::Application::new(gst::Structure::new_empty("failed")));
            }
        }
    };
    let shared = shared.clone();
    parse.connect_no_more_pads({
        let (shared, path, report) = (shared.clone(), path.clone(), report.clone());
        move |_| {
            if !shared.found.load(Ordering::Relaxed) {
                report(failure::unsupported(&path, &format!("no {} track can be read", kind.noun())));
            }
        }
    });
    parse.connect_pad_added(move |_, pad| {
        let (Some(pipeline), Some(tail)) = (pipeline.upgrade(), tail.upgrade()) else { return };
        let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
        let Some(name) = caps.structure(0).map(|s| s.name().to_string()) else { return };
        let numbered = pad.stream_id().and_then(|id| id.rsplit('/').next()?.parse::<u64>().ok());
        let other = selection.track.is_some() && numbered.is_some() && numbered != selection.track;
        if !selection.kind.takes(&name) || other || shared.found.swap(true, Ordering::Relaxed) {
            return discard(&pipeline, pad);
        }
        open_segments(pad);
        count_progress(pad, &shared);
        let (path, shared, report) = (path.clone(), shared.clone(), report.clone());
        let attach_once = move |pad: &gst::Pad, caps: &gst::CapsRef| {
            *lock(&shared.parsed) = Some(caps.to_owned());
            if let Err(error) = attach(&path, &pipeline, pad, caps, &tail) {
                report(error);
            }
        };
        match pad.current_caps() {
            Some(caps) => attach_once(pad, &caps),
            // Some parsers tell their format with the first frame only.
            None => {
                pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |pad, info| {
                    let Some(gst::PadProbeData::Event(event)) = &info.data else { return gst::PadProbeReturn::Ok };
                    let gst::EventView::Caps(caps) = event.view() else { return gst::PadProbeReturn::Ok };
                    attach_once(pad, caps.caps());
                    gst::PadProbeReturn::Remove
                });
            }
        }
    });
}

/// Gives a track that nobody wants somewhere to go: some demuxers stop at a pad that leads nowhere.
fn discard(pipeline: &gst::Pipeline, pad: &gst::Pad) {
    let Ok(sink) = gst::ElementFactory::make("fakesink").property("async", false).build() else { return };
    if pipeline.add(&sink).is_ok()
        && let Some(target) = sink.static_pad("sink")
        && pad.link(&target).is_ok()
    {
        let _ = sink.sync_state_with_parent();
    }
}

/// Puts the decoder for `caps` between a parsed pad and the tail.
fn attach(
    path: &Path,
    pipeline: &gst::Pipeline,
    pad: &gst::Pad,
    caps: &gst::CapsRef,
    tail: &gst::Element,
) -> Result<(), JobError> {
    let refused = || failure::unsupported(path, &format!("GStreamer does not connect a decoder to {caps}"));
    let is_raw = caps.structure(0).is_some_and(|s| s.name().ends_with("/x-raw"));
    let entry = if is_raw {
        tail.clone()
    } else {
        let decoder = decoder_for(caps).ok_or_else(|| failure::no_plugin(path, caps))?;
        if decoder.has_property("max-errors") {
            // A frame that does not decode is replaced by the one before it, however many there are.
            decoder.set_property("max-errors", -1i32);
        }
        pipeline.add(&decoder).map_err(|_| refused())?;
        decoder.link(tail).map_err(|_| refused())?;
        decoder.sync_state_with_parent().map_err(|_| refused())?;
        decoder
    };
    let target = entry.static_pad("sink").ok_or_else(refused)?;
    pad.link(&target).map(|_| ()).map_err(|_| refused())
}

/// Lets every segment begin at zero and never end: what is shown is decided by counting, not by the decoder's clipping.
fn open_segments(pad: &gst::Pad) {
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, |_, info| {
        if let Some(gst::PadProbeData::Event(event)) = &mut info.data
            && let gst::EventView::Segment(segment) = event.view()
            && segment.segment().format() == gst::Format::Time
        {
            let open = gst::FormattedSegment::<gst::ClockTime>::new();
            *event = gst::event::Segment::builder(&open).seqnum(event.seqnum()).build();
        }
        gst::PadProbeReturn::Ok
    });
}

fn decoder_for(caps: &gst::CapsRef) -> Option<gst::Element> {
    let structure = caps.structure(0)?;
    let name = structure.name().as_str();
    let listed = PREFERRED.iter().find(|(caps, _)| *caps == name).map_or(&[][..], |(_, names)| *names);
    let mpeg: &[&str] = match (name, structure.get::<i32>("mpegversion").ok()) {
        ("audio/mpeg", Some(1)) if structure.get::<i32>("layer") == Ok(3) => &["avdec_mp3float", "mpg123audiodec"],
        ("audio/mpeg", Some(2 | 4)) => &["avdec_aac"],
        _ => &[],
    };
    let by_name = listed.iter().chain(mpeg).find_map(|name| gst::ElementFactory::make(name).build().ok());
    by_name.or_else(|| {
        let kind = gst::ElementFactoryType::DECODER;
        let mut factories: Vec<_> = gst::ElementFactory::factories_with_type(kind, gst::Rank::MARGINAL)
            .into_iter()
            .filter(|f| f.can_sink_any_caps(&caps.to_owned()))
            .filter(|f| !f.metadata("klass").is_some_and(|k| k.contains("Hardware")))
            .collect();
        factories.sort_by_key(|f| std::cmp::Reverse(f.rank()));
        factories.iter().find_map(|f| f.create().build().ok())
    })
}
