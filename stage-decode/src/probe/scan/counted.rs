//! Packets of one track, counted as they pass.

use std::sync::{Arc, Mutex};

use gst::prelude::*;
use gstreamer as gst;
use gstreamer_audio as gst_audio;

use crate::media_file::Reading;
use crate::picture::Orientation;
use crate::pipeline::{Kind, LastPackets, lock};
use crate::probe::examined::codec_name;
use crate::probe::h264::Fields;
use crate::timeline::{MAX_LISTED, Pass, Timeline};

/// Counts of one parsed pad.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) name: Option<String>,
    pub(super) caps: Option<gst::Caps>,
    /// Size of its first pictures, and of its largest.
    pub(super) sizes: Option<[[u32; 2]; 2]>,
    /// Whether others than the first follow.
    pub(super) is_resized: bool,
    pub(super) buffers: u64,
    pub(super) bytes: u64,
    /// Timestamps of pictures, in file order.
    pub(super) times: Vec<Option<gst::ClockTime>>,
    /// First timestamp and end of the last packet, in nanoseconds.
    pub(super) span: Option<(u64, u64)>,
    /// Nanoseconds that all packets last, and the last one that says it.
    pub(super) lasting_ns: u64,
    pub(super) last_ns: u64,
    /// Bytes of the last packet, and whether it is what a parser had left.
    pub(super) last_bytes: usize,
    pub(super) is_cut: bool,
    /// Number of the link of a chained file that it belongs to.
    pub(super) link: usize,
    pub(super) orientation: Orientation,
    /// Reader of pictures of H.264 that may come as fields.
    pub(super) fields: Option<Fields>,
    /// Packets that hold the second field of a picture.
    pub(super) second_fields: u64,
    /// The last packets, of pictures, and whether they are kept.
    pub(super) keeps_last: bool,
    pub(super) last: LastPackets,
    /// Whether the last one holds the second field of a picture.
    pub(super) ends_in_second: bool,
}

impl Counted {
    /// Notes the format of what follows.
    fn begin(&mut self, caps: gst::Caps) {
        self.last.begin(caps.clone());
        self.caps = Some(caps);
        self.resize([self.number("width"), self.number("height")]);
        if self.caps_name() == Some("video/x-h264") && self.fields.is_none() {
            let avcc = self.field::<gst::Buffer>("codec_data");
            let avcc = avcc.as_ref().and_then(|data| data.map_readable().ok());
            self.fields = Some(Fields::new(avcc.as_deref()));
        }
    }

    /// Notes the size of the pictures that follow.
    fn resize(&mut self, size: [u32; 2]) {
        if area(size) > 0 {
            let [first, largest] = self.sizes.unwrap_or([size; 2]);
            self.sizes = Some([first, if area(size) > area(largest) { size } else { largest }]);
            self.is_resized |= size != first;
        }
    }

    /// Extends the time that is spanned by that of a packet.
    fn extend(&mut self, buffer: &gst::Buffer) {
        self.last_bytes = buffer.size();
        self.is_cut = buffer.flags().contains(gst::BufferFlags::CORRUPTED);
        let lasts_ns = buffer.duration().map_or(0, gst::ClockTime::nseconds);
        // A parser does not read all of a picture that is cut: it is shown as long as the one before it.
        self.last_ns = if lasts_ns > 0 { lasts_ns } else { self.last_ns };
        self.lasting_ns = self.lasting_ns.saturating_add(lasts_ns);
        if let Some(start) = buffer.pts().map(|t| t.nseconds()) {
            let end = start.saturating_add(lasts_ns);
            let (first, last) = self.span.unwrap_or((start, end));
            self.span = Some((first.min(start), last.max(end)));
        }
    }

    /// Seconds that its packets last, or where these have no times what they say themselves.
    pub(super) fn length_s(&self) -> f64 {
        match (self.by_bytes_s(), self.span) {
            (Some(seconds), _) => seconds,
            (None, Some((start, end))) => (end - start) as f64 / 1e9,
            (None, None) => self.lasting_ns as f64 / 1e9,
        }
    }

