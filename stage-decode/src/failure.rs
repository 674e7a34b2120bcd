//! Errors about files that cannot be used: operation, file, GStreamer's own words, and what to do.

use std::path::Path;

use gst::prelude::*;
use gstreamer as gst;
use gstreamer_pbutils as pbutils;
use protocol::error::{ErrorKind, JobError};

/// Debian packages of decoders and parsers, by the name of the caps that they take.
const PACKAGES: [(&str, &str); 16] = [
    ("video/x-h264", "gstreamer1.0-libav"),
    ("video/x-h265", "gstreamer1.0-libav"),
    ("video/x-vp8", "gstreamer1.0-libav"),
    ("video/x-vp9", "gstreamer1.0-libav"),
    ("video/x-av1", "gstreamer1.0-plugins-bad"),
    ("video/mpeg", "gstreamer1.0-libav"),
    ("video/x-prores", "gstreamer1.0-libav"),
    ("video/quicktime", "gstreamer1.0-plugins-good"),
    ("video/x-matroska", "gstreamer1.0-plugins-good"),
    ("video/webm", "gstreamer1.0-plugins-good"),
    ("video/mpegts", "gstreamer1.0-plugins-bad"),
    ("audio/mpeg", "gstreamer1.0-libav"),
    ("audio/x-opus", "gstreamer1.0-libav"),
    ("audio/x-vorbis", "gstreamer1.0-plugins-base"),
    ("audio/x-flac", "gstreamer1.0-libav"),
    ("application/ogg", "gstreamer1.0-plugins-base"),
];

/// Debian packages, each with an element that shows that it is installed.
const WITNESSES: [(&str, &str); 4] = [
    ("gstreamer1.0-libav", "avdec_h264"),
    ("gstreamer1.0-plugins-base", "oggdemux"),
    ("gstreamer1.0-plugins-good", "qtdemux"),
    ("gstreamer1.0-plugins-bad", "tsdemux"),
];

/// `unsupported_media` for a file that cannot be decoded, and why.
pub(crate) fn unsupported(path: &Path, what: &str) -> JobError {
    JobError::new(ErrorKind::UnsupportedMedia, format!("cannot decode {}: {what}", path.display()))
        .hint("check that the file plays elsewhere and is complete; re-encode it to mp4 (H.264, AAC) if it does")
}

/// `unsupported_media` for a file that names media elsewhere.
pub(crate) fn reference(path: &Path, what: &str) -> JobError {
    let text = format!("cannot decode {}: it is {what}, which only names media elsewhere", path.display());
    JobError::new(ErrorKind::UnsupportedMedia, text)
        .hint("give the media file itself, below a media root: stage-decode fetches nothing")
}

/// `unsupported_media` for a picture, still or animated.
pub(crate) fn still(path: &Path, what: &str) -> JobError {
    let text = format!("cannot decode {}: it is {what}, which is not read as a film", path.display());
    JobError::new(ErrorKind::UnsupportedMedia, text)
        .hint("if it is animated, convert it: ffmpeg -i IN -pix_fmt yuv420p OUT.mp4")
}

/// `unsupported_media` for pictures above the configured size.
pub(crate) fn too_large(path: &Path, [width, height]: [u32; 2], max_pixels: u64) -> JobError {
    let pixels = u64::from(width) * u64::from(height);
    let text = format!(
        "cannot decode {}: its pictures of {width} x {height} have {pixels} pixels, decode.max_pixels is {max_pixels}",
        path.display()
    );
    JobError::new(ErrorKind::UnsupportedMedia, text)
        .hint("re-encode it with smaller pictures, or raise decode.max_pixels (a decoder takes 8 to 16 bytes a pixel)")
}

/// `media_not_found` for a file that the operating system does not read.
pub(crate) fn unreadable(path: &Path, error: &std::io::Error) -> JobError {
    JobError::new(ErrorKind::MediaNotFound, format!("cannot read {}: {error}", path.display()))
        .hint("check the disk and that the file is not being replaced")
}

/// `unsupported_media` for caps that no element on this machine takes.
pub(crate) fn no_plugin(path: &Path, caps: &gst::CapsRef) -> JobError {
    let name = caps.structure(0).map_or("unknown", |s| s.name().as_str());
    let codec = pbutils::pb_utils_get_codec_description(caps);
    let hint = hint(name, &|element| gst::ElementFactory::find(element).is_some());
    JobError::new(
        ErrorKind::UnsupportedMedia,
        format!("cannot decode {}: GStreamer has no plugin for {codec} ({name})", path.display()),
    )
    .hint(hint)
}

