//! Whether the last packet of a track gives a picture: its decoder is asked.
//!
//! ffmpeg counts a picture that is cut where its decoder makes something of it, which no container tells. Of the packets from the second last
//! key picture on those that the last one may refer to are decoded, with the last one and without it.

use gst::prelude::*;
use gstreamer as gst;
use gstreamer_app as gst_app;
use protocol::stage::Stop;

use super::POLL;
use super::connect::decoder;
use super::last_packets::LastPackets;
use super::limits::Limits;
use super::running::Running;
use crate::crew::Progress;
use crate::failure;
use crate::media_file::MediaFile;

/// Whether the last one of these packets gives a picture; so it counts too where that is not known.
///
/// # Errors
/// `Cancelled` once `cancelled` says so, `unsupported_media` without progress for too long.
pub(crate) fn gives_last(
    last: &LastPackets,
    media: &MediaFile,
    limits: Limits,
    cancelled: &dyn Fn() -> bool,
) -> Result<bool, Stop> {
    let Some((caps, packets)) = last.deciding() else { return Ok(true) };
    let decoded = |count| decoded(media, caps, packets.iter().copied().take(count), limits, cancelled);
    let all = packets.len();
    let with = decoded(all)?;
    if with >= all {
        return Ok(true);
    }
    let without = decoded(all - 1)?;
    // A decoder that makes nothing of the others does not tell.
    Ok(without == 0 || with > without)
}

/// Number of the pictures that a decoder makes of packets.
fn decoded<'p>(
    media: &MediaFile,
    caps: &gst::Caps,
    packets: impl Iterator<Item = &'p gst::Buffer>,
    limits: Limits,
    cancelled: &dyn Fn() -> bool,
) -> Result<usize, Stop> {
    let running = Running(gst::Pipeline::new());
    let Some(decoder) = decoder(caps) else { return Ok(0) };
    let source = gst_app::AppSrc::builder().caps(caps).format(gst::Format::Time).max_bytes(0).build();
    let sink = gst_app::AppSink::builder().sync(false).max_buffers(4).build();
    let elements = [source.upcast_ref(), &decoder, sink.upcast_ref::<gst::Element>()];
    let linked = running.0.add_many(elements).and_then(|()| gst::Element::link_many(elements));
    linked.map_err(|_| failure::no_element("appsrc"))?;
    for packet in packets {
        let _ = source.push_buffer(packet.clone());
    }
    let (_, started) = (source.end_of_stream(), running.0.set_state(gst::State::Playing));
    let bus = running.0.bus().filter(|_| started.is_ok()).ok_or_else(|| failure::no_element("bus"))?;
    let (mut count, mut progress) = (0, Progress::new(media));
    loop {
        if cancelled() {
            return Err(Stop::Cancelled);
        }
        if sink.try_pull_sample(POLL).is_some() {
            count += 1;
            media.reading().step();
        } else if sink.is_eos() || bus.pop_filtered(&[gst::MessageType::Error]).is_some() {
            return Ok(count);
        }
        progress.check(limits.stall)?;
    }
}
