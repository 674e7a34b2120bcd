//! Elements that parsebin may plug: demuxers, tag readers and parsers that read nothing but what they are given.
//!
//! GStreamer has demuxers that open files and addresses which their input names (HLS, DASH, SDP, editing timelines). An
//! element that is not listed here is never plugged, whatever the content of a file.

use gst::glib;
use gst::prelude::*;
use gstreamer as gst;
use protocol::error::JobError;

use super::connect::track_name;
use super::element;
use super::ending::{self, CutSample};
use super::shared::{Refusal, Told};
use crate::failure;
use crate::media_file::MediaFile;

/// Factories of the elements that may be plugged.
const ALLOWED: [&str; 47] = [
    // Containers.
    "aiffparse",
    "asfdemux",
    "auparse",
    "avidemux",
    "dvdemux",
    "flvdemux",
    "ivfparse",
    "matroskademux",
    "mpegpsdemux",
    "mxfdemux",
    "oggdemux",
    "ogmaudioparse",
    "ogmvideoparse",
    "qtdemux",
    "tsdemux",
    "wavparse",
    "y4mdec",
    // Tags.
    "apedemux",
    "id3demux",
    // Video.
    "av1parse",
    "diracparse",
    "h263parse",
    "h264parse",
    "h265parse",
    "jpeg2000parse",
    "jpegparse",
    "mpeg4videoparse",
    "mpegvideoparse",
    "pngparse",
    "theoraparse",
    "vc1parse",
    "vp9parse",
    // Audio.
    "aacparse",
    "ac3parse",
    "amrparse",
    "dcaparse",
    "flacparse",
    "mpegaudioparse",
    "opusparse",
    "sbcparse",
    "vorbisparse",
    "wavpackparse",
    // Subtitles, which are discarded.
    "ogmtextparse",
    "ssaparse",
    "subparse",
    "avisubtitle",
    "oggaviparse",
];

/// Parsers that read the size of the pictures from the stream.
const READ_SIZES: [&str; 4] = ["av1parse", "h264parse", "h265parse", "vp9parse"];

/// Caps of files that name media elsewhere, and what such a file is.
const REFERENCES: [(&str, &str); 11] = [
    ("application/x-hls", "an HLS or M3U playlist"),
    ("audio/x-mpegurl", "an HLS or M3U playlist"),
    ("application/dash+xml", "a DASH manifest"),
    ("application/vnd.ms-sstr+xml", "a Smooth Streaming manifest"),
    ("application/sdp", "a session description (SDP)"),
    ("application/smil", "a SMIL presentation"),
    ("text/uri-list", "a list of addresses"),
    ("application/xges", "an editing timeline"),
    ("application/vnd.apple-fcp+xml", "an editing timeline"),
    ("application/vnd.apple-xmeml+xml", "an editing timeline"),
    ("application/vnd.pixar.opentimelineio+json", "an editing timeline"),
];

/// A parsebin that plugs listed elements only; a file that names media elsewhere is refused in `refusal`, and colours that a
/// container tells come into `told`. Of a sample that is cut it hands out what is there.
///
/// # Errors
/// `internal` for an element that GStreamer does not have.
pub(crate) fn parser(
    media: &MediaFile,
    refusal: &Refusal,
    told: &Told,
    cut: Option<CutSample>,
) -> Result<gst::Element, JobError> {
    let parser = element("parsebin")?;
    // Emitted with each type of content before anything is plugged for it; "no" exposes it as it is.
    parser.connect("autoplug-continue", false, {
        let (refusal, path) = (refusal.clone(), media.path().to_owned());
        move |values| {
            let caps = values.get(2).and_then(|caps| caps.get::<gst::Caps>().ok());
            let what = caps.as_ref().and_then(reference);
            if let Some(what) = what {
                refusal.set(failure::reference(&path, what));
            }
            Some(what.is_none().to_value())
        }
    });
    // Emitted with each element that would be plugged.
    let answers = answers(&parser)?;
    parser.connect("autoplug-select", false, move |values| {
        let factory = values.get(3).and_then(|factory| factory.get::<gst::ElementFactory>().ok());
        let allowed = factory.is_some_and(|factory| ALLOWED.contains(&factory.name().as_str()));
        answers.to_value_by_nick(if allowed { "try" } else { "expose" })
    });
    forget_what_containers_tell(&parser, told);
    ending::watch(&parser, cut);
    Ok(parser)
}

/// Keeps what a container tells from the parsers that read it from the pictures themselves: the picture size, where they would
/// believe the container, and a decoder the pictures; of AV1 the colours, since its decoder passes on what the parser says.
fn forget_what_containers_tell(parser: &gst::Element, told: &Told) {
    let told = told.clone();
    parser.connect("deep-element-added", false, move |values| {
        let element = values.get(2)?.get::<gst::Element>().ok()?;
        let name = element.factory()?.name();
        if !READ_SIZES.contains(&name.as_str()) {
            return None;
        }
        let (reads_colours, told) = (name == "av1parse", told.clone());
        element.static_pad("sink")?.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |pad, info| {
            if let Some(gst::PadProbeData::Event(event)) = &mut info.data
                && let gst::EventView::Caps(caps) = event.view()
            {
                let mut caps = caps.caps_owned();
                for structure in caps.make_mut().iter_mut() {
                    structure.remove_fields(["width", "height"]);
                    if let Ok(colours) = structure.get::<String>("colorimetry") {
                        told.note(track_name(pad), colours);
                    }
                    if reads_colours {
                        structure.remove_field("colorimetry");
                    }
                }
                *event = gst::event::Caps::builder(&caps).seqnum(event.seqnum()).build();
            }
            gst::PadProbeReturn::Ok
        });
        None
    });
}

/// Possible answers of `autoplug-select`.
fn answers(parsebin: &gst::Element) -> Result<glib::EnumClass, JobError> {
    let signal = glib::subclass::SignalId::lookup("autoplug-select", parsebin.type_());
    let class = signal.and_then(|signal| glib::EnumClass::with_type(signal.query().return_type().type_()));
    let complete = class.filter(|class| ["try", "expose"].iter().all(|nick| class.value_by_nick(nick).is_some()));
    // Without it any element could be plugged.
    complete.ok_or_else(|| failure::no_element("parsebin with the signal autoplug-select"))
}

/// What a file with these caps is, if it names media elsewhere.
fn reference(caps: &gst::Caps) -> Option<&'static str> {
    let name = caps.structure(0)?.name();
    REFERENCES.iter().find(|(caps, _)| *caps == name.as_str()).map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_that_open_files_or_addresses_are_not_listed() {
        super::super::init().unwrap();
        let reaching =
            ["hlsdemux", "hlsdemux2", "dashdemux", "dashdemux2", "mssdemux", "mssdemux2", "sdpdemux", "rmdemux"];
        let editing = ["gesdemux", "uridecodebin", "rtspsrc", "splitmuxsrc", "multipartdemux"];
        assert!(reaching.iter().chain(&editing).all(|name| !ALLOWED.contains(name)));
        // A name that no version of GStreamer has would allow nothing, and hide a mistake.
        let known: Vec<_> = ALLOWED.iter().filter(|name| gst::ElementFactory::find(name).is_some()).collect();
        assert!(known.len() > 35, "{known:?}");
        // None of them is a source, or a bin that may hold one.
        for factory in ALLOWED.iter().filter_map(|name| gst::ElementFactory::find(name)) {
            let class = factory.metadata("klass").unwrap_or_default().to_owned();
            assert!(!class.contains("Source") && !class.contains("Bin") && !class.contains("Adaptive"), "{class}");
        }
    }
}
