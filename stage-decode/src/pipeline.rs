//! GStreamer pipeline that decodes one track of one file; dropping it stops its threads.
//!
//! `<source> ! parsebin ! <decoder> ! <converter> ! appsink`: parsebin finds demuxer and parser by content; `connect`
//! chooses the decoder that ffmpeg would use, and never one that runs on a GPU. In reading order: `init` (GStreamer
//! itself), `limits` (on the work of a file), `selection` (which track), `shared` (what the pipeline's threads report),
//! `source` (the open file), `running` (stopped when dropped), `plug` (which demuxers and parsers), `probes` (what watches and changes the flow between
//! elements), `ending` (what a cut file has of its last packet), `connect` (from the demuxed track to its decoder), this file, the
//! pipeline itself, `trial` (whether a track decodes), `last_packets` (those at a track's end) and `asked` (whether the very last one gives a picture).

mod asked;
mod connect;
mod ending;
mod init;
mod last_packets;
mod limits;
mod plug;
mod probes;
mod running;
mod selection;
mod shared;
mod source;
mod trial;

pub(crate) use asked::gives_last;
pub(crate) use connect::{decodes, discard, track_name};
pub(crate) use ending::CutSample;
pub(crate) use init::init;
pub(crate) use last_packets::LastPackets;
pub(crate) use limits::Limits;
pub(crate) use plug::parser;
pub(crate) use running::Running;
pub(crate) use selection::{Kind, Overlay, Selection};
pub(crate) use shared::{Refusal, Told, lock};
pub(crate) use source::MediaSource;
pub(crate) use trial::trial;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gst::prelude::*;
use gstreamer as gst;
use gstreamer_app as gst_app;
use gstreamer_audio as gst_audio;
use gstreamer_video as gst_video;
use protocol::error::JobError;
use protocol::stage::Stop;

use crate::color;
use crate::crew::{self, Progress};
use crate::failure::{self, Missing};
use crate::media_file::MediaFile;
use shared::Shared;

/// Longest wait for a sample between two looks at errors and cancellation.
const POLL: gst::ClockTime = gst::ClockTime::from_mseconds(50);

/// Reason why no further sample comes.
#[derive(Debug)]
pub(crate) enum Interruption {
    /// The job was cancelled.
    Cancelled,
    /// The file is refused, whatever was decoded of it before.
    Refused(JobError),
    /// GStreamer failed; the samples before that are valid.
    Broken(JobError),
    /// GStreamer made no progress for too long.
    Stalled(JobError),
}

impl From<Interruption> for Stop {
    fn from(interruption: Interruption) -> Stop {
        match interruption {
            Interruption::Cancelled => Stop::Cancelled,
            Interruption::Refused(error) | Interruption::Broken(error) | Interruption::Stalled(error) => {
                Stop::Failed(error)
            }
        }
    }
}

/// A new element of GStreamer's core or base plugins, by its factory's name.
pub(crate) fn element(name: &str) -> Result<gst::Element, JobError> {
    gst::ElementFactory::make(name).build().map_err(|_| failure::no_element(name))
}

/// The converter behind a decoder, and the caps of what comes out of it.
pub(crate) fn tail(kind: Kind) -> Result<(gst::Element, gst::Caps), JobError> {
    Ok(match kind {
        Kind::Video => {
            let caps = gst_video::VideoCapsBuilder::new().format_list(color::FORMATS).build();
            (element("videoconvert")?, caps)
        }
        Kind::Audio => {
            let samples = gst_audio::AudioFormat::F32le;
            let caps = gst_audio::AudioCapsBuilder::new_interleaved().format(samples).build();
            (element("audioconvert")?, caps)
        }
    })
}

/// Running pipeline of one track.
pub(crate) struct TrackPipeline {
    media: MediaFile,
    pipeline: gst::Pipeline,
    bus: gst::Bus,
    sink: gst_app::AppSink,
    shared: Arc<Shared>,
    limits: Limits,
    kind: Kind,
    /// Name of the track; none for the only one.
    track: Option<String>,
    /// Whether it made no progress for too long.
    stalled: AtomicBool,
}

impl Drop for TrackPipeline {
    fn drop(&mut self) {
        // The change to Null joins the pipeline's threads, and so waits for a read.
        let pipeline = self.pipeline.clone();
        let stop = move || {
            let _ = pipeline.set_state(gst::State::Null);
        };
        if self.stalled.load(Ordering::Relaxed) { crew::leave(stop) } else { stop() }
    }
}

