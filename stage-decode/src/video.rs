//! Decoding of a video track to sampled frames: what the picked pictures need is decoded and numbered, only picked ones are converted.

use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use gst::prelude::*;
use gst_video::{VideoColorMatrix, VideoColorRange, VideoColorimetry};
use gstreamer as gst;
use gstreamer_video as gst_video;
use protocol::error::JobError;
use protocol::plan::FRAME_BYTES;
use protocol::stage::Stop;

use crate::color::{Conversion, Converter};
use crate::failure;
use crate::media_file::MediaFile;
use crate::picks::{Passed, PickFilter, Picks};
use crate::picture::Picture;
use crate::pipeline::{self, Interruption, Kind, Limits, TrackPipeline, lock};
use crate::probe::VideoTrack;
use crate::resize::Resizer;
use crate::unneeded::drop_unneeded;

/// Sampled frame.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// RGB rows, [`FRAME_BYTES`] long.
    pub(crate) rgb: Vec<u8>,
    /// Whether the picked picture did not decode, and this is the one before it.
    pub(crate) replaced: bool,
}

/// Decodes the picks as 384 x 384 RGB frames, in order, exactly `picks.count` of them. One that does not decode is
/// replaced by the last picture before it that does, at the start by the first one that does.
///
/// # Errors
/// GStreamer's error before the first frame, that of `deliver`, and `Cancelled`.
pub(crate) fn decode(
    media: &MediaFile,
    track: &VideoTrack,
    picks: Picks,
    limits: Limits,
    cancelled: &dyn Fn() -> bool,
    deliver: &mut dyn FnMut(Frame) -> Result<(), Stop>,
) -> Result<(), Stop> {
    pipeline::init()?;
    let (mut delivered, mut before) = (0, 0);
    let last = track.passes.len().saturating_sub(1);
    for (i, pass) in track.passes.iter().enumerate() {
        // What is planned beyond the last picture is the last picture.
        let end = if i == last { u64::MAX } else { before + pass.frames };
        let within = picks.part(delivered, before, end);
        if within.count > 0 {
            decode_pass(media, track, i, within, limits, cancelled, deliver)?;
        }
        delivered += within.count;
        before = end;
    }
    Ok(())
}

/// Decodes the picks of one pass over the track: first what they need alone, and where one of them does not decode, from there on
/// everything, so that the picture before it stands in whichever part of the video was asked for.
fn decode_pass(
    media: &MediaFile,
    track: &VideoTrack,
    pass: usize,
    picks: Picks,
    limits: Limits,
    cancelled: &dyn Fn() -> bool,
    deliver: &mut dyn FnMut(Frame) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let mut run = Run { media, track, pass, limits, cancelled, deliver };
    let has_times = track.passes.get(pass).is_some_and(|pass| pass.timeline.shown_count() > 0);
    let delivered = if has_times { run.decode(picks, true)? } else { 0 };
    if delivered < picks.count {
        run.decode(picks.part(delivered, 0, u64::MAX), false)?;
    }
    Ok(())
}

/// Decoding of a pass, or a part of it.
struct Run<'r> {
    media: &'r MediaFile,
    track: &'r VideoTrack,
    pass: usize,
    limits: Limits,
    cancelled: &'r dyn Fn() -> bool,
    deliver: &'r mut dyn FnMut(Frame) -> Result<(), Stop>,
}

