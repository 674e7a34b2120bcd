//! The times that the packets of a transport stream state themselves.
//!
//! GStreamer 1.22 places packets by the program's clock, and guesses that by the bit rate where none has come for half a second: its
//! times jump there, by tenths of a second, and by hours where nothing comes for ten; before the first word of that clock it gives
//! none. Its demuxer tells what each packet states, in 90 kHz, besides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use gst::prelude::*;
use gstreamer as gst;

use super::counted::Counted;
use crate::pipeline::{lock, track_name};

/// Name of the demuxer, and of what it tells.
const DEMUXER: &str = "tsdemux";
/// Ticks after which the clock begins again at 0.
const AROUND: i64 = 1 << 33;
/// Ticks by which a packet may state an earlier time than the one before it, where pictures are reordered; what goes further back
/// is another recording.
const BACK: i64 = 2 * 90_000;

/// Nanoseconds by which GStreamer's times may move between two packets without a jump.
const JUMP_NS: i64 = 5_000_000;

/// Times that packets state beside those that GStreamer gives them, if it gives any.
#[derive(Clone, Default)]
pub(super) struct StatedClock(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The last time that a packet of any track stated, in ticks, counted on where the clock goes round.
    last: Option<i64>,
    /// Tracks by their numbers.
    tracks: HashMap<u32, Stated>,
    /// Whether a track's times begin anew.
    begins_anew: bool,
}

/// Times that the packets of a track state, in ticks.
struct Stated {
    least: i64,
    most: i64,
    last: i64,
    /// Nanoseconds to add to GStreamer's times at its last packet; none where it gave none.
    shift: Option<i64>,
    /// Whether that changed.
    jumps: bool,
}

impl StatedClock {
    /// Follows the demuxer that a pipeline's parser will plug, if it is one of transport streams.
    pub(super) fn follow(&self, pipeline: &gst::Pipeline, parser: &gst::Element) {
        let state = self.0.clone();
        parser.connect("deep-element-added", false, move |values| {
            let demuxer = values.get(2)?.get::<gst::Element>().ok()?;
            if demuxer.factory()?.name() == DEMUXER && demuxer.has_property("emit-stats") {
                demuxer.set_property("emit-stats", true);
                let state = state.clone();
                demuxer.connect_pad_added(move |_, pad| watch(pad, state.clone()));
            }
            None
        });
        let state = self.0.clone();
        if let Some(bus) = pipeline.bus() {
            // There are some of these for every packet: none waits on the bus.
            bus.set_sync_handler(move |_, message| match message.structure().filter(|told| told.name() == DEMUXER) {
                Some(told) => {
                    if let (Ok(track), Ok(ticks)) = (told.get::<u32>("pid"), told.get::<u64>("pts")) {
                        lock(&state).note(track, ticks);
                    }
                    gst::BusSyncReply::Drop
                }
                None => gst::BusSyncReply::Pass,
            });
        }
    }

    /// Whether GStreamer's times of a track jump, so that pictures cannot be told by them.
    pub(super) fn jumps(&self, track: &Counted) -> bool {
        let number = track.name.as_deref().and_then(number);
        number.is_some_and(|number| lock(&self.0).tracks.get(&number).is_some_and(|stated| stated.jumps))
    }

    /// Seconds from the first packet of all tracks to the end of the last; none where a track states nothing, or begins anew.
    pub(super) fn seconds(&self, tracks: &[&Counted]) -> Option<f64> {
        let state = lock(&self.0);
        let span = |track: &&Counted| {
            let stated = state.tracks.get(&number(track.name.as_deref()?)?)?;
            let start = nanoseconds(stated.least);
            let shown = nanoseconds(stated.most) + track.last_ns as i64;
            let placed = stated.shift.zip(track.span).map(|(shift, (_, end))| end as i64 + shift);
            // A packet may hold more of a sound than what it states the time of.
            let heard = if track.times.is_empty() { start + track.lasting_ns as i64 } else { start };
            Some((start, shown.max(placed.unwrap_or(heard))))
        };
        let spans: Vec<(i64, i64)> = tracks.iter().map(span).collect::<Option<_>>()?;
        let (start, end) = (spans.iter().map(|s| s.0).min()?, spans.iter().map(|s| s.1).max()?);
        (!state.begins_anew && end > start).then(|| (end - start) as f64 / 1e9)
    }
}

impl State {
    /// Notes what a packet states.
    fn note(&mut self, track: u32, ticks: u64) {
        let ticks = ticks as i64 & (AROUND - 1);
        let near = self.last.unwrap_or(ticks);
        let ticks = ticks + (near - ticks + AROUND / 2).div_euclid(AROUND) * AROUND;
        self.last = Some(ticks);
        let new = Stated { least: ticks, most: ticks, last: ticks, shift: None, jumps: false };
        let stated = self.tracks.entry(track).or_insert(new);
        self.begins_anew |= ticks < stated.last - BACK;
        (stated.least, stated.most, stated.last) = (stated.least.min(ticks), stated.most.max(ticks), ticks);
    }