impl TrackPipeline {
    /// Starts decoding; `tail` is the converter between decoder and sink, `caps` what the sink takes.
    pub(crate) fn start(
        media: &MediaFile,
        selection: Selection,
        tail: &gst::Element,
        caps: &gst::Caps,
        limits: Limits,
    ) -> Result<Self, JobError> {
        init()?;
        let pipeline = gst::Pipeline::new();
        let bus = pipeline.bus().ok_or_else(|| failure::no_element("bus"))?;
        let shared = Arc::new(Shared { reading: media.reading().clone(), ..Shared::default() });
        let source = MediaSource::new(media, selection.overlays.clone(), selection.part.clone());
        let parse = parser(media, &shared.refusal, &shared.told, selection.cut)?;
        let sink = gst_app::AppSink::builder().caps(caps).sync(false).max_buffers(4).build();
        let add = |e: &gst::Element| pipeline.add(e).map_err(|_| failure::no_element("bin"));
        [source.upcast_ref(), &parse, tail, sink.upcast_ref()].into_iter().try_for_each(add)?;
        let linked = source.link(&parse).and_then(|()| tail.link(&sink));
        linked.map_err(|_| failure::no_element("appsink"))?;

        let (kind, name) = (selection.kind, selection.track.clone());
        connect::connect(media.path(), &parse, &pipeline, tail, selection, limits, &shared);
        if let Some(pad) = sink.static_pad("sink") {
            probes::accept_strides(&pad);
        }
        let track = TrackPipeline {
            media: media.clone(),
            pipeline,
            bus,
            sink,
            shared,
            limits,
            kind,
            track: name,
            stalled: AtomicBool::new(false),
        };
        match track.pipeline.set_state(gst::State::Playing) {
            Ok(_) => Ok(track),
            Err(_) => {
                Err(track.failure().unwrap_or_else(|| failure::unsupported(media.path(), "GStreamer cannot open it")))
            }
        }
    }

    /// Caps of the track in front of its decoder, once they are known.
    pub(crate) fn parsed_caps(&self) -> Option<gst::Caps> {
        lock(&self.shared.parsed).clone()
    }

    /// Colours that the container tells, where a parser may have forgotten them.
    pub(crate) fn told_colours(&self) -> Option<String> {
        self.shared.told.get(self.track.as_deref())
    }

    /// Whether the decoder is one of ffmpeg's.
    pub(crate) fn is_ffmpegs(&self) -> bool {
        self.shared.is_ffmpegs.load(Ordering::Relaxed)
    }

    /// The next sample; `None` at the end.
    ///
    /// # Errors
    /// `Broken` with GStreamer's error, `Refused` for a file that is refused, `Cancelled` once `cancelled` says so,
    /// `Stalled` after the stall time without any progress.
    pub(crate) fn pull(&self, cancelled: &dyn Fn() -> bool) -> Result<Option<gst::Sample>, Interruption> {
        let mut progress = Progress::new(&self.media);
        loop {
            if cancelled() {
                return Err(Interruption::Cancelled);
            }
            if let Some(error) = self.shared.refusal.get() {
                return Err(Interruption::Refused(error));
            }
            if let Some(sample) = self.sink.try_pull_sample(POLL) {
                return Ok(Some(sample));
            }
            let (failure, ended) = (self.failure(), self.sink.is_eos());
            // What is refused may fail or end for that reason.
            match (self.shared.refusal.get(), failure) {
                (Some(error), _) => return Err(Interruption::Refused(error)),
                (None, Some(error)) => return Err(Interruption::Broken(error)),
                (None, None) if ended => return Ok(None),
                (None, None) => {}
            }
            if let Err(error) = progress.check(self.limits.stall) {
                self.stalled.store(true, Ordering::Relaxed);
                return Err(Interruption::Stalled(error));
            }
        }
    }

    /// Why no sample comes. A missing plugin may be another track's: it is the reason only where the selected track was not
    /// found and the pipeline has failed.
    fn failure(&self) -> Option<JobError> {
        let mut error = lock(&self.shared.failure).take();
        let kinds = [gst::MessageType::Error, gst::MessageType::Element];
        while error.is_none()
            && let Some(message) = self.bus.pop_filtered(&kinds)
        {
            if failure::nothing_found(self.media.path(), &message).is_some_and(|found| self.is_other(&found)) {
                continue;
            }
            match failure::from_bus(self.media.path(), &message) {
                Some(missing) if message.type_() == gst::MessageType::Element => {
                    lock(&self.shared.missing).get_or_insert(missing);
                }
                found => error = found,
            }
        }
        let error = error?;
        let missing = lock(&self.shared.missing).take().filter(|_| !self.shared.found.load(Ordering::Relaxed));
        Some(missing.unwrap_or(error))
    }
    /// Whether what was found of a track is another one's.
    fn is_other(&self, found: &Missing) -> bool {
        let is_named = self.track.is_some() && found.track.is_some();
        !self.kind.takes(&found.caps_name) || is_named && found.track != self.track
    }
}
