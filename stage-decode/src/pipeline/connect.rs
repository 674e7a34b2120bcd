//! Choice of a decoder for the track that parsebin finds, and its link.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use gst::prelude::*;
use gstreamer as gst;
use protocol::error::JobError;

use super::ending;
use super::limits::Limits;
use super::probes;
use super::selection::{Kind, Selection};
use super::shared::{Shared, lock};
use crate::failure;

/// Preferred decoders by caps name, best first, where ffmpeg has several.
const PREFERRED: [(&str, &[&str]); 7] = [
    ("video/x-vp9", &["avdec_vp9", "vp9dec"]),
    ("video/x-av1", &["dav1ddec", "av1dec"]),
    ("audio/x-opus", &["avdec_opus", "opusdec"]),
    ("audio/x-flac", &["avdec_flac", "flacdec"]),
    ("audio/x-ac3", &["avdec_ac3"]),
    ("audio/x-eac3", &["avdec_eac3"]),
    // In a WAV file ffmpeg's do not learn how many bits a sample has.
    ("audio/x-adpcm", &["adpcmdec"]),
];

/// Decoders that may be plugged besides ffmpeg's, whose names start with [`FFMPEG`]. None of them reads anything but its
/// input.
const DECODERS: [&str; 26] = [
    "a52dec",
    "adpcmdec",
    "alawdec",
    "amrnbdec",
    "amrwbdec",
    "av1dec",
    "dav1ddec",
    "dtsdec",
    "dvdec",
    "faad",
    "flacdec",
    "gsmdec",
    "jpegdec",
    "libde265dec",
    "mpg123audiodec",
    "mulawdec",
    "openh264dec",
    "opusdec",
    "pngdec",
    "sbcdec",
    "speexdec",
    "theoradec",
    "vorbisdec",
    "vp8dec",
    "vp9dec",
    "wavpackdec",
];
/// Start of the names of ffmpeg's decoders.
const FFMPEG: &str = "avdec_";
/// One of them is not plugged: as GStreamer 1.22 drives it, every picture but the first comes out wrong.
const WRONG: &str = "avdec_png";

/// Rest of a pipeline, to which the selected track is linked.
#[derive(Clone)]
struct Rest {
    path: PathBuf,
    // Strong references from a probe to the pipeline that owns it would never be freed.
    pipeline: gst::glib::WeakRef<gst::Pipeline>,
    tail: gst::glib::WeakRef<gst::Element>,
    limits: Limits,
    shared: Arc<Shared>,
}

/// Links the selected track to its decoder once parsebin has found it.
pub(super) fn connect(
    path: &Path,
    parse: &gst::Element,
    pipeline: &gst::Pipeline,
    tail: &gst::Element,
    selection: Selection,
    limits: Limits,
    shared: &Arc<Shared>,
) {
    // What a decoder puts out may be larger than what its input said.
    if let (Kind::Video, Some(pad)) = (selection.kind, tail.static_pad("sink")) {
        probes::limit_pixels(&pad, path, limits, shared);
    }
    let (path, shared) = (path.to_owned(), shared.clone());
    let rest = Rest { path, pipeline: pipeline.downgrade(), tail: tail.downgrade(), limits, shared };
    fail_if_unknown(parse, &selection, &rest);
    parse.connect_pad_added(move |_, pad| {
        let Some(whole) = rest.pipeline.upgrade() else { return };
        let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
        let Some(name) = caps.structure(0).map(|s| s.name().to_string()) else { return };
        // A pad without a name yet is taken: only demuxers have several pads, and they name theirs at once.
        let other = matches!((&selection.track, track_name(pad)), (Some(wanted), Some(name)) if *wanted != name);
        if selection.kind.takes(&name) && !other && !rest.shared.found.swap(true, Ordering::Relaxed) {
            return rest.take(pad, &selection);
        }
        let (rest, kind, is_later) = (rest.clone(), selection.kind, selection.is_later);
        pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
            let ended = matches!(&info.data, Some(gst::PadProbeData::Event(e)) if e.type_() == gst::EventType::Eos);
            if ended && !is_later && !rest.shared.found.load(Ordering::Relaxed) {
                rest.fail(failure::unsupported(&rest.path, &format!("no readable {} track", kind.noun())));
            }
            gst::PadProbeReturn::Ok
        });
        discard(&whole, pad);
    });
}

