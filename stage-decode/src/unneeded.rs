//! Coded pictures that need not be decoded: those that are not picked and that no other refers to, and those behind the last one that is picked
//! before all begins anew. What is left decodes to the same pictures, as the formats promise. [`units`] tells them apart for H.264 and
//! H.265, [`av1`] for AV1, [`vpx`] for VP8 and VP9.

mod av1;
mod units;
mod vpx;

use std::mem;
use std::sync::{Arc, Mutex};

use gst::prelude::*;
use gstreamer as gst;

use crate::picks::Picks;
use crate::pipeline::lock;
use crate::timeline::Timeline;

/// Limit on the packets that wait for one that is needed, bytes and number: ten seconds of 25 Mbit/s.
const HELD_BYTES: usize = 32 << 20;
const HELD: usize = 1024;

/// What other pictures have of a packet's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Those behind it, as they lie in the file, refer to none before it.
    Begins,
    /// Others refer to it, or may.
    Referred,
    /// No other refers to it.
    Unreferred,
}

/// Whether a picture is picked, behind all that are, so that the last of them comes out as in the middle of a film, or the film's last, which
/// stands in for all that is planned beyond it. One whose number its time does not tell may be any.
fn is_needed(timeline: &Timeline, picks: Picks, at: Option<u64>) -> bool {
    let number = at.and_then(|at| timeline.only_at(at));
    let last = picks.number(picks.count.saturating_sub(1)).min(timeline.shown_count().saturating_sub(1));
    number.is_none_or(|number| picks.any_in(number..number + 1) || number >= last)
}

/// Keeps packets from the decoder that will be linked to `pad` whose pictures need not be decoded, if all that are needed decode. Where one does
/// not, what would stand in for it, or a decoder would make it of, may not have been decoded.
pub(crate) fn drop_unneeded(pad: &gst::Pad, timeline: Arc<Timeline>, picks: Picks) {
    pad.connect_linked(move |_, source| {
        let Some(decoder) = source.parent_element().and_then(|decoder| decoder.static_pad("sink")) else { return };
        let (timeline, gate) = (timeline.clone(), Mutex::new(Gate::default()));
        decoder.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM, move |pad, info| {
            let passing = match &info.data {
                Some(gst::PadProbeData::Event(event)) => lock(&gate).event(event),
                Some(gst::PadProbeData::Buffer(buffer)) => {
                    let needed = || is_needed(&timeline, picks, buffer.pts().map(gst::ClockTime::nseconds));
                    lock(&gate).packet(buffer, needed)
                }
                _ => Some(Vec::new()),
            };
            // Consumed here. (With Drop, gstreamer-rs and GStreamer 1.22 release the buffer twice.)
            let Some(held) = passing else { return gst::PadProbeReturn::Handled };
            if !held.is_empty() {
                // They come back through this probe, on the same thread.
                lock(&gate).open = true;
                for packet in held {
                    // The next push returns the error, if something downstream failed.
                    let _ = pad.chain(packet);
                }
                lock(&gate).open = false;
            }
            gst::PadProbeReturn::Ok
        });
    });
}

/// Gate in front of a decoder.
#[derive(Default)]
struct Gate {
    /// Reader of the packets; none of a format that is not known here, of which all pass.
    packets: Option<Packets>,
    /// Packets that are decoded only if one behind them is needed.
    held: Vec<gst::Buffer>,
    held_bytes: usize,
    /// Whether packets that were held pass.
    open: bool,
}

impl Gate {
    /// What passes before an event: its place is behind what waits, but for words about the whole track, which come often.
    fn event(&mut self, event: &gst::Event) -> Option<Vec<gst::Buffer>> {
        if let gst::EventView::Caps(caps) = event.view() {
            self.packets = Packets::of(caps.caps());
        }
        Some(match event.type_() {
            gst::EventType::Tag => Vec::new(),
            // Nothing is needed any more.
            gst::EventType::Eos => {
                self.release();
                Vec::new()
            }
            _ => self.release(),
        })
    }

