//! Coded pictures that no other refers to: one that is not picked either need not be decoded. What is left decodes to the same pictures, as
//! the two formats promise (ITU-T H.264, 7.4.1, `nal_ref_idc`; ITU-T H.265, 7.4.2.2, sub-layer non-reference pictures). Encoders make every
//! second picture such a one, or fewer.
//!
//! How units lie in a packet: ISO/IEC 14496-15, 5.3.3.1 (`avcC`) and 8.3.3.1 (`hvcC`); start codes: Annex B of either.

use std::sync::{Arc, Mutex};

use gst::prelude::*;
use gstreamer as gst;

use crate::picks::Picks;
use crate::pipeline::lock;
use crate::timeline::Timeline;

/// Drops packets in front of the decoder that will be linked to `pad` whose pictures are neither needed nor referred to.
pub(crate) fn drop_unneeded(pad: &gst::Pad, timeline: Arc<Timeline>, picks: Picks) {
    pad.connect_linked(move |_, source| {
        let Some(decoder) = source.parent_element().and_then(|decoder| decoder.static_pad("sink")) else { return };
        let (timeline, packets) = (timeline.clone(), Mutex::new(None::<Packets>));
        decoder.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
            let mut packets = lock(&packets);
            match &info.data {
                Some(gst::PadProbeData::Event(event)) => {
                    if let gst::EventView::Caps(caps) = event.view() {
                        *packets = Packets::of(caps.caps());
                    }
                }
                Some(gst::PadProbeData::Buffer(buffer)) => {
                    let unneeded = |at: gst::ClockTime| !is_needed(&timeline, picks, at.nseconds());
                    if let (Some(packets), Ok(data)) = (&mut *packets, buffer.map_readable())
                        && !packets.is_referred_to(&data)
                        && buffer.pts().is_some_and(unneeded)
                    {
                        // Consumed here. (With Drop, gstreamer-rs and GStreamer 1.22 release the buffer twice.)
                        return gst::PadProbeReturn::Handled;
                    }
                }
                _ => {}
            }
            gst::PadProbeReturn::Ok
        });
    });
}

/// Whether a picture is picked, stands in for the next one should that not decode, or is the last one, which stands in for all that is
/// planned beyond it. One whose number the time does not tell may be any of them.
fn is_needed(timeline: &Timeline, picks: Picks, at: u64) -> bool {
    timeline.only_at(at).is_none_or(|number| picks.any_in(number..number + 2) || number + 1 >= timeline.shown_count())
}

/// Packets of a track in front of a decoder, each of which holds one picture.
#[derive(Debug, PartialEq, Eq)]
struct Packets {
    codec: Codec,
    /// Bytes of a unit's length; 0 where start codes part them.
    length_bytes: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Codec {
    H264,
    H265 {
        /// Temporal sub-layers that any sequence has at most; 0 while none is known.
        sub_layers: u8,
    },
}

/// What a unit tells of the picture that it belongs to.
enum Unit {
    /// Part of one that others refer to, or may.
    Referred,
    /// Part of one that no other refers to.
    Unreferred,
    /// No part of a picture.
    Other,
}

impl Packets {
    /// Packets with these caps, where they hold whole frames of a format that is known here.
    fn of(caps: &gst::CapsRef) -> Option<Self> {
        let structure = caps.structure(0)?;
        let told = |field: &str| structure.get::<&str>(field).ok();
        let header = structure.get::<gst::Buffer>("codec_data").ok();
        let header = header.as_ref().and_then(|header| header.map_readable().ok());
        let (is_framed, header) = (told("stream-format") != Some("byte-stream"), header.as_deref().unwrap_or(&[]));
        let length_bytes = |at: usize| if is_framed { header.get(at).map(|b| usize::from(b & 3) + 1) } else { Some(0) };
        match structure.name().as_str() {
            // One of two fields says nothing of the other.
            "video/x-h264" if told("coded-picture-structure") == Some("frame") => {
                Some(Packets { codec: Codec::H264, length_bytes: length_bytes(4)? })
            }
            "video/x-h265" => {
                let sub_layers = if is_framed { header.get(21)? >> 3 & 7 } else { 0 };
                Some(Packets { codec: Codec::H265 { sub_layers }, length_bytes: length_bytes(21)? })
            }
            _ => None,
        }
    }