/// Fails at once where parsebin knows nothing for the selected track: its message names the format, but not the track.
fn fail_if_unknown(parse: &gst::Element, selection: &Selection, rest: &Rest) {
    let (rest, kind, wanted) = (rest.clone(), selection.kind, selection.track.clone());
    parse.connect("unknown-type", false, move |values| {
        let pad = values.get(1)?.get::<gst::Pad>().ok()?;
        let caps = values.get(2)?.get::<gst::Caps>().ok()?;
        let takes = || caps.structure(0).is_some_and(|s| kind.takes(s.name()));
        if wanted.as_ref().map_or_else(takes, |wanted| track_name(&pad).as_ref() == Some(wanted)) {
            rest.fail(failure::no_plugin(&rest.path, &caps));
        }
        None
    });
}

impl Rest {
    /// Reports a failure to the thread that waits for a sample.
    fn fail(&self, error: JobError) {
        lock(&self.shared.failure).get_or_insert(error);
        // Wakes it.
        if let Some(pipeline) = self.pipeline.upgrade() {
            let _ = pipeline.post_message(gst::message::Application::new(gst::Structure::new_empty("failed")));
        }
    }

    /// Links the pad of the selected track, once its format is known.
    fn take(&self, pad: &gst::Pad, selection: &Selection) {
        if selection.kind == Kind::Video {
            probes::limit_pixels(pad, &self.path, self.limits, &self.shared);
        }
        if selection.unmarked {
            probes::remove_clipping_marks(pad);
        }
        if selection.leaves_last {
            ending::leave_out_last(pad);
        }
        probes::open_segments(pad);
        probes::count_progress(pad, &self.shared);
        if let Some(caps) = pad.current_caps() {
            return self.link(pad, &caps);
        }
        // Some parsers know their format only from the first frame on.
        let rest = self.clone();
        pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |pad, info| {
            let Some(gst::PadProbeData::Event(event)) = &info.data else { return gst::PadProbeReturn::Ok };
            let gst::EventView::Caps(caps) = event.view() else { return gst::PadProbeReturn::Ok };
            rest.link(pad, caps.caps());
            gst::PadProbeReturn::Remove
        });
    }

    /// Links a pad with these caps through a decoder.
    fn link(&self, pad: &gst::Pad, caps: &gst::CapsRef) {
        let (Some(pipeline), Some(tail)) = (self.pipeline.upgrade(), self.tail.upgrade()) else { return };
        *lock(&self.shared.parsed) = Some(caps.to_owned());
        // The pad may have had these caps before it was watched.
        let size = probes::picture_size(caps);
        if let Some(Err(error)) = size.map(|size| self.limits.check(&self.path, size)) {
            return self.shared.refusal.set(error);
        }
        if let Err(error) = attach(&self.path, &pipeline, pad, caps, &tail, &self.shared) {
            self.fail(error);
        }
    }
}

/// Name that the demuxer gives the track of a pad: the last part of its stream id.
pub(crate) fn track_name(pad: &gst::Pad) -> Option<String> {
    Some(pad.stream_id()?.rsplit('/').next()?.to_owned())
}

/// Links an unselected track to a fakesink: some demuxers stop at a pad that is not linked.
pub(crate) fn discard(pipeline: &gst::Pipeline, pad: &gst::Pad) {
    let Ok(sink) = gst::ElementFactory::make("fakesink").property("async", false).build() else { return };
    if pipeline.add(&sink).is_ok()
        && let Some(target) = sink.static_pad("sink")
        && pad.link(&target).is_ok()
    {
        let _ = sink.sync_state_with_parent();
    }
}

