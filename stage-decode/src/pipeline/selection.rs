//! Selection of the track to decode, and the bytes that the demuxer is shown in place of the file's own.

use std::ops::Range;

use super::ending::CutSample;

/// Caps names of still pictures that also make films.
const FILMS_OF_STILLS: [&str; 5] = ["image/jpeg", "image/png", "image/x-j2c", "image/x-jpc", "image/jp2"];

/// Kind of a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Video,
    Audio,
}

impl Kind {
    /// Whether a track with caps of this name is of this kind. Films of single pictures (Motion JPEG, PNG, JPEG 2000) have
    /// the caps name of a still picture.
    pub(crate) fn takes(self, caps_name: &str) -> bool {
        match self {
            Kind::Video => caps_name.starts_with("video/") || FILMS_OF_STILLS.contains(&caps_name),
            Kind::Audio => caps_name.starts_with("audio/"),
        }
    }

    /// The word for it in messages.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Kind::Video => "video",
            Kind::Audio => "audio",
        }
    }
}

/// Track to decode, and how the demuxer is to see the file.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) kind: Kind,
    /// Name that the demuxer gives the track; none for the first track of the kind.
    pub(crate) track: Option<String>,
    /// Whether the track begins after others have ended (a later link of a chained Ogg file).
    pub(crate) is_later: bool,
    /// Whether the marks of codec delay and padding are removed before the decoder: [`crate::probe::Trim`] cuts both.
    pub(crate) unmarked: bool,
    /// Bytes of the file that the demuxer reads otherwise than they are.
    pub(crate) overlays: Vec<Overlay>,
    /// Part of the file that the demuxer takes for all of it (one of several recordings); none for the whole.
    pub(crate) part: Option<Range<u64>>,
    /// Its last sample, where the file has a part of it.
    pub(crate) cut: Option<CutSample>,
    /// Whether its last packet, of which the decoder makes nothing, is left out.
    pub(crate) leaves_last: bool,
}

/// Bytes that replace the file's own from position `at` on, for the demuxer only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overlay {
    pub(crate) at: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Overlay {
    /// Position behind its last byte.
    pub(crate) fn end(&self) -> u64 {
        self.at.saturating_add(self.bytes.len() as u64)
    }
}
