//! End of a file that is cut short: what is there of its last packet reaches the decoder with the bytes that it has, as in ffmpeg.
//!
//! ffmpeg's demuxers give a packet of which a part is there (`av_get_packet`), its parsers what they have left at the end
//! (`ff_combine_frame`), and the decoder makes of it what it can. GStreamer's leave out both.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use gst::prelude::*;
use gstreamer as gst;

use super::shared::lock;

/// Parsers that leave out what they have left. Others hand it out, or change what they are given.
const PARSERS: [&str; 5] = ["aacparse", "ac3parse", "dcaparse", "jpegparse", "mpegaudioparse"];

/// Bytes that are kept of what a parser was given at most: one that finds no packet in so many has nothing left that decodes.
const MAX_KEPT: usize = 16 << 20;

/// Bytes in front of AC-3 in a packet of a program stream, which tell where its first frame begins.
const PRIVATE_HEADER: usize = 2;

/// Sample of which a part is there: the source fills it up with zeros, so that the demuxer hands it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CutSample {
    /// How many samples of the track lie before it.
    pub(crate) number: u64,
    /// Bytes that it had, and those that are there.
    pub(crate) bytes: usize,
    pub(crate) there: usize,
}

/// Watches the elements of a parsebin for the end of the file.
pub(super) fn watch(parsebin: &gst::Element, cut: Option<CutSample>) {
    parsebin.connect("deep-element-added", false, move |values| {
        let element = values.get(2)?.get::<gst::Element>().ok()?;
        let name = element.factory()?.name();
        if PARSERS.contains(&name.as_str()) {
            hand_out_rest(&element);
        } else if let Some(cut) = cut.filter(|_| name == "qtdemux") {
            element.connect_pad_added(move |_, pad| shorten(pad, cut));
        }
        None
    });
}

/// Takes from a sample that is cut what is not in the file.
fn shorten(pad: &gst::Pad, cut: CutSample) {
    let passed = Mutex::new(0);
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let mut passed = lock(&passed);
        if let Some(buffer) = info.buffer_mut() {
            if *passed == cut.number && buffer.size() == cut.bytes {
                buffer.make_mut().set_size(cut.there);
            }
            *passed += 1;
        }
        gst::PadProbeReturn::Ok
    });
}

/// Leaves out the last packet of a pad, of which the decoder makes nothing: GStreamer 1.22 ends with an error what it takes of ffmpeg's decoders at
/// the end, and pictures that come later are lost.
pub(super) fn leave_out_last(pad: &gst::Pad) {
    let held = Mutex::new(None::<gst::Buffer>);
    pad.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM, move |pad, info| {
        match &mut info.data {
            Some(gst::PadProbeData::Buffer(buffer)) => {
                let Some(before) = lock(&held).replace(buffer.clone()) else { return gst::PadProbeReturn::Handled };
                *buffer = before;
            }
            // What follows is of another format, or of another time.
            Some(gst::PadProbeData::Event(event))
                if matches!(event.type_(), gst::EventType::Caps | gst::EventType::Segment) =>
            {
                if let (Some(before), Some(peer)) = (lock(&held).take(), pad.peer()) {
                    let _ = peer.chain(before);
                }
            }
            _ => {}
        }
        gst::PadProbeReturn::Ok
    });
}

/// Hands out what a parser has left when the stream ends.
fn hand_out_rest(parser: &gst::Element) {
    let (Some(sink), Some(source)) = (parser.static_pad("sink"), parser.static_pad("src")) else { return };
    let given = Arc::new(Mutex::new(Given::default()));
    sink.add_probe(gst::PadProbeType::BUFFER, {
        let given = given.clone();
        move |pad, info| {
            if let Some(gst::PadProbeData::Buffer(buffer)) = &info.data {
                let pulled_at = Some(info.offset).filter(|_| info.mask.contains(gst::PadProbeType::PULL));
                let content = behind_private_header(pad, buffer);
                lock(&given).take(pulled_at, content.as_ref().unwrap_or(buffer));
            }
            gst::PadProbeReturn::Ok
        }
    });
    source.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM, move |pad, info| {
        match &info.data {
            Some(gst::PadProbeData::Buffer(buffer)) => lock(&given).hand_out(buffer),
            Some(gst::PadProbeData::Event(event)) if event.type_() == gst::EventType::Eos => {
                let rest = std::mem::take(&mut *lock(&given)).rest();
                if let (Some(rest), Some(peer)) = (rest, pad.peer()) {
                    // Where nothing more is taken there is nobody to use it.
                    let _ = peer.chain(rest);
                }
            }
            _ => {}
        }
        gst::PadProbeReturn::Ok
    });
}

/// What stands behind the two bytes in front of sound of a private kind in a program stream, which the parser leaves out.
fn behind_private_header(pad: &gst::Pad, buffer: &gst::Buffer) -> Option<gst::Buffer> {
    let caps = pad.current_caps().filter(|_| buffer.size() >= PRIVATE_HEADER)?;
    let is_private = caps.structure(0)?.name() == "audio/x-private1-ac3";
    is_private.then(|| buffer.copy_region(gst::BufferCopyFlags::all(), PRIVATE_HEADER..).ok()).flatten()
}