/// Links a parsed pad to the tail through the decoder for its caps.
fn attach(
    path: &Path,
    pipeline: &gst::Pipeline,
    pad: &gst::Pad,
    caps: &gst::CapsRef,
    tail: &gst::Element,
    shared: &Arc<Shared>,
) -> Result<(), JobError> {
    let refused = || failure::unsupported(path, &format!("GStreamer cannot link a decoder to {caps}"));
    let entry = if is_raw(caps) {
        probes::whole_samples(pad, caps);
        tail.clone()
    } else {
        let decoder = decoder(caps).ok_or_else(|| failure::no_plugin(path, caps))?;
        let is_ffmpegs = decoder.factory().is_some_and(|factory| factory.name().starts_with(FFMPEG));
        shared.is_ffmpegs.store(is_ffmpegs, Ordering::Relaxed);
        if let Some(pad) = decoder.static_pad("src") {
            probes::refuse_fields(&pad, path, shared);
        }
        if let Some(pad) = decoder.static_pad("sink").filter(|_| is_ffmpegs) {
            probes::forget_told_colours(&pad);
        }
        pipeline.add(&decoder).map_err(|_| refused())?;
        decoder.link(tail).map_err(|_| refused())?;
        decoder.sync_state_with_parent().map_err(|_| refused())?;
        decoder
    };
    let target = entry.static_pad("sink").ok_or_else(refused)?;
    if shared.is_ffmpegs.load(Ordering::Relaxed) {
        probes::end_windows_audio(pad, &target, caps);
    }
    pad.link(&target).map(|_| ()).map_err(|_| refused())
}

/// The decoder for parsed caps, as it is used.
pub(super) fn decoder(caps: &gst::CapsRef) -> Option<gst::Element> {
    let decoder = decoder_for(caps)?;
    if decoder.has_property("max-errors") {
        // A picture that does not decode is replaced by the one before it, however many there are.
        decoder.set_property("max-errors", -1i32);
    }
    // Of a picture of Motion JPEG that is cut the rest shows what lies in memory: in ffmpeg's the picture before it, which is free again.
    if decoder.has_property("direct-rendering") && caps.structure(0).is_some_and(|s| s.name() == "image/jpeg") {
        decoder.set_property("direct-rendering", false);
    }
    Some(decoder)
}

/// Whether there is a decoder for parsed caps, or they need none.
pub(crate) fn decodes(caps: &gst::CapsRef) -> bool {
    is_raw(caps) || decoder_for(caps).is_some()
}

/// Whether caps are those of decoded pictures or samples.
fn is_raw(caps: &gst::CapsRef) -> bool {
    caps.structure(0).is_some_and(|s| s.name().ends_with("/x-raw"))
}

/// A decoder for parsed caps: a preferred one, else ffmpeg's, so that the output is ffmpeg's, else a listed one; of equals
/// that of the highest rank. None of them runs on a GPU.
fn decoder_for(caps: &gst::CapsRef) -> Option<gst::Element> {
    let structure = caps.structure(0)?;
    let name = structure.name().as_str();
    let listed = PREFERRED.iter().find(|(caps, _)| *caps == name).map_or(&[][..], |(_, names)| *names);
    let mpeg: &[&str] = match (name, structure.get::<i32>("mpegversion").ok()) {
        ("audio/mpeg", Some(1)) if structure.get::<i32>("layer") == Ok(3) => &["avdec_mp3float", "mpg123audiodec"],
        ("audio/mpeg", Some(1)) => &["avdec_mp2float", "avdec_mp1float"],
        ("audio/mpeg", Some(2 | 4)) => &["avdec_aac"],
        ("video/mpeg", Some(1 | 2)) => &["avdec_mpeg2video"],
        _ => &[],
    };
    let fits = |f: &gst::ElementFactory| f.can_sink_any_caps(caps);
    let mut named = listed.iter().chain(mpeg).filter_map(|name| gst::ElementFactory::find(name)).filter(fits);
    named.find_map(|f| f.create().build().ok()).or_else(|| {
        let kind = gst::ElementFactoryType::DECODER;
        let is_ffmpegs = |f: &gst::ElementFactory| f.name().starts_with(FFMPEG) && f.name() != WRONG;
        let mut factories: Vec<_> = gst::ElementFactory::factories_with_type(kind, gst::Rank::MARGINAL)
            .into_iter()
            .filter(fits)
            .filter(|f| is_ffmpegs(f) || DECODERS.contains(&f.name().as_str()))
            .collect();
        factories.sort_by_key(|f| std::cmp::Reverse((is_ffmpegs(f), f.rank())));
        factories.iter().find_map(|f| f.create().build().ok())
    })
}
