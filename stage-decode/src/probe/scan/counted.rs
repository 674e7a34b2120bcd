//! Packets of one track, counted as they pass.

use std::sync::{Arc, Mutex};

use gst::prelude::*;
use gstreamer as gst;
use gstreamer_audio as gst_audio;

use crate::media_file::Reading;
use crate::picture::Orientation;
use crate::pipeline::{Kind, lock};
use crate::probe::examined::codec_name;
use crate::probe::h264::Fields;
use crate::timeline::{MAX_LISTED, Pass, Timeline};

/// Counts of one parsed pad.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) name: Option<String>,
    pub(super) caps: Option<gst::Caps>,
    pub(super) buffers: u64,
    pub(super) bytes: u64,
    /// Timestamps of pictures, in file order.
    pub(super) times: Vec<Option<gst::ClockTime>>,
    /// First timestamp and end of the last packet, in nanoseconds.
    pub(super) span: Option<(u64, u64)>,
    /// Number of the link of a chained file that it belongs to.
    pub(super) link: usize,
    pub(super) orientation: Orientation,
    /// Reader of pictures of H.264 that may come as fields.
    pub(super) fields: Option<Fields>,
    /// Packets that hold the second field of a picture.
    pub(super) second_fields: u64,
}

impl Counted {
    /// Notes the format of what follows.
    fn begin(&mut self, caps: gst::Caps) {
        self.caps = Some(caps);
        if self.caps_name() == Some("video/x-h264") && self.fields.is_none() {
            let avcc = self.field::<gst::Buffer>("codec_data");
            let avcc = avcc.as_ref().and_then(|data| data.map_readable().ok());
            self.fields = Some(Fields::new(avcc.as_deref()));
        }
    }

    /// Extends the time that is spanned by that of a packet.
    fn extend(&mut self, buffer: &gst::Buffer) {
        if let Some(start) = buffer.pts().map(|t| t.nseconds()) {
            let end = start + buffer.duration().map_or(0, |d| d.nseconds());
            let (first, last) = self.span.unwrap_or((start, end));
            self.span = Some((first.min(start), last.max(end)));
        }
    }

    pub(super) fn length_s(&self) -> f64 {
        let raw =
            self.caps.as_ref().and_then(|c| gst_audio::AudioInfo::from_caps(c).ok()).filter(|info| info.bpf() > 0);
        match (raw, self.span) {
            (Some(info), _) => (self.bytes / u64::from(info.bpf())) as f64 / f64::from(info.rate()),
            (None, Some((start, end))) => (end - start) as f64 / 1e9,
            (None, None) => 0.0,
        }
    }

    /// Its pictures, and when they are shown.
    pub(super) fn pass(&self) -> Pass {
        let timeline = Timeline::new(self.times.iter().map(|at| Some((at.as_ref()?.nseconds(), true))));
        Pass { frames: self.buffers, timeline }
    }

    pub(super) fn caps_name(&self) -> Option<&str> {
        Some(self.caps.as_ref()?.structure(0)?.name().as_str())
    }

    pub(super) fn codec(&self) -> String {
        match (self.caps_name().unwrap_or_default(), self.field::<i32>("mpegversion")) {
            ("audio/mpeg", Some(1)) => "mp3".to_owned(),
            ("audio/mpeg", Some(_)) => "aac".to_owned(),
            (name, _) => codec_name(name),
        }
    }

    pub(super) fn field<'a, T: gst::glib::value::FromValue<'a>>(&'a self, name: &str) -> Option<T> {
        self.caps.as_ref()?.structure(0)?.get(name).ok()
    }
}

/// Counts the packets that pass a pad.
pub(super) fn watch(pad: &gst::Pad, counted: Arc<Mutex<Counted>>, reading: Reading) {
    let mask = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
    pad.add_probe(mask, move |_, info| {
        let mut counted = lock(&counted);
        match &info.data {
            Some(gst::PadProbeData::Buffer(buffer)) => {
                reading.step();
                // Theora's three headers are packets too.
                if counted.caps_name() == Some("video/x-theora") && buffer.flags().contains(gst::BufferFlags::HEADER) {
                    return gst::PadProbeReturn::Ok;
                }
                if let Some(fields) = &mut counted.fields
                    && buffer.map_readable().is_ok_and(|packet| fields.is_second(&packet))
                {
                    counted.second_fields += 1;
                    counted.extend(buffer);
                    return gst::PadProbeReturn::Ok;
                }
                counted.buffers += 1;
                counted.bytes += buffer.size() as u64;
                // One beyond the limit tells the timeline that there are more.
                let listed = counted.times.len() <= MAX_LISTED;
                if listed && counted.caps_name().is_some_and(|name| Kind::Video.takes(name)) {
                    counted.times.push(buffer.pts());
                }
                counted.extend(buffer);
            }
            Some(gst::PadProbeData::Event(event)) => match event.view() {
                gst::EventView::Caps(caps) => counted.begin(caps.caps_owned()),
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
