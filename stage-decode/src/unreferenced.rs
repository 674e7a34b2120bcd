//! Coded pictures that no other refers to: one that is not picked either need not be decoded. What is left decodes to the same pictures, as
//! the formats promise: encoders make every second picture such a one, or fewer. [`units`] tells them for H.264 and H.265, [`av1`] for AV1.

mod av1;
mod units;

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

/// Packets of a track in front of a decoder, each of which holds what is shown at one time.
#[derive(Debug, PartialEq, Eq)]
enum Packets {
    Units(units::Packets),
    Av1(av1::Packets),
}

impl Packets {
    /// Packets with these caps; none of a format that is not known here.
    fn of(caps: &gst::CapsRef) -> Option<Self> {
        let structure = caps.structure(0)?;
        match structure.name().as_str() {
            "video/x-h264" | "video/x-h265" => Some(Packets::Units(units::Packets::of(structure)?)),
            "video/x-av1" => Some(Packets::Av1(av1::Packets::of(structure)?)),
            _ => None,
        }
    }

    /// Whether other pictures refer to that of a packet, or may.
    fn is_referred_to(&mut self, packet: &[u8]) -> bool {
        match self {
            Packets::Units(packets) => packets.is_referred_to(packet),
            Packets::Av1(packets) => packets.is_referred_to(packet),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::RangeInclusive;
    use std::path::Path;
    use std::process::Command;

    /// Films, and how they are demuxed and decoded, and the pictures of a hundred that are decoded where four are picked: of H.264 with three
    /// B-frames, one of which others refer to, about half.
    const FILMS: [(&str, &str, RangeInclusive<usize>); 3] = [
        ("-c:v libx264 -x264-params b-adapt=0:bframes=3", "h264parse ! avdec_h264", 46..=58),
        ("-c:v libx265 -x265-params log-level=none:b-adapt=0:bframes=3", "h265parse ! avdec_h265", 46..=58),
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
            let picks = Picks { first: 0, step: 25, count: 4 };
            let needed: Vec<u64> = all.iter().copied().filter(|&at| is_needed(&timeline, picks, at)).collect();
            let some = decoded(&path, elements, Some((Arc::new(timeline), picks)));
            assert!(needed.len() == 8 && needed.iter().all(|at| some.contains(at)), "{elements}: {needed:?}, {some:?}");
            assert!(most.contains(&some.len()), "{elements}: {} pictures are decoded", some.len());
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
