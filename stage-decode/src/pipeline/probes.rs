//! Pad probes that watch and change the flow between elements.

use std::path::Path;
use std::sync::Arc;

use gst::prelude::*;
use gstreamer as gst;
use gstreamer_audio as gst_audio;
use gstreamer_video as gst_video;

use super::limits::Limits;
use super::shared::{Shared, lock};
use crate::failure;

/// Refuses a file whose pictures exceed the limit, before anything behind the pad gets one.
pub(super) fn limit_pixels(pad: &gst::Pad, path: &Path, limits: Limits, shared: &Arc<Shared>) {
    let (path, shared) = (path.to_owned(), shared.clone());
    let mask = gst::PadProbeType::BUFFER | gst::PadProbeType::EVENT_DOWNSTREAM;
    pad.add_probe(mask, move |pad, info| {
        let size = match &info.data {
            // Once it is refused nothing passes any more.
            Some(gst::PadProbeData::Buffer(_)) if shared.refusal.get().is_some() => {
                return gst::PadProbeReturn::Handled;
            }
            Some(gst::PadProbeData::Buffer(buffer)) => vp8_size(pad, buffer),
            Some(gst::PadProbeData::Event(event)) => match event.view() {
                gst::EventView::Caps(caps) => picture_size(caps.caps()),
                _ => None,
            },
            _ => None,
        };
        match size.map(|size| limits.check(&path, size)) {
            Some(Err(error)) => {
                shared.refusal.set(error);
                gst::PadProbeReturn::Handled
            }
            _ => gst::PadProbeReturn::Ok,
        }
    });
}

/// Width and height that caps give.
pub(super) fn picture_size(caps: &gst::CapsRef) -> Option<[u32; 2]> {
    let structure = caps.structure(0)?;
    let side = |name: &str| u32::try_from(structure.get::<i32>(name).ok()?).ok();
    Some([side("width")?, side("height")?])
}

/// Width and height in the header of a VP8 keyframe (RFC 6386, 9.1): no parser reads it before the decoder does.
fn vp8_size(pad: &gst::Pad, buffer: &gst::Buffer) -> Option<[u32; 2]> {
    let caps = pad.current_caps()?;
    if caps.structure(0)?.name() != "video/x-vp8" {
        return None;
    }
    let mut header = [0; 10];
    buffer.copy_to_slice(0, &mut header).ok()?;
    let [tag, _, _, 0x9d, 0x01, 0x2a, width, width_high, height, height_high] = header else { return None };
    let side = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
    (tag & 1 == 0).then(|| [side(width, width_high), side(height, height_high)])
}

/// Reports a decoder that gives fields one by one (HEVC with `field_seq_flag`): no element behind it takes them.
pub(super) fn refuse_fields(pad: &gst::Pad, path: &Path, shared: &Arc<Shared>) {
    let (path, shared) = (path.to_owned(), shared.clone());
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        if let Some(gst::PadProbeData::Event(event)) = &info.data
            && let gst::EventView::Caps(caps) = event.view()
            && caps.caps().structure(0).is_some_and(|s| s.get::<&str>("interlace-mode") == Ok("alternate"))
        {
            let what = "its fields come one by one; join them with ffmpeg -i IN -vf tinterlace=merge OUT.mp4";
            lock(&shared.failure).get_or_insert(failure::unsupported(&path, what));
        }
        gst::PadProbeReturn::Ok
    });
}

/// Takes the colours that a container tells from the caps in front of a decoder of ffmpeg's: it would believe them before
/// those in the pictures, and says then what it read itself.
pub(super) fn forget_told_colours(pad: &gst::Pad) {
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, |_, info| {
        if let Some(gst::PadProbeData::Event(event)) = &mut info.data
            && let gst::EventView::Caps(caps) = event.view()
        {
            let mut caps = caps.caps_owned();
            for structure in caps.make_mut().iter_mut() {
                structure.remove_field("colorimetry");
                // Matroska's demuxer gives whole pictures, and does not say so.
                if structure.name() == "image/jpeg" {
                    structure.set("parsed", true);
                }
            }
            *event = gst::event::Caps::builder(&caps).seqnum(event.seqnum()).build();
        }
        gst::PadProbeReturn::Ok
    });
}

/// Counts the buffers that pass a pad as progress.
pub(super) fn count_progress(pad: &gst::Pad, shared: &Arc<Shared>) {
    let shared = shared.clone();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        shared.reading.step();
        gst::PadProbeReturn::Ok
    });
}

