//! GStreamer source that reads an open file by position, and shows the demuxer overlays in place of some of its bytes, or behind its end.
//!
//! Unlike `filesrc` it opens nothing: what was probed is what is decoded. Several pipelines may read one file at once.

use std::ops::Range;

use gst::glib;
use gst::subclass::prelude::*;
use gstreamer as gst;
use gstreamer_base as gst_base;

use super::selection::Overlay;
use crate::media_file::MediaFile;

glib::wrapper! {
    /// Source element of a pipeline.
    pub struct MediaSource(ObjectSubclass<element::MediaSource>)
        @extends gst_base::BaseSrc, gst::Element, gst::Object;
}

impl MediaSource {
    /// A source of a file, or of a part of it, with these overlays.
    pub(crate) fn new(media: &MediaFile, mut overlays: Vec<Overlay>, part: Option<Range<u64>>) -> Self {
        let source: MediaSource = glib::Object::new();
        overlays.sort_unstable_by_key(|overlay| overlay.at);
        let content = element::Content { media: media.clone(), overlays, part };
        assert!(source.imp().content.set(content).is_ok(), "a new source has no content yet. This is a bug.");
        source
    }
}

/// Lays the overlays, sorted by position, over bytes that start at `start`.
fn overlay(bytes: &mut [u8], start: u64, overlays: &[Overlay]) {
    let end = start + bytes.len() as u64;
    let first = overlays.partition_point(|overlay| overlay.end() <= start);
    for overlay in overlays[first..].iter().take_while(|overlay| overlay.at < end) {
        for (at, byte) in (overlay.at..).zip(&overlay.bytes) {
            let place = at.checked_sub(start).and_then(|place| bytes.get_mut(place as usize));
            place.into_iter().for_each(|place| *place = *byte);
        }
    }
}

mod element {
    use std::ops::Range;
    use std::sync::{LazyLock, OnceLock};

    use gst::glib;
    use gst::subclass::prelude::*;
    use gst_base::subclass::prelude::*;
    use gstreamer as gst;
    use gstreamer_base as gst_base;

    use super::{Overlay, overlay};
    use crate::media_file::MediaFile;

    /// File and overlays of a source.
    pub(super) struct Content {
        pub(super) media: MediaFile,
        /// Sorted by position.
        pub(super) overlays: Vec<Overlay>,
        /// Part of the file that is shown.
        pub(super) part: Option<Range<u64>>,
    }

    impl Content {
        /// Where the last overlay ends.
        fn overlaid(&self) -> u64 {
            self.overlays.last().map_or(0, Overlay::end)
        }
    }

    /// State of a source element.
    #[derive(Default)]
    pub struct MediaSource {
        /// Set once, right after the element was made.
        pub(super) content: OnceLock<Content>,
    }

    #[glib::object_subclass]
    impl ObjectSubclass for MediaSource {
        const NAME: &'static str = "VidiMediaSource";
        type Type = super::MediaSource;
        type ParentType = gst_base::BaseSrc;
    }

    impl ObjectImpl for MediaSource {}
    impl GstObjectImpl for MediaSource {}

    impl ElementImpl for MediaSource {
        fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
            static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
                gst::subclass::ElementMetadata::new("Media file source", "Source/File", "Reads an open file", "Vidi")
            });
            Some(&*METADATA)
        }

        fn pad_templates() -> &'static [gst::PadTemplate] {
            static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
                let any = gst::Caps::new_any();
                let (source, always) = (gst::PadDirection::Src, gst::PadPresence::Always);
                vec![gst::PadTemplate::new("src", source, always, &any).expect("a valid template. This is a bug.")]
            });
            &TEMPLATES
        }
    }

    impl BaseSrcImpl for MediaSource {
        fn is_seekable(&self) -> bool {
            true
        }

        fn size(&self) -> Option<u64> {
            let content = self.content.get()?;
            match &content.part {
                Some(part) => Some(part.end - part.start),
                None => Some(content.media.file().metadata().ok()?.len().max(content.overlaid())),
            }
        }

        fn fill(
            &self,
            offset: u64,
            length: u32,
            buffer: &mut gst::BufferRef,
        ) -> Result<gst::FlowSuccess, gst::FlowError> {
            let content = self.content.get().ok_or(gst::FlowError::NotNegotiated)?;
            let read = {
                let mut map = buffer.map_writable().map_err(|_| gst::FlowError::Error)?;
                let part = content.part.clone().unwrap_or(0..u64::MAX);
                let at = part.start.saturating_add(offset);
                let wanted = (map.len() as u64).min(length.into()).min(part.end.saturating_sub(at)) as usize;
                let mut read = content.media.read_as_far(&mut map[..wanted], at).map_err(|error| {
                    gst::element_imp_error!(self, gst::ResourceError::Read, ["read failed: {error}"]);
                    gst::FlowError::Error
                })?;
                let shown = wanted.min(content.overlaid().saturating_sub(at) as usize).max(read);
                map[read..shown].fill(0);
                read = shown;
                overlay(&mut map[..read], at, &content.overlays);
                read
            };
            if read == 0 {
                return Err(gst::FlowError::Eos);
            }
            buffer.set_size(read);
            buffer.set_offset(offset);
            buffer.set_offset_end(offset + read as u64);
            Ok(gst::FlowSuccess::Ok)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlays_replace_their_bytes_and_are_clipped_at_both_ends() {
        let overlays = [(2, &b"ab"[..]), (7, b"cdef"), (20, b"g")];
        let overlays = overlays.map(|(at, bytes)| Overlay { at, bytes: bytes.to_vec() });
        let over = |start: u64, length: usize| {
            let mut bytes = vec![b'.'; length];
            overlay(&mut bytes, start, &overlays);
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(over(0, 12), "..ab...cdef.");
        assert_eq!([over(3, 5), over(8, 2), over(9, 11), over(11, 9)], ["b...c", "de", "ef.........", "........."]);
        assert_eq!(over(10, 11), "f.........g");
    }
}