    /// Whether other pictures refer to that of a packet, or may. All parts of a picture say the same.
    fn is_referred_to(&mut self, packet: &[u8]) -> bool {
        let mut rest = packet;
        while let Some(unit) = self.next_unit(&mut rest) {
            match self.unit(unit) {
                Unit::Referred => return true,
                Unit::Unreferred => return false,
                Unit::Other => {}
            }
        }
        true
    }

    /// Takes the next unit off a packet; of one behind a start code its end is not looked for.
    fn next_unit<'p>(&self, rest: &mut &'p [u8]) -> Option<&'p [u8]> {
        if self.length_bytes > 0 {
            let (length, units) = rest.split_at_checked(self.length_bytes)?;
            let length = length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
            let (unit, units) = units.split_at_checked(length)?;
            *rest = units;
            return Some(unit);
        }
        let start = rest.windows(3).position(|code| code == [0, 0, 1])?;
        *rest = &rest[start + 3..];
        Some(*rest)
    }

    fn unit(&mut self, unit: &[u8]) -> Unit {
        match (&mut self.codec, unit) {
            (Codec::H264, &[header, ..]) => match header & 0x1f {
                1 | 2 | 5 if header & 0x60 == 0 => Unit::Unreferred,
                1..=5 => Unit::Referred,
                _ => Unit::Other,
            },
            (Codec::H265 { sub_layers }, &[kind, layer, ref content @ ..]) => {
                let (kind, layer, sub_layer) = (kind >> 1 & 0x3f, (kind & 1) << 5 | layer >> 3, layer & 7);
                match kind {
                    // Pictures of a higher sub-layer may refer to one that those of its own do not.
                    0..=14 if kind % 2 == 0 && layer == 0 && sub_layer == *sub_layers => Unit::Unreferred,
                    0..=31 => Unit::Referred,
                    33 => {
                        let most = content.first().map_or(u8::MAX, |sequence| (sequence >> 1 & 7) + 1);
                        *sub_layers = most.max(*sub_layers);
                        Unit::Other
                    }
                    _ => Unit::Other,
                }
            }
            _ => Unit::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;

    fn framed(units: &[&[u8]]) -> Vec<u8> {
        units.iter().flat_map(|unit| [&(unit.len() as u32).to_be_bytes()[..], unit].concat()).collect()
    }

    fn started(units: &[&[u8]]) -> Vec<u8> {
        units.iter().flat_map(|unit| [&[0, 0, 1][..], unit].concat()).collect()
    }

    #[test]
    fn a_picture_of_h264_is_referred_to_unless_its_slices_say_that_it_is_not() {
        // An access unit delimiter, parameter sets, SEI, then slices.
        let before: [&[u8]; 4] = [&[9, 0xf0], &[0x67, 77], &[0x68, 0xce], &[6, 5]];
        for (slice, referred) in [(0x01, false), (0x21, true), (0x41, true), (0x65, true), (0x02, false)] {
            let slice_unit = [slice, 0x9a, 1];
            let units = [&before[..], &[&slice_unit[..]]].concat();
            let mut packets = Packets { codec: Codec::H264, length_bytes: 4 };
            assert_eq!(packets.is_referred_to(&framed(&units)), referred, "{slice:#x}");
            packets.length_bytes = 0;
            assert_eq!(packets.is_referred_to(&started(&units)), referred, "{slice:#x}");
        }
    }

    #[test]
    fn a_picture_of_h265_is_referred_to_unless_it_is_of_the_highest_sub_layer_and_says_so() {
        let slice = |kind: u8, layer: u8, sub_layer: u8| [kind << 1 | layer >> 5, layer << 3 | (sub_layer + 1), 0x80];
        let sequence = |sub_layers: u8| [33 << 1, 1, (sub_layers - 1) << 1];
        let referred = |sub_layers: u8, slice: [u8; 3]| {
            let mut packets = Packets { codec: Codec::H265 { sub_layers: 0 }, length_bytes: 0 };
            packets.is_referred_to(&started(&[&sequence(sub_layers), &slice]))
        };
        assert!(!referred(1, slice(0, 0, 0)) && !referred(1, slice(8, 0, 0)) && !referred(3, slice(2, 0, 2)));
        assert!(referred(1, slice(1, 0, 0)) && referred(1, slice(19, 0, 0)) && referred(1, slice(16, 0, 0)));
        assert!(referred(3, slice(0, 0, 1)), "a higher sub-layer may refer to it");
        assert!(referred(1, slice(0, 1, 0)), "another layer");
        let mut unknown = Packets { codec: Codec::H265 { sub_layers: 0 }, length_bytes: 0 };
        assert!(unknown.is_referred_to(&started(&[&slice(0, 0, 0)])), "no sequence is known");
    }

    #[test]
    fn nothing_is_known_of_fields_and_of_other_formats() {
        crate::pipeline::init().unwrap();
        let packets = |name: &str, structure: &str| {
            let caps = gst::Caps::builder(name).field("stream-format", "byte-stream");
            Packets::of(&caps.field("coded-picture-structure", structure).build())
        };
        assert!(packets("video/x-h264", "frame").is_some());
        assert_eq!(packets("video/x-h264", "field"), None);
        assert_eq!(packets("video/mpeg", "frame"), None);
    }

    #[test]
    fn a_decoder_is_given_what_is_needed_and_little_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("film.mp4");
        let film = ["-v", "error", "-f", "lavfi", "-i", "testsrc2=s=64x64:r=25:d=4", "-c:v", "libx264"];
        let made = Command::new("ffmpeg").args(film).args(["-x264-params", "b-adapt=0:bframes=3"]).arg(&path).status();
        assert!(made.unwrap().success());
        let all = decoded(&path, None);
        assert_eq!(all.len(), 100);
        let timeline = Timeline::new(all.iter().map(|&at| Some((at, true))));
        let picks = Picks { first: 0, step: 25, count: 4 };
        let needed: Vec<u64> = all.iter().copied().filter(|&at| is_needed(&timeline, picks, at)).collect();
        let some = decoded(&path, Some((Arc::new(timeline), picks)));
        assert!(needed.len() == 8 && needed.iter().all(|at| some.contains(at)), "{needed:?}, {some:?}");
        // Of four pictures two are referred to.
        assert!((46..=58).contains(&some.len()), "{} pictures are decoded", some.len());
    }

    /// Times of the pictures of a film that a decoder puts out.
    fn decoded(path: &Path, dropped: Option<(Arc<Timeline>, Picks)>) -> Vec<u64> {
        crate::pipeline::init().unwrap();
        let line = "filesrc name=file ! qtdemux ! h264parse ! avdec_h264 name=decoder appsink name=sink sync=false";
        let pipeline = gst::parse::launch(line).unwrap().downcast::<gst::Pipeline>().unwrap();
        let named = |name: &str| pipeline.by_name(name).unwrap();
        named("file").set_property("location", path.to_str().unwrap());
        if let Some((timeline, picks)) = dropped {
            drop_unneeded(&named("sink").static_pad("sink").unwrap(), timeline, picks);
        }
        named("decoder").link(&named("sink")).unwrap();
        let sink = named("sink").downcast::<gstreamer_app::AppSink>().unwrap();
        pipeline.set_state(gst::State::Playing).unwrap();
        let times = std::iter::from_fn(|| sink.pull_sample().ok());
        let times = times.map(|sample| sample.buffer().unwrap().pts().unwrap().nseconds()).collect();
        pipeline.set_state(gst::State::Null).unwrap();
        times
    }

    #[test]
    fn a_packet_that_is_damaged_or_empty_is_kept() {
        for length_bytes in [0, 2, 4] {
            let mut packets = Packets { codec: Codec::H264, length_bytes };
            for packet in [&[][..], &[0], &[0xff; 4], &[0, 0, 0, 9, 1], &[0, 0, 0, 0]] {
                assert!(packets.is_referred_to(packet), "{length_bytes} {packet:?}");
            }
        }
    }

    #[test]
    fn what_is_picked_stands_in_or_is_last_is_needed() {
        let timeline = |times: &[u64]| Timeline::new(times.iter().map(|&at| Some((at * 1_000_000, true))));
        let picks = Picks { first: 1, step: 5, count: 9 };
        let even = timeline(&(0..9).collect::<Vec<_>>());
        let needed = |timeline: &Timeline| -> Vec<u64> {
            (0..9).filter(|at| is_needed(timeline, picks, at * 1_000_000)).collect()
        };
        assert_eq!(needed(&even), [0, 1, 5, 6, 8]);
        // Two at the third's time: which of them is which the time does not tell.
        assert_eq!(needed(&timeline(&[0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9])), [0, 1, 3, 4, 5]);
        assert_eq!(needed(&Timeline::default()), (0..9).collect::<Vec<_>>());
    }
}
