//! Pad probes that watch and change the flow between elements.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gst::prelude::*;
use gstreamer as gst;
use gstreamer_audio as gst_audio;
use gstreamer_video as gst_video;

use super::shared::Shared;

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
