//! One GStreamer pipeline that decodes one track of one file, and is torn down whenever it is dropped.
//!
//! `filesrc ! parsebin ! <decoder> ! <converter> ! appsink`: parsebin finds demuxer and parser by content; the decoder
//! is chosen here, so that it is the one that ffmpeg would use and never a GPU's.

mod connect;
mod probes;

pub(crate) use connect::{discard, track_name};

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use gst::prelude::*;
use gstreamer as gst;
use gstreamer_app as gst_app;
use protocol::error::{ErrorKind, JobError};
use protocol::stage::Stop;

use crate::failure;

/// How long one wait for a sample lasts before errors and cancellation are looked for.
const POLL: gst::ClockTime = gst::ClockTime::from_mseconds(50);

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
    /// The demuxer's name of the track, where it is known; else the first of its kind.
    pub(crate) track: Option<String>,
    /// Codec delay and padding that the demuxer marks are not for the decoder to take off: the trim does it.
    pub(crate) unmarked: bool,
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
            probes::overlay(&source, selection.overlays.clone());
        }
        connect::connect(path, &parse, &pipeline, tail, selection, &shared);
        if let Some(pad) = sink.static_pad("sink") {
            probes::accept_strides(&pad);
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