/// Announces that any row stride is accepted: the decoder then delivers its own buffers without a copy.
pub(super) fn accept_strides(pad: &gst::Pad) {
    pad.add_probe(gst::PadProbeType::QUERY_DOWNSTREAM, |_, info| {
        let Some(query) = info.query_mut() else { return gst::PadProbeReturn::Ok };
        let gst::QueryViewMut::Allocation(allocation) = query.view_mut() else { return gst::PadProbeReturn::Ok };
        allocation.add_allocation_meta::<gst_video::VideoMeta>(None);
        gst::PadProbeReturn::Handled
    });
}

/// Asks a decoder of Windows Media Audio 1 or 2 for its last block when the stream ends. A decoder of ffmpeg's gives that block when it is drained;
/// GStreamer 1.22 does not take it for these two (`gst_ffmpegauddec_drain`). A packet of silence lets it out: what is kept of
/// the block before is then added to nothing. One that is too short comes first, at which the decoder forgets what a packet before
/// has of the next (`wma_decode_superframe`, `flush`).
pub(super) fn end_windows_audio(pad: &gst::Pad, decoder: &gst::Pad, caps: &gst::CapsRef) {
    let Some(silence) = windows_silence(caps) else { return };
    let decoder = decoder.downgrade();
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, move |_, info| {
        let ends = matches!(&info.data, Some(gst::PadProbeData::Event(event)) if event.type_() == gst::EventType::Eos);
        if let Some(decoder) = decoder.upgrade().filter(|_| ends) {
            // Where the decoder takes no more there is nobody to hear it.
            for packet in [&[0][..], &silence] {
                let _ = decoder.chain(gst::Buffer::from_slice(packet.to_vec()));
            }
        }
        gst::PadProbeReturn::Ok
    });
}

/// A packet of silence of Windows Media Audio 1 or 2, for a decoder that has nothing of the packet before; none for another format.
fn windows_silence(caps: &gst::CapsRef) -> Option<Vec<u8>> {
    let structure = caps.structure(0).filter(|s| s.name() == "audio/x-wma")?;
    let flags_at = match structure.get::<i32>("wmaversion").ok()? {
        1 => 2,
        2 => 4,
        _ => return None,
    };
    // Two bytes of a header tell it.
    let block = u16::try_from(structure.get::<i32>("block_align").ok()?).ok().filter(|block| *block > 1)?;
    let data = structure.get::<gst::Buffer>("codec_data").ok()?;
    let flags = *data.map_readable().ok()?.get(flags_at)?;
    // Blocks of the full length in which no channel has a sound are zeros. With a reservoir of bits (flag 2) a header stands before
    // them: four bits of a number, and four of how many blocks begin here, one of which would be the packet before's.
    let mut silence = vec![0; usize::from(block)];
    silence[0] = flags & 2;
    Some(silence)
}

/// Takes from buffers of uncompressed sound what is no whole sample: an element behind them would take nothing of such a buffer.
pub(super) fn whole_samples(pad: &gst::Pad, caps: &gst::CapsRef) {
    let Ok(info) = gst_audio::AudioInfo::from_caps(caps) else { return };
    let sample = info.bpf() as usize;
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        if let Some(buffer) = info.buffer_mut() {
            let part = buffer.size().checked_rem(sample).unwrap_or(0);
            if part > 0 {
                let whole = buffer.size() - part;
                buffer.make_mut().set_size(whole);
            }
        }
        gst::PadProbeReturn::Ok
    });
}

/// Removes the packets' marks of codec delay and padding.
pub(super) fn remove_clipping_marks(pad: &gst::Pad) {
    pad.add_probe(gst::PadProbeType::BUFFER, |_, info| {
        if let Some(buffer) = info.buffer_mut()
            && buffer.meta::<gst_audio::AudioClippingMeta>().is_some()
        {
            while let Some(mark) = buffer.make_mut().meta_mut::<gst_audio::AudioClippingMeta>() {
                if mark.remove().is_err() {
                    break;
                }
            }
        }
        gst::PadProbeReturn::Ok
    });
}

/// Replaces every segment by one from zero without an end: which pictures are shown is decided by their numbers, not
/// by the decoder's clipping.
pub(super) fn open_segments(pad: &gst::Pad) {
    pad.add_probe(gst::PadProbeType::EVENT_DOWNSTREAM, |_, info| {
        if let Some(gst::PadProbeData::Event(event)) = &mut info.data
            && let gst::EventView::Segment(segment) = event.view()
            && segment.segment().format() == gst::Format::Time
        {
            let open = gst::FormattedSegment::<gst::ClockTime>::new();
            *event = gst::event::Segment::builder(&open).seqnum(event.seqnum()).build();
        }
        gst::PadProbeReturn::Ok
    });
}