    /// What passes before a packet; none if that does not pass now.
    fn packet(&mut self, packet: &gst::Buffer, needed: impl FnOnce() -> bool) -> Option<Vec<gst::Buffer>> {
        let (false, Some(packets), Ok(data)) = (self.open, &mut self.packets, packet.map_readable()) else {
            return Some(Vec::new());
        };
        let role = packets.role(&data);
        if role == Role::Begins {
            self.release();
        }
        if needed() || self.held.len() >= HELD || self.held_bytes + data.len() > HELD_BYTES {
            return Some(self.release());
        }
        if role != Role::Unreferred {
            self.held_bytes += data.len();
            self.held.push(packet.clone());
        }
        None
    }

    fn release(&mut self) -> Vec<gst::Buffer> {
        self.held_bytes = 0;
        mem::take(&mut self.held)
    }
}

/// Packets of a track in front of a decoder, each of which holds what is shown at one time.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Packets {
    Units(units::Packets),
    Av1(av1::Packets),
    Vp8,
    Vp9,
}

impl Packets {
    /// Packets with these caps; none of a format that is not known here.
    pub(crate) fn of(caps: &gst::CapsRef) -> Option<Self> {
        let structure = caps.structure(0)?;
        match structure.name().as_str() {
            "video/x-h264" | "video/x-h265" => Some(Packets::Units(units::Packets::of(structure)?)),
            "video/x-av1" => Some(Packets::Av1(av1::Packets::of(structure)?)),
            "video/x-vp8" => Some(Packets::Vp8),
            "video/x-vp9" => Some(Packets::Vp9),
            _ => None,
        }
    }