/// What to do about caps that no element takes: install what is not there, else convert the file.
fn hint(caps_name: &str, has: &dyn Fn(&str) -> bool) -> String {
    let package = PACKAGES.iter().find(|(caps, _)| *caps == caps_name).map(|(_, package)| *package);
    let wanted = WITNESSES.iter().filter(|(of, _)| package.is_none_or(|package| package == *of));
    let missing: Vec<&str> = wanted.filter(|(_, element)| !has(element)).map(|(package, _)| *package).collect();
    if missing.is_empty() {
        return "none of the installed plugins reads it; convert it: ffmpeg -i IN -c:v libx264 -c:a aac OUT.mp4"
            .to_owned();
    }
    format!("install {} where stage-decode runs", missing.join(", "))
}

/// `internal` for an element of GStreamer's core or base plugins that is missing.
pub(crate) fn no_element(name: &str) -> JobError {
    JobError::new(ErrorKind::Internal, format!("cannot decode anything: GStreamer has no element {name}"))
        .hint("install gstreamer1.0-plugins-base and gstreamer1.0-plugins-good where stage-decode runs")
}

/// Something in a file that no plugin of GStreamer reads.
pub(crate) struct Missing {
    /// Name of its caps; empty where GStreamer does not say.
    pub(crate) caps_name: String,
    /// Name of the track, where that is known.
    pub(crate) track: Option<String>,
    /// Whether ffmpeg may read it all the same.
    pub(crate) converts: bool,
    pub(crate) error: JobError,
}

/// The plugin that a message on the pipeline's bus finds missing; `None` if it reports something else.
pub(crate) fn missing(path: &Path, message: &gst::Message) -> Option<Missing> {
    let gst::MessageView::Element(element) = message.view() else { return None };
    let missing = pbutils::MissingPluginMessage::parse(element).ok()?;
    let caps = element.structure()?.get::<gst::Caps>("detail").ok();
    let caps_name = caps.as_ref().and_then(|caps| Some(caps.structure(0)?.name().to_string())).unwrap_or_default();
    let error = caps.map_or_else(|| unsupported(path, &missing.description()), |c| no_plugin(path, &c));
    Some(Missing { caps_name, track: None, converts: true, error })
}

/// The track of which a parser, as a message on the pipeline's bus reports, found nothing that can be decoded to the end of the
/// file (pictures without a key frame); `None` if it reports something else.
pub(crate) fn nothing_found(path: &Path, message: &gst::Message) -> Option<Missing> {
    let gst::MessageView::Error(error) = message.view() else { return None };
    let element = message.src()?.downcast_ref::<gst::Element>()?;
    let parses = element.factory()?.metadata("klass").is_some_and(|class| class.contains("Parser"));
    if !parses || !error.error().matches(gst::StreamError::WrongType) {
        return None;
    }
    let pad = element.static_pad("sink")?;
    let caps_name = pad.current_caps()?.structure(0)?.name().to_string();
    let track = pad.stream_id().and_then(|id| Some(id.rsplit('/').next()?.to_owned()));
    let what = match caps_name.starts_with("video/") {
        true => "no key frame, from which on pictures could be decoded, is in the file",
        false => "nothing that can be decoded is in the file",
    };
    let error = unsupported(path, &format!("{what} ({})", error.error()));
    Some(Missing { caps_name, track, converts: false, error })
}

/// Error that a message on the pipeline's bus reports; `None` if it reports none.
pub(crate) fn from_bus(path: &Path, message: &gst::Message) -> Option<JobError> {
    match message.view() {
        gst::MessageView::Error(error) => {
            let text = error.error().to_string();
            let debug = error.debug().unwrap_or_default();
            // The debug string's last line says what; the lines before say where in GStreamer.
            let detail = debug.lines().next_back().unwrap_or_default();
            Some(unsupported(path, &format!("{text} ({detail})")))
        }
        _ => missing(path, message).map(|missing| missing.error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_plugin_is_named_with_the_package_that_has_it_unless_that_is_installed() {
        crate::pipeline::init().unwrap();
        assert!(hint("video/x-h265", &|_| false).contains("install gstreamer1.0-libav where"));
        assert!(hint("video/x-h265", &|element| element != "qtdemux").contains("ffmpeg -i IN"));
        let others = hint("audio/x-new", &|element| element == "avdec_h264");
        assert!(others.contains("plugins-good, gstreamer1.0-plugins-bad") && !others.contains("libav"), "{others}");
        let caps = gst::Caps::builder("video/x-h265").build();
        let error = no_plugin(Path::new("/films/a.mp4"), &caps);
        assert_eq!(error.kind, ErrorKind::UnsupportedMedia);
        assert!(error.message.contains("/films/a.mp4") && error.message.contains("H.265"), "{error}");
        // What GStreamer itself finds missing arrives as a message.
        let source = gst::ElementFactory::make("fakesrc").build().unwrap();
        let message = pbutils::MissingPluginMessage::builder_for_decoder(&caps).src(&source).build();
        assert_eq!(from_bus(Path::new("/films/a.mp4"), &message), Some(error));
    }
}
