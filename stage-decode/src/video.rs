//! A picture track to sampled frames: every picture is decoded and numbered, only picked ones are looked at.

use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gst::prelude::*;
use gst_video::{VideoColorMatrix, VideoColorRange, VideoColorimetry};
use gstreamer as gst;
use gstreamer_video as gst_video;
use protocol::error::JobError;
use protocol::plan::FRAME_BYTES;
use protocol::stage::Stop;

use crate::color::{self, Conversion, Converter};
use crate::failure;
use crate::picks::{Passed, Picks, Sieve};
use crate::picture::Picture;
use crate::pipeline::{self, Interruption, TrackPipeline};
use crate::probe::PictureTrack;
use crate::resize::Resizer;

/// A sampled frame.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// [`FRAME_BYTES`] of RGB.
    pub(crate) rgb: Vec<u8>,
    /// The picked picture did not decode: this is the one before it.
    pub(crate) replaced: bool,
}

/// Decodes the picks as 384 x 384 RGB frames, in order, exactly `picks.count` of them. One that does not decode is
/// replaced by the last picture before it that does, at the start by the first one that does.
///
/// # Errors
/// What GStreamer says before the first frame, what `deliver` says, and `Cancelled`.
pub(crate) fn decode(
    path: &Path,
    track: &PictureTrack,
    picks: Picks,
    stall: Duration,
    cancelled: &dyn Fn() -> bool,
    deliver: &mut dyn FnMut(Frame) -> Result<(), Stop>,
) -> Result<(), Stop> {
    pipeline::init()?;
    let convert = pipeline::element("videoconvert")?;
    let pad = convert.static_pad("sink").ok_or_else(|| failure::no_element("videoconvert"))?;
    sift(&pad, Sieve::new(track.timeline.clone(), picks));
    let caps = gst_video::VideoCapsBuilder::new().format_list(color::FORMATS).build();
    let pipeline = TrackPipeline::start(path, track.selection.clone(), &convert, &caps, stall)?;

    let mut developer = Developer::default();
    let mut before: Option<Decoded> = None;
    let mut delivered = 0;
    let mut missing = 0;
    while delivered < picks.count {
        let sample = match pipeline.pull(cancelled) {
            Ok(Some(sample)) => sample,
            Ok(None) => break,
            Err(Interruption::Broken(error)) if before.is_some() => {
                tracing::warn!(file = %path.display(), %error, "decoding ends early");
                break;
            }
            Err(other) => return Err(other.into()),
        };
        let number =
            sample.buffer().ok_or_else(|| failure::unsupported(path, "a decoded picture has no data"))?.offset();
        let mut decoded = Decoded { sample, frame: None };
        while delivered < picks.count && picks.number(delivered) <= number {
            let replaced = picks.number(delivered) < number;
            let stands = before.as_mut().filter(|_| replaced).unwrap_or(&mut decoded);
            let rgb = stands.frame(&mut developer, path, &pipeline, track)?;
            deliver(Frame { rgb, replaced })?;
            delivered += 1;
            missing += u64::from(replaced);
        }
        before = Some(decoded);
    }
    if delivered < picks.count {
        let Some(last) = &mut before else {
            let first = picks.first;
            return Err(failure::unsupported(path, &format!("no picture decodes from number {first} on")).into());
        };
        let rgb = last.frame(&mut developer, path, &pipeline, track)?;
        missing += picks.count - delivered;
        for _ in delivered..picks.count {
            deliver(Frame { rgb: rgb.clone(), replaced: true })?;
        }
    }
    if missing > 0 {
        tracing::warn!(file = %path.display(), missing, "pictures do not decode, the ones before stand in");
    }
    Ok(())
}

/// Lets only those buffers pass a pad that the sieve lets pass, each with its picture's number as its offset.
fn sift(pad: &gst::Pad, sieve: Sieve<gst::Buffer>) {
    /// `passing`: the buffer that comes next has been decided on.
    struct Sifting {
        sieve: Sieve<gst::Buffer>,
        passing: bool,
    }
    fn lock(sifting: &Mutex<Sifting>) -> std::sync::MutexGuard<'_, Sifting> {
        sifting.lock().unwrap_or_else(PoisonError::into_inner)
    }
    let sifting = Arc::new(Mutex::new(Sifting { sieve, passing: false }));
    // Comes back through the probe below, on the same thread.
    let pass_held = move |pad: &gst::Pad, sifting: &Mutex<Sifting>, held: Option<(u64, gst::Buffer)>| {
        let Some((number, mut buffer)) = held else { return };
        buffer.make_mut().set_offset(number);
        lock(sifting).passing = true;
        // Whoever pushes the next buffer hears of what is wrong downstream.
        let _ = pad.chain(buffer);
    };
    pad.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM, move |pad, info| {
        match &mut info.data {
            Some(gst::PadProbeData::Buffer(buffer)) => {
                if std::mem::take(&mut lock(&sifting).passing) {
                    return gst::PadProbeReturn::Ok;
                }
                let at = buffer.pts().map(gst::ClockTime::nseconds);
                let Passed { held, new } = lock(&sifting).sieve.take(at, || buffer.clone());
                pass_held(pad, &sifting, held);
                // Consumed here. (Drop, which says the same, makes gstreamer-rs and GStreamer 1.22 release it twice.)
                let Some(number) = new else { return gst::PadProbeReturn::Handled };
                buffer.make_mut().set_offset(number);
            }
            // After these the held picture could not pass any more, or not as what it is.
            Some(gst::PadProbeData::Event(event))
                if matches!(event.type_(), gst::EventType::Eos | gst::EventType::Caps) =>
            {
                let held = lock(&sifting).sieve.release();
                pass_held(pad, &sifting, held);
            }
            _ => {}
        }
        gst::PadProbeReturn::Ok
    });
}

/// A decoded picture, and its frame once somebody wants it.
struct Decoded {
    sample: gst::Sample,
    frame: Option<Vec<u8>>,
}

impl Decoded {
    fn frame(
        &mut self,
        developer: &mut Developer,
        path: &Path,
        pipeline: &TrackPipeline,
        track: &PictureTrack,
    ) -> Result<Vec<u8>, JobError> {
        if let Some(frame) = &self.frame {
            return Ok(frame.clone());
        }
        let frame = developer.develop(path, &self.sample, pipeline.parsed_caps(), track)?;
        Ok(self.frame.insert(frame).clone())
    }
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