    /// Notes when GStreamer shows the packet that a track stated last.
    fn place(&mut self, track: u32, at: gst::ClockTime) {
        if let Some(stated) = self.tracks.get_mut(&track) {
            let shift = nanoseconds(stated.last) - at.nseconds() as i64;
            stated.jumps |= stated.shift.is_some_and(|before| (shift - before).abs() > JUMP_NS);
            stated.shift = Some(shift);
        }
    }
}

fn nanoseconds(ticks: i64) -> i64 {
    ticks * 100_000 / 9
}

/// Number of a track, which the demuxer names by its hexadecimal digits.
fn number(name: &str) -> Option<u32> {
    u32::from_str_radix(name, 16).ok()
}

/// Watches the packets of a track as they leave the demuxer, right after it told what they state.
fn watch(pad: &gst::Pad, state: Arc<Mutex<State>>) {
    pad.add_probe(gst::PadProbeType::BUFFER, move |pad, info| {
        if let Some(gst::PadProbeData::Buffer(buffer)) = &info.data
            && let (Some(at), Some(track)) = (buffer.pts(), track_name(pad).as_deref().and_then(number))
        {
            lock(&state).place(track, at);
        }
        gst::PadProbeReturn::Ok
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets by track, stated ticks, and milliseconds in GStreamer's times.
    fn clock(packets: &[(u32, u64, u64)]) -> StatedClock {
        let clock = StatedClock::default();
        for &(track, ticks, at_ms) in packets {
            let mut state = lock(&clock.0);
            state.note(track, ticks);
            state.place(track, gst::ClockTime::from_mseconds(at_ms));
        }
        clock
    }

    /// Seconds of tracks by name and what they span in milliseconds.
    fn seconds(clock: &StatedClock, tracks: &[(&str, u64, u64)]) -> Option<f64> {
        let counted = |&(name, from, to): &(&str, u64, u64)| Counted {
            name: Some(name.to_owned()),
            span: Some((from * 1_000_000, to * 1_000_000)),
            ..Counted::default()
        };
        let counted: Vec<Counted> = tracks.iter().map(counted).collect();
        clock.seconds(&counted.iter().collect::<Vec<_>>())
    }

    #[test]
    fn a_gap_that_gstreamer_takes_for_shorter_is_as_long_as_the_packets_say() {
        let packets = [(1, 90_000, 0), (1, 180_000, 1000), (1, 450_000, 3900), (0x2a, 459_000, 4000)];
        let told = clock(&packets);
        let two = seconds(&told, &[("00000001", 0, 3940), ("0000002a", 4000, 4023)]).unwrap();
        assert!((two - 4.123).abs() < 1e-9, "{two}");
        let jumps = |name: &str| told.jumps(&Counted { name: Some(name.to_owned()), ..Counted::default() });
        assert_eq!([jumps("1"), jumps("2a"), jumps("video")], [true, false, false]);
        assert_eq!(seconds(&told, &[("1", 0, 3940), ("3", 0, 10)]), None, "a track that states nothing");
    }

    #[test]
    fn packets_that_gstreamer_gives_no_times_last_as_long_as_they_say() {
        let clock = StatedClock::default();
        [90_000, 180_000, 135_000].into_iter().for_each(|ticks| lock(&clock.0).note(1, ticks));
        lock(&clock.0).note(2, 90_000);
        let name = |name: &str| Some(name.to_owned());
        let picture = Counted { name: name("1"), times: vec![None; 3], last_ns: 500_000_000, ..Counted::default() };
        let sound = Counted { name: name("2"), lasting_ns: 1_900_000_000, last_ns: 20_000_000, ..Counted::default() };
        assert_eq!([clock.seconds(&[&picture]), clock.seconds(&[&picture, &sound])], [Some(1.5), Some(1.9)]);
    }

    #[test]
    fn times_count_on_where_the_clock_goes_round_and_another_recording_is_no_gap() {
        let end = AROUND as u64;
        let around = clock(&[(1, end - 90_000, 0), (2, 9_000, 1100), (1, 90_000, 2000), (2, end - 9_000, 1300)]);
        assert_eq!(seconds(&around, &[("1", 0, 2040), ("2", 1100, 1300)]), Some(2.04));
        assert_eq!(seconds(&clock(&[(1, 90_000, 0), (1, 9_000_000, 1000)]), &[("1", 0, 1040)]), Some(99.04));
        assert_eq!(seconds(&clock(&[(1, 9_000_000, 0), (1, 90_000, 1000)]), &[("1", 0, 1040)]), None);
    }
}