    /// Role of the next packet.
    pub(crate) fn role(&mut self, packet: &[u8]) -> Role {
        match self {
            Packets::Units(packets) => packets.role(packet),
            Packets::Av1(packets) => packets.role(packet),
            Packets::Vp8 => vpx::role_of_vp8(packet),
            Packets::Vp9 => vpx::role_of_vp9(packet),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::RangeInclusive;
    use std::path::Path;
    use std::process::Command;

    /// Films, how they are decoded, and the pictures of a hundred that are decoded where the first, 26th, 51st, 76th and the last are needed:
    /// of three B-frames, one of which others refer to, about half, and of groups of 20 those up to the last that is needed, 54 of them.
    const FILMS: [(&str, &str, RangeInclusive<usize>); 5] = [
        ("-c:v libx264 -x264-params b-adapt=0:bframes=3", "h264parse ! avdec_h264", 46..=58),
        ("-c:v libx264 -g 20 -x264-params b-adapt=0:bframes=3", "h264parse ! avdec_h264", 24..=36),
        ("-c:v libx265 -x265-params log-level=none:b-adapt=0:bframes=3", "h265parse ! avdec_h265", 46..=58),
        ("-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 20", "vp9parse ! avdec_vp9", 54..=56),
        ("-c:v libsvtav1 -preset 10", "av1parse ! av1dec", 46..=80),
    ];

    #[test]
    fn a_decoder_is_given_what_is_needed_and_little_more() {
        let dir = tempfile::tempdir().unwrap();
        for (options, elements, most) in FILMS {
            let path = dir.path().join("film.mp4");
            let film = ["-v", "error", "-y", "-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=4", "-pix_fmt", "yuv420p"];
            let made = Command::new("ffmpeg").args(film).args(options.split(' ')).arg(&path).output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            let all = decoded(&path, elements, None);
            assert_eq!(all.len(), 100, "{elements}");
            let timeline = Timeline::new(all.iter().map(|&at| Some((at, true))));
            let picks = Picks { first: 0, step: 25, count: 5 };
            let needed: Vec<u64> = all.iter().copied().filter(|&at| is_needed(&timeline, picks, Some(at))).collect();
            let some = decoded(&path, elements, Some((Arc::new(timeline), picks)));
            assert!(needed.len() == 5 && needed.iter().all(|at| some.contains(at)), "{elements}: {needed:?}, {some:?}");
            let numbers: Vec<usize> =
                all.iter().enumerate().filter(|(_, at)| some.contains(at)).map(|(n, _)| n).collect();
            assert!(most.contains(&some.len()), "{elements}: {} pictures are decoded: {numbers:?}", some.len());
        }
    }

    /// Times of the pictures of a film that a decoder puts out.
    fn decoded(path: &Path, elements: &str, dropped: Option<(Arc<Timeline>, Picks)>) -> Vec<u64> {
        crate::pipeline::init().unwrap();
        let line = format!("filesrc name=file ! qtdemux ! {elements} name=decoder appsink name=sink sync=false");
        let pipeline = gst::parse::launch(&line).unwrap().downcast::<gst::Pipeline>().unwrap();
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
    fn what_is_picked_or_behind_that_or_last_is_needed() {
        let timeline = |times: &[u64]| Timeline::new(times.iter().map(|&at| Some((at * 1_000_000, true))));
        let needed_of = |timeline: &Timeline, count: u64| -> Vec<u64> {
            let picks = Picks { first: 1, step: 5, count };
            (0..9).filter(|at| is_needed(timeline, picks, Some(at * 1_000_000))).collect()
        };
        let even = timeline(&(0..9).collect::<Vec<_>>());
        assert_eq!((needed_of(&even, 9), needed_of(&even, 1)), (vec![1, 6, 8], (1..9).collect()));
        // Two at the third's time: which of them is which the time does not tell.
        assert_eq!(needed_of(&timeline(&[0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9]), 9), [1, 3, 5]);
        assert_eq!(needed_of(&Timeline::default(), 9), (0..9).collect::<Vec<_>>());
        assert!(is_needed(&even, Picks { first: 1, step: 5, count: 9 }, None));
    }

    #[test]
    fn what_waits_is_bounded_and_passes_in_its_order() {
        crate::pipeline::init().unwrap();
        let packet = |kind: u8, n: u8| gst::Buffer::from_slice([0, 0, 0, 2, kind, n]);
        let units = gst::Structure::builder("video/x-h264").field("coded-picture-structure", "frame");
        let units = units.field("codec_data", gst::Buffer::from_slice([1, 66, 0, 30, 0xff])).build();
        let mut gate = Gate { packets: units::Packets::of(&units).map(Packets::Units), ..Gate::default() };
        let pass = |gate: &mut Gate, kind: u8, n: u8, needed: bool| {
            let passed = gate.packet(&packet(kind, n), || needed);
            passed.map(|held| held.iter().map(|held| held.map_readable().unwrap()[5]).collect::<Vec<_>>())
        };
        let (idr, reference, other) = (0x65, 0x41, 0x01);
        assert_eq!(pass(&mut gate, idr, 0, true), Some(vec![]));
        assert_eq!(pass(&mut gate, reference, 1, false), None);
        assert_eq!(pass(&mut gate, other, 2, false), None);
        assert_eq!(pass(&mut gate, other, 4, true), Some(vec![1]));
        assert_eq!(pass(&mut gate, reference, 5, false), None);
        // What waits is not needed where all begins anew.
        assert_eq!(pass(&mut gate, idr, 6, false), None);
        assert_eq!(pass(&mut gate, reference, 7, true), Some(vec![6]));
        for n in 0..HELD {
            assert_eq!(pass(&mut gate, reference, n as u8, false), None);
        }
        assert_eq!(pass(&mut gate, reference, 8, false).map(|held| held.len()), Some(HELD));
        let large = gst::Buffer::from_slice([&[1, 0xe0, 0, 0, 0x41][..], &vec![0; 30 << 20]].concat());
        assert!(gate.packet(&large, || false).is_none());
        assert_eq!(gate.packet(&large, || false).map(|held| held.len()), Some(1));
    }
}
