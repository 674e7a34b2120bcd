//! The last packets of a track of pictures, and which of them the very last one may refer to.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use gst::prelude::*;
use gstreamer as gst;
use protocol::stage::Stop;

use super::connect::discard;
use super::ending::CutSample;
use super::limits::Limits;
use super::running::Running;
use super::selection::Selection;
use super::shared::{Refusal, Told, lock};
use super::source::MediaSource;
use super::{POLL, parser};
use crate::crew::Progress;
use crate::failure;
use crate::media_file::MediaFile;
use crate::unneeded::{Packets, Role};

/// Packets, and bytes, that are kept at most from a key picture on: where there are more the last one counts without a question.
const MAX_PACKETS: usize = 600;
const MAX_BYTES: usize = 32 << 20;

/// Last packets of a track of pictures, from a key picture on.
#[derive(Default)]
pub(crate) struct LastPackets {
    caps: Option<gst::Caps>,
    packets: VecDeque<gst::Buffer>,
    bytes: usize,
    /// How many there were of this format.
    count: u64,
    /// How many of those kept lie before the last key picture.
    before: usize,
    /// Whether there were more than are kept.
    is_part: bool,
}

impl LastPackets {
    /// Reads a file for the last packets of a track of pictures.
    ///
    /// # Errors
    /// The refusal of the file, `Cancelled`, and `unsupported_media` without progress for too long.
    pub(crate) fn read(
        media: &MediaFile,
        selection: &Selection,
        cut: CutSample,
        limits: Limits,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Self, Stop> {
        super::init()?;
        let (running, refusal) = (Running(gst::Pipeline::new()), Refusal::default());
        let source = MediaSource::new(media, selection.overlays.clone(), selection.part.clone());
        let parse = parser(media, &refusal, &Told::default(), Some(cut))?;
        let built = running.0.add_many([source.upcast_ref(), &parse]).and_then(|()| source.link(&parse));
        built.map_err(|_| failure::no_element("parsebin"))?;
        let last = Arc::new(Mutex::new(LastPackets::default()));
        parse.connect_pad_added({
            let (pipeline, last, reading) = (running.0.downgrade(), last.clone(), media.reading().clone());
            move |_, pad| {
                let Some(whole) = pipeline.upgrade() else { return };
                let (last, reading) = (last.clone(), reading.clone());
                pad.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
                    match &info.data {
                        Some(gst::PadProbeData::Buffer(packet)) => lock(&last).take(packet),
                        Some(gst::PadProbeData::Event(event)) => {
                            if let gst::EventView::Caps(caps) = event.view() {
                                lock(&last).begin(caps.caps_owned());
                            }
                        }
                        _ => {}
                    }
                    reading.step();
                    gst::PadProbeReturn::Ok
                });
                discard(&whole, pad);
            }
        });
        let bus = running.0.bus().ok_or_else(|| failure::no_element("bus"))?;
        let mut progress = Progress::new(media);
        let mut ended = running.0.set_state(gst::State::Playing).is_err();
        while !ended {
            let kinds = [gst::MessageType::Error, gst::MessageType::Eos];
            ended = bus.timed_pop_filtered(POLL, &kinds).is_some();
            if cancelled() {
                return Err(Stop::Cancelled);
            }
            if let Some(error) = refusal.get() {
                return Err(error.into());
            }
            progress.check(limits.stall)?;
        }
        drop(running);
        Ok(std::mem::take(&mut *lock(&last)))
    }

    /// Notes the format of what follows.
    pub(crate) fn begin(&mut self, caps: gst::Caps) {
        *self = LastPackets { caps: Some(caps), ..LastPackets::default() };
    }

    /// Takes the next packet.
    pub(crate) fn take(&mut self, packet: &gst::Buffer) {
        // Of a packet that is cut a parser may not see that it is no key picture: the last one is none.
        if self.packets.back().is_some_and(|last| !last.flags().contains(gst::BufferFlags::DELTA_UNIT)) {
            self.drop_first(self.before);
            (self.before, self.is_part) = (self.packets.len() - 1, false);
        }
        self.count += 1;
        self.bytes += packet.size();
        self.packets.push_back(packet.clone());
        if self.packets.len() > MAX_PACKETS || self.bytes > MAX_BYTES {
            self.is_part |= self.before == 0;
            self.drop_first(if self.before > 0 { self.before } else { self.packets.len() });
            self.before = 0;
        }
    }

    fn drop_first(&mut self, count: usize) {
        let dropped: usize = self.packets.drain(..count).map(|packet| packet.size()).sum();
        self.bytes -= dropped;
    }

    /// How many packets there were of the last format.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Format and packets that decide what the last one gives: itself, and those before it that it may refer to; none where they are not
    /// all kept.
    pub(crate) fn deciding(&self) -> Option<(&gst::Caps, Vec<&gst::Buffer>)> {
        match (&self.caps, self.is_part, self.packets.len()) {
            (Some(caps), false, 1..) => Some((caps, self.referred(caps))),
            _ => None,
        }
    }

    /// The last packet, and those before it that it may refer to.
    fn referred(&self, caps: &gst::CapsRef) -> Vec<&gst::Buffer> {
        let last = self.packets.len().saturating_sub(1);
        let mut reader = Packets::of(caps);
        let mut role = |packet: &gst::Buffer| match (&mut reader, packet.map_readable()) {
            (Some(reader), Ok(data)) => reader.role(&data),
            _ => Role::Referred,
        };
        let mut referred = Vec::new();
        for (at, packet) in self.packets.iter().enumerate() {
            let role = role(packet);
            if role == Role::Begins && at < last {
                referred.clear();
            }
            if role != Role::Unreferred || at == last {
                referred.push(packet);
            }
        }
        referred
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets of which those of `k` are key pictures, and `size` bytes each; how many are kept, and whether they are all since a key picture.
    fn kept(packets: &str, size: usize) -> (usize, bool) {
        super::super::init().unwrap();
        let mut last = LastPackets::default();
        last.begin(gst::Caps::new_empty_simple("video/x-h264"));
        for kind in packets.chars() {
            let mut packet = gst::Buffer::with_size(size).unwrap();
            if kind != 'k' {
                packet.get_mut().unwrap().set_flags(gst::BufferFlags::DELTA_UNIT);
            }
            last.take(&packet);
        }
        assert_eq!(last.count(), packets.len() as u64);
        assert_eq!(last.bytes, last.packets.len() * size);
        (last.packets.len(), !last.is_part)
    }

    #[test]
    fn what_the_last_packet_cannot_refer_to_is_not_decoded() {
        super::super::init().unwrap();
        let caps = gst::Caps::builder("video/x-h264").field("coded-picture-structure", "frame");
        let caps = caps.field("stream-format", "byte-stream").build();
        let numbers = |units: &[u8]| {
            let mut last = LastPackets::default();
            last.begin(caps.clone());
            for (n, unit) in units.iter().enumerate() {
                let mut packet = gst::Buffer::from_slice([0, 0, 1, *unit, n as u8]);
                if unit & 0x1f != 5 {
                    packet.get_mut().unwrap().set_flags(gst::BufferFlags::DELTA_UNIT);
                }
                last.take(&packet);
            }
            last.referred(&caps).iter().map(|packet| packet.map_readable().unwrap()[4]).collect::<Vec<_>>()
        };
        let (idr, reference, other) = (0x65, 0x41, 0x01);
        assert_eq!(numbers(&[idr, reference, other, idr, other, reference, other]), [3, 5, 6]);
        assert_eq!(numbers(&[idr, other, reference, idr]), [0, 2, 3], "the last one may only look like a key picture");
    }

    #[test]
    fn the_packets_from_the_second_last_key_picture_on_are_kept() {
        assert_eq!([kept("kdd", 1), kept("kddkd", 1), kept("kddkddkddd", 1)], [(3, true), (5, true), (7, true)]);
        assert_eq!(kept("kddkddk", 1), (7, true), "a last one that is cut may only look like one");
        assert_eq!(kept("kkkk", 1), (3, true));
    }

    #[test]
    fn where_there_are_too_many_those_from_the_last_key_picture_on_are_kept_or_nothing_is_asked() {
        let many = "d".repeat(MAX_PACKETS / 2);
        assert_eq!(kept(&format!("k{many}k{many}"), 1), (MAX_PACKETS / 2 + 1, true));
        assert!(!kept(&format!("k{many}{many}"), 1).1);
        assert_eq!(kept(&format!("k{many}{many}kdkd"), 1), (4, true), "another key picture came");
        assert!(!kept("kddd", MAX_BYTES / 3).1);
    }
}