impl Run<'_> {
    /// Decodes picks and delivers them; how many it delivered. With `needed_alone` it decodes no other pictures than those that are needed, and
    /// ends before the first one that does not decode.
    fn decode(&mut self, picks: Picks, needed_alone: bool) -> Result<u64, Stop> {
        let Run { media, track, pass, limits, cancelled, deliver } = self;
        let (path, pass) = (media.path(), *pass);
        let (convert, caps) = pipeline::tail(Kind::Video)?;
        let pad = convert.static_pad("sink").ok_or_else(|| failure::no_element("videoconvert"))?;
        let selection = pass.checked_sub(1).and_then(|pass| track.links.get(pass)).unwrap_or(&track.selection);
        let timeline = Arc::new(track.passes.get(pass).map(|pass| pass.timeline.clone()).unwrap_or_default());
        filter_buffers(&pad, PickFilter::new(timeline.clone(), picks));
        if needed_alone {
            drop_unneeded(&pad, timeline.clone(), picks);
        }
        let pipeline = TrackPipeline::start(media, selection.clone(), &convert, &caps, *limits)?;

        let mut builder = FrameBuilder::default();
        let mut before: Option<Decoded> = None;
        let mut delivered = 0;
        let mut missing = 0;
        while delivered < picks.count {
            let sample = match pipeline.pull(cancelled) {
                Ok(Some(sample)) => sample,
                Ok(None) => break,
                Err(Interruption::Broken(_)) if needed_alone => return Ok(delivered),
                Err(Interruption::Broken(error)) if before.is_some() => {
                    tracing::warn!(file = %path.display(), %error, "decoding of video failed, its last picture is repeated");
                    break;
                }
                Err(other) => return Err(other.into()),
            };
            let buffer = sample.buffer().ok_or_else(|| failure::unsupported(path, "a decoded picture has no data"))?;
            let (number, is_damaged) = (buffer.offset(), buffer.flags().contains(gst::BufferFlags::CORRUPTED));
            let mut decoded = Decoded { sample, number, frame: None };
            while delivered < picks.count && picks.number(delivered) <= number {
                let replaced = picks.number(delivered) < number;
                if needed_alone && (replaced || is_damaged) {
                    return Ok(delivered);
                }
                let source = before.as_mut().filter(|_| replaced).unwrap_or(&mut decoded);
                let rgb = source.frame(&mut builder, path, &pipeline, track)?;
                deliver(Frame { rgb, replaced })?;
                delivered += 1;
                missing += u64::from(replaced);
            }
            before = Some(decoded);
        }
        if delivered < picks.count {
            let is_last = |last: &Decoded| last.number + 1 >= timeline.shown_count();
            if needed_alone && !before.as_ref().is_some_and(is_last) {
                return Ok(delivered);
            }
            let Some(last) = &mut before else {
                let first = picks.first;
                return Err(failure::unsupported(path, &format!("no picture from number {first} on decodes")).into());
            };
            let rgb = last.frame(&mut builder, path, &pipeline, track)?;
            missing += picks.count - delivered;
            for _ in delivered..picks.count {
                deliver(Frame { rgb: rgb.clone(), replaced: true })?;
            }
        }
        if missing > 0 {
            tracing::warn!(file = %path.display(), missing, "pictures do not decode, replaced by the ones before them");
        }
        Ok(picks.count)
    }
}

/// Drops the buffers of a pad that the filter does not pass, and sets the others' offset to their picture's number.
fn filter_buffers(pad: &gst::Pad, filter: PickFilter<gst::Buffer>) {
    struct Filtering {
        filter: PickFilter<gst::Buffer>,
        /// Whether the next buffer is one that the filter has passed already.
        passing: bool,
    }
    let filtering = Arc::new(Mutex::new(Filtering { filter, passing: false }));
    // The buffer comes back through the probe below, on the same thread.
    let pass_held = move |pad: &gst::Pad, filtering: &Mutex<Filtering>, held: Option<(u64, gst::Buffer)>| {
        let Some((number, mut buffer)) = held else { return };
        buffer.make_mut().set_offset(number);
        lock(filtering).passing = true;
        // The next push returns the error, if something downstream failed.
        let _ = pad.chain(buffer);
    };
    pad.add_probe(gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM, move |pad, info| {
        match &mut info.data {
            Some(gst::PadProbeData::Buffer(buffer)) => {
                if std::mem::take(&mut lock(&filtering).passing) {
                    return gst::PadProbeReturn::Ok;
                }
                let at = buffer.pts().map(gst::ClockTime::nseconds);
                let Passed { held, new } = lock(&filtering).filter.take(at, || buffer.clone());
                pass_held(pad, &filtering, held);
                // Consumed here. (With Drop, gstreamer-rs and GStreamer 1.22 release the buffer twice.)
                let Some(number) = new else { return gst::PadProbeReturn::Handled };
                buffer.make_mut().set_offset(number);
            }
            // After these events the held picture could not pass any more, or with the wrong format.
            Some(gst::PadProbeData::Event(event))
                if matches!(event.type_(), gst::EventType::Eos | gst::EventType::Caps) =>
            {
                let held = lock(&filtering).filter.release();
                pass_held(pad, &filtering, held);
            }
            _ => {}
        }
        gst::PadProbeReturn::Ok
    });
}

