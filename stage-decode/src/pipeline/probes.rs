//! Pad probes that watch and change the flow between elements.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gst::prelude::*;
use gstreamer as gst;
use gstreamer_audio as gst_audio;
use gstreamer_video as gst_video;

use super::selection::Overlay;
use super::shared::Shared;

/// Replaces bytes of the file by the overlays' on their way to the demuxer.
pub(super) fn overlay(source: &gst::Element, overlays: Vec<Overlay>) {
    let Some(pad) = source.static_pad("src") else { return };
    let mask = gst::PadProbeType::BUFFER | gst::PadProbeType::PULL | gst::PadProbeType::PUSH;
    pad.add_probe(mask, move |_, info| {
        let Some(buffer) = info.buffer_mut() else { return gst::PadProbeReturn::Ok };
        let start = buffer.offset();
        let end = start.saturating_add(buffer.size() as u64);
        let touches = |o: &&Overlay| o.at < end && o.at + o.bytes.len() as u64 > start;
        if !overlays.iter().any(|o| touches(&o)) {
            return gst::PadProbeReturn::Ok;
        }
        if let Ok(mut map) = buffer.make_mut().map_writable() {
            for (at, byte) in overlays.iter().filter(touches).flat_map(|o| (o.at..).zip(&o.bytes)) {
                let place = at.checked_sub(start).and_then(|p| map.get_mut(p as usize));
                place.into_iter().for_each(|place| *place = *byte);
            }
        }
        gst::PadProbeReturn::Ok
    });
}

/// Counts the buffers that pass a pad as progress.
pub(super) fn count_progress(pad: &gst::Pad, shared: &Arc<Shared>) {
    let shared = shared.clone();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        shared.progress.fetch_add(1, Ordering::Relaxed);
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