    /// Seconds of a sound whose bytes tell how many samples it has: uncompressed, and ADPCM as WAV files have it, of which GStreamer
    /// takes a wrong rate of bytes. A block of that has four bits a sample behind a header, in which its first ones stand.
    fn by_bytes_s(&self) -> Option<f64> {
        let raw =
            self.caps.as_ref().and_then(|c| gst_audio::AudioInfo::from_caps(c).ok()).filter(|info| info.bpf() > 0);
        if let Some(info) = raw {
            return Some((self.bytes / u64::from(info.bpf())) as f64 / f64::from(info.rate()));
        }
        let number =
            |name: &str| self.field::<i32>(name).and_then(|value| u64::try_from(value).ok()).filter(|n| *n > 0);
        let (block, rate, channels) = (number("block_align")?, number("rate")?, number("channels")?);
        let (header, first) = match (self.caps_name()?, self.field::<String>("layout")?.as_str()) {
            ("audio/x-adpcm", "dvi") => (4, 1),
            ("audio/x-adpcm", "microsoft") => (7, 2),
            _ => return None,
        };
        let samples = block.checked_sub(header * channels)? * 2 / channels + first;
        Some((self.bytes / block * samples) as f64 / rate as f64)
    }

    /// Its pictures, and when they are shown, where their times tell. The last packet may give none.
    pub(super) fn pass(&self, is_timed: bool, gives_last: bool) -> Pass {
        let frames = self.buffers - u64::from(!gives_last);
        let counted = self.times.iter().take(frames as usize);
        let times = counted.map(|at| Some((at.filter(|_| is_timed)?.nseconds(), true)));
        Pass { frames, timeline: Timeline::new(times) }
    }

    /// Pictures per second, as they say, or as they come.
    pub(super) fn average_rate(&self) -> f64 {
        let told = self.field::<gst::Fraction>("framerate").filter(|f| f.numer() > 0 && self.second_fields == 0);
        match told {
            Some(rate) => f64::from(rate.numer()) / f64::from(rate.denom()),
            None => self.buffers as f64 / self.length_s().max(1e-3),
        }
    }

    pub(super) fn caps_name(&self) -> Option<&str> {
        Some(self.caps.as_ref()?.structure(0)?.name().as_str())
    }

    pub(super) fn codec(&self) -> String {
        match (self.caps_name().unwrap_or_default(), self.field::<i32>("mpegversion")) {
            ("audio/mpeg", Some(1)) => format!("mp{}", self.field::<i32>("layer").unwrap_or(3)),
            ("audio/mpeg", Some(_)) => "aac".to_owned(),
            (name, _) => codec_name(name),
        }
    }

    /// A number that its caps tell; 0 for none.
    pub(super) fn number(&self, name: &str) -> u32 {
        self.field::<i32>(name).and_then(|value| u32::try_from(value).ok()).unwrap_or(0)
    }

    /// Width and height of its first pictures.
    pub(super) fn first_size(&self) -> [u32; 2] {
        self.sizes.map_or([0; 2], |[first, _]| first)
    }

    /// Width and height of its largest pictures.
    pub(super) fn largest(&self) -> [u32; 2] {
        self.sizes.map_or([0; 2], |[_, largest]| largest)
    }

    /// Sentence about pictures whose size changes.
    pub(super) fn changes_size(&self) -> Option<String> {
        let ([width, height], [most_width, most_height]) = (self.first_size(), self.largest());
        self.is_resized.then(|| {
            format!(
                "the size of the pictures changes in the middle: the first are {width} x {height}, the largest {most_width} x \
                 {most_height}; each is scaled by its own size"
            )
        })
    }

    pub(super) fn field<'a, T: gst::glib::value::FromValue<'a>>(&'a self, name: &str) -> Option<T> {
        self.caps.as_ref()?.structure(0)?.get(name).ok()
    }
}

fn area(size: [u32; 2]) -> u64 {
    size.iter().map(|side| u64::from(*side)).product()
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
                let is_film = counted.caps_name().is_some_and(|name| Kind::Video.takes(name));
                if is_film && counted.keeps_last {
                    counted.last.take(buffer);
                }
                let fields = &mut counted.fields;
                counted.ends_in_second = fields
                    .as_mut()
                    .is_some_and(|fields| buffer.map_readable().is_ok_and(|packet| fields.is_second(&packet)));
                if counted.ends_in_second {
                    counted.second_fields += 1;
                    counted.extend(buffer);
                    return gst::PadProbeReturn::Ok;
                }
                counted.buffers += 1;
                counted.bytes += buffer.size() as u64;
                // One beyond the limit tells the timeline that there are more.
                let listed = counted.times.len() <= MAX_LISTED;
                if listed && is_film {
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