/// Decoded picture, and its frame once it has been built.
struct Decoded {
    sample: gst::Sample,
    number: u64,
    frame: Option<Vec<u8>>,
}

impl Decoded {
    fn frame(
        &mut self,
        builder: &mut FrameBuilder,
        path: &Path,
        pipeline: &TrackPipeline,
        track: &VideoTrack,
    ) -> Result<Vec<u8>, JobError> {
        if let Some(frame) = &self.frame {
            return Ok(frame.clone());
        }
        let frame = builder.build(path, &self.sample, pipeline, track)?;
        Ok(self.frame.insert(frame).clone())
    }
}

/// Conversion of decoded samples to frames; scratch memory is reused.
#[derive(Default)]
struct FrameBuilder {
    converter: Converter,
    resizer: Resizer,
    picture: Picture,
    turned: Picture,
}

impl FrameBuilder {
    fn build(
        &mut self,
        path: &Path,
        sample: &gst::Sample,
        pipeline: &TrackPipeline,
        track: &VideoTrack,
    ) -> Result<Vec<u8>, JobError> {
        let odd = |what: &str| failure::unsupported(path, what);
        let caps = sample.caps().ok_or_else(|| odd("a decoded picture has no format"))?;
        let info = gst_video::VideoInfo::from_caps(caps).map_err(|e| odd(&format!("{caps}: {e}")))?;
        let buffer = sample.buffer().ok_or_else(|| odd("a decoded picture has no data"))?;
        let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info)
            .map_err(|_| odd("a decoded picture cannot be mapped"))?;
        let conversion = conversion(caps, &info, pipeline, track);
        self.converter.convert(&frame, conversion, &mut self.picture);
        let upright = self.picture.shown(track.orientation, &mut self.turned);
        let mut out = vec![0; FRAME_BYTES];
        self.resizer.resize(upright, &mut out);
        Ok(out)
    }
}

/// Matrix and range of a decoded picture.
///
/// ffmpeg believes the pictures, which its decoders and the parser of AV1 tell of, before the container, and ProRes alone even
/// where it tells nothing; of HEVC the range as well. Other decoders choose a matrix by picture size; where nobody tells one, ffmpeg takes BT.601. A range
/// that the pictures tell comes with their matrix, but for ProRes, which has none. It is read from the text because `VideoInfo`
/// drops it when there is no matrix.
fn conversion(
    caps: &gst::CapsRef,
    info: &gst_video::VideoInfo,
    pipeline: &TrackPipeline,
    track: &VideoTrack,
) -> Conversion {
    let (decoded, parsed) = (colorimetry(caps), pipeline.parsed_caps());
    let is = |name: &str| parsed.as_deref().and_then(|c| c.structure(0)).is_some_and(|s| s.name() == name);
    let known = |c: &VideoColorimetry| c.matrix() != VideoColorMatrix::Unknown;
    let told = parsed.as_deref().and_then(colorimetry);
    let own = decoded.filter(|_| pipeline.is_ffmpegs()).or(told.filter(|_| is("video/x-av1"))).filter(known);
    let container = pipeline.told_colours().and_then(|text| VideoColorimetry::from_str(&text).ok()).or(told);
    let full = |c: &Option<VideoColorimetry>| c.as_ref().is_some_and(|c| c.range() == VideoColorRange::Range0_255);
    let (is_prores, is_hevc) = (is("video/x-prores"), is("video/x-h265"));
    let is_full = match own.filter(|_| !is_prores) {
        Some(_) => full(&own),
        None if is_hevc => full(&decoded),
        None => full(&decoded) || track.full_range.unwrap_or_else(|| full(&container)),
    };
    Conversion {
        matrix: own.or(container.filter(|_| !is_prores && !is_hevc)).map_or(VideoColorMatrix::Unknown, |c| c.matrix()),
        // swscale takes grey without colours as it is (`libswscale/utils.c`, `handle_jpeg`).
        full_range: info.n_components() == 1 || is_full,
    }
}

/// Matrix and range that caps give.
fn colorimetry(caps: &gst::CapsRef) -> Option<VideoColorimetry> {
    VideoColorimetry::from_str(caps.structure(0)?.get::<&str>("colorimetry").ok()?).ok()
}