/// What a parser was given, from the packet on that it handed out last.
#[derive(Default)]
struct Given {
    /// Buffers, and where in the stream each begins.
    kept: VecDeque<(u64, gst::Buffer)>,
    bytes: usize,
    /// Where the next one begins.
    next: u64,
    last: Option<gst::Buffer>,
}

impl Given {
    fn take(&mut self, pulled_at: Option<u64>, buffer: &gst::Buffer) {
        let at = pulled_at.unwrap_or(self.next);
        self.next = at.saturating_add(buffer.size() as u64);
        self.bytes += buffer.size();
        self.kept.push_back((at, buffer.clone()));
        while self.bytes > MAX_KEPT
            && let Some((_, first)) = self.kept.pop_front()
        {
            self.bytes -= first.size();
        }
    }

    /// Notes a packet that the parser hands out, with its position in the stream.
    fn hand_out(&mut self, packet: &gst::Buffer) {
        while let Some((at, first)) = self.kept.front()
            && packet.offset() != u64::MAX
            && at.saturating_add(first.size() as u64) <= packet.offset()
        {
            self.bytes -= first.size();
            self.kept.pop_front();
        }
        self.last = Some(packet.clone());
    }

    /// What lies behind the last packet, as one more that is marked.
    fn rest(self) -> Option<gst::Buffer> {
        let last = self.last.as_ref()?;
        let (start, length) = (last.offset(), last.size());
        let bytes = self.from(start);
        let (packet, rest) = bytes.split_at_checked(length).filter(|(_, rest)| !rest.is_empty())?;
        // A parser may change what it hands out, or count otherwise.
        if last.map_readable().ok()?.as_slice() != packet {
            return None;
        }
        let end = start + length as u64;
        let first = self.kept.iter().find(|(at, _)| *at == end).map(|(_, buffer)| buffer);
        let mut packet = gst::Buffer::from_slice(rest.to_vec());
        let times = packet.get_mut()?;
        let follows = last.pts().zip(last.duration()).and_then(|(at, length)| at.checked_add(length));
        times.set_pts(first.and_then(|buffer| buffer.pts()).or(follows));
        times.set_dts(first.and_then(|buffer| buffer.dts()));
        times.set_flags(gst::BufferFlags::CORRUPTED);
        times.set_duration(last.duration().or(first.and_then(|buffer| buffer.duration())));
        Some(packet)
    }

    /// The bytes from a position of the stream on.
    fn from(&self, start: u64) -> Vec<u8> {
        let (mut bytes, mut next) = (Vec::new(), start);
        for (at, buffer) in &self.kept {
            let Some(skipped) = next.checked_sub(*at).filter(|skipped| *skipped < buffer.size() as u64) else {
                continue;
            };
            if let Ok(map) = buffer.map_readable() {
                bytes.extend_from_slice(&map[skipped as usize..]);
                next = at + buffer.size() as u64;
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(bytes: &'static [u8], offset: u64) -> gst::Buffer {
        let mut buffer = gst::Buffer::from_slice(bytes);
        let times = buffer.get_mut().unwrap();
        times.set_offset(offset);
        times.set_pts((offset < u64::MAX).then(|| gst::ClockTime::from_mseconds(offset)));
        times.set_duration(gst::ClockTime::from_mseconds(4));
        buffer
    }

    fn rest(given: &[&'static [u8]], packet: &'static [u8], offset: u64) -> Option<(Vec<u8>, u64)> {
        super::super::init().unwrap();
        let mut all = Given::default();
        given.iter().for_each(|bytes| all.take(None, &buffer(bytes, u64::MAX)));
        all.hand_out(&buffer(packet, offset));
        let rest = all.rest()?;
        Some((rest.map_readable().unwrap().to_vec(), rest.pts().unwrap().mseconds()))
    }

    #[test]
    fn what_lies_behind_the_last_packet_is_left_and_follows_it_in_time() {
        assert_eq!(rest(&[b"..ab", b"cdef", b"g"], b"abcd", 2), Some((b"efg".to_vec(), 6)));
        assert_eq!(rest(&[b"..ab", b"cd"], b"abcd", 2), None, "nothing is left");
        assert_eq!(rest(&[b"..ab", b"cdef"], b"ABCD", 2), None, "the packet was changed");
        assert_eq!(rest(&[b"..ab", b"cdef"], b"abcd", u64::MAX), None, "its position is not known");
        assert_eq!(Given::default().rest().map(|_| ()), None, "no packet");
    }

    #[test]
    fn what_is_pulled_twice_counts_once() {
        super::super::init().unwrap();
        let mut all = Given::default();
        for (at, bytes) in [(0, &b"abcd"[..]), (0, b"abcdef"), (4, b"efgh"), (2, b"cdefgh")] {
            all.take(Some(at), &buffer(bytes, u64::MAX));
        }
        all.hand_out(&buffer(b"cd", 2));
        assert_eq!(&*all.rest().unwrap().map_readable().unwrap(), b"efgh");
    }
}
