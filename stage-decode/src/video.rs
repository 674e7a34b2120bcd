//! A picture track to sampled frames: every picture is decoded and counted, only picked ones are looked at.

use std::ops::Range;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::error::JobError;
use common::plan::FRAME_BYTES;
use common::stage::Stop;
use gst::prelude::*;
use gst_video::{VideoColorMatrix, VideoColorRange, VideoColorimetry};
use gstreamer as gst;
use gstreamer_video as gst_video;

use crate::color::{self, Conversion, Converter};
use crate::failure;
use crate::picture::Picture;
use crate::pipeline::{self, Interruption, TrackPipeline};
use crate::probe::PictureTrack;
use crate::resize::Resizer;

/// Which of the shown pictures are wanted: `count` of them, every `step`-th, from `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Picks {
    pub(crate) first: u64,
    pub(crate) step: u64,
    pub(crate) count: u64,
}

impl Picks {
    fn contains(self, index: u64) -> bool {
        index >= self.first
            && (index - self.first).is_multiple_of(self.step)
            && (index - self.first) / self.step < self.count
    }
}

/// Numbers the decoded pictures that are shown.
struct Counter {
    /// Timestamps in nanoseconds.
    shown: Vec<Range<u64>>,
    numbered: u64,
}

impl Counter {
    /// The number of the next decoded picture; `None` if it is not shown. One without a timestamp is.
    fn next(&mut self, at: Option<gst::ClockTime>) -> Option<u64> {
        let hidden = at.is_some_and(|at| !self.shown.iter().any(|range| range.contains(&at.nseconds())));
        self.numbered += u64::from(!hidden);
        (!hidden).then(|| self.numbered - 1)
    }
}

/// Decodes the picks as 384 x 384 RGB frames, in order, exactly `picks.count` of them; returns how many stand in for
/// pictures that did not decode.
///
/// # Errors
/// What GStreamer says before the first frame, what `deliver` says, and `Cancelled`.
pub(crate) fn decode(
    path: &Path,
    track: &PictureTrack,
    picks: Picks,
    stall: Duration,
    cancelled: &dyn Fn() -> bool,
    deliver: &mut dyn FnMut(Vec<u8>) -> Result<(), Stop>,
) -> Result<u64, Stop> {
    pipeline::init()?;
    let convert = pipeline::element("videoconvert")?;
    let pad = convert.static_pad("sink").ok_or_else(|| failure::no_element("videoconvert"))?;
    let counter = Mutex::new(Counter { shown: track.shown.clone(), numbered: 0 });
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let at = info.buffer().and_then(|b| b.pts());
        match counter.lock().unwrap_or_else(PoisonError::into_inner).next(at) {
            Some(index) if picks.contains(index) => gst::PadProbeReturn::Ok,
            // Consumed here. (Drop, which says the same, makes gstreamer-rs and GStreamer 1.22 release it twice.)
            _ => gst::PadProbeReturn::Handled,
        }
    });
    let caps = gst_video::VideoCapsBuilder::new().format_list(color::FORMATS).build();
    let pipeline = TrackPipeline::start(path, track.selection.clone(), &convert, &caps, stall)?;

    let mut developer = Developer::default();
    let mut last: Option<Vec<u8>> = None;
    let mut delivered = 0;
    while delivered < picks.count {
        let sample = match pipeline.pull(cancelled) {
            Ok(Some(sample)) => sample,
            Ok(None) => break,
            Err(Interruption::Broken(error)) if last.is_some() => {
                tracing::warn!(file = %path.display(), %error, "decoding ends early");
                break;
            }
            Err(other) => return Err(other.into()),
        };
        let frame = developer.develop(path, &sample, pipeline.parsed_caps(), track)?;
        deliver(frame.clone())?;
        last = Some(frame);
        delivered += 1;
    }
    drop(pipeline);
    let missing = picks.count - delivered;
    if missing > 0 {
        let Some(last) = last else {
            let first = picks.first;
            return Err(failure::unsupported(path, &format!("no picture decodes from number {first} on")).into());
        };
        tracing::warn!(file = %path.display(), missing, "pictures do not decode, the one before stands in");
        for _ in 0..missing {
            deliver(last.clone())?;
        }
    }
    Ok(missing)
}

/// From a decoded sample to a frame; scratch memory is reused.
#[derive(Default)]
struct Developer {
    converter: Converter,
    resizer: Resizer,
    picture: Picture,
    turned: Picture,
}

impl Developer {
    fn develop(
        &mut self,
        path: &Path,
        sample: &gst::Sample,
        parsed: Option<gst::Caps>,
        track: &PictureTrack,
    ) -> Result<Vec<u8>, JobError> {
        let odd = |what: &str| failure::unsupported(path, what);
        let caps = sample.caps().ok_or_else(|| odd("a decoded picture has no format"))?;
        let info = gst_video::VideoInfo::from_caps(caps).map_err(|e| odd(&format!("{caps}: {e}")))?;
        let buffer = sample.buffer().ok_or_else(|| odd("a decoded picture has no data"))?;
        let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info)
            .map_err(|_| odd("a decoded picture cannot be mapped"))?;
        // Decoders fill in a matrix by picture size where none is given; ffmpeg takes BT.601 then. The range is read
        // from the text because `VideoInfo` drops it when the matrix is not told.
        let conversion = Conversion {
            matrix: parsed.as_deref().and_then(colorimetry).map_or(VideoColorMatrix::Unknown, |c| c.matrix()),
            full_range: colorimetry(caps).is_some_and(|c| c.range() == VideoColorRange::Range0_255),
        };
        self.converter.convert(&frame, conversion, &mut self.picture);
        let upright = self.picture.turned(track.turn, &mut self.turned);
        let mut out = vec![0; FRAME_BYTES];
        self.resizer.resize(upright, &mut out);
        Ok(out)
    }
}

/// What caps tell of matrix and range.
fn colorimetry(caps: &gst::CapsRef) -> Option<VideoColorimetry> {
    VideoColorimetry::from_str(caps.structure(0)?.get::<&str>("colorimetry").ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shown_pictures_are_numbered_and_every_step_th_of_them_is_picked() {
        let mut counter = Counter { shown: vec![2..5, 7..9], numbered: 0 };
        let numbers: Vec<_> = (0..10).map(|at| counter.next(Some(gst::ClockTime::from_nseconds(at)))).collect();
        let expected = [None, None, Some(0), Some(1), Some(2), None, None, Some(3), Some(4), None];
        assert_eq!(numbers, expected);
        assert_eq!(counter.next(None), Some(5));
        let picks = Picks { first: 1, step: 3, count: 2 };
        let picked: Vec<_> = (0..20).filter(|&i| picks.contains(i)).collect();
        assert_eq!(picked, [1, 4]);
    }
}
