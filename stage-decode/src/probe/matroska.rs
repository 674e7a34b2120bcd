//! Matroska and WebM: the tracks, and a count of the blocks of each without reading their content.
//!
//! Format: RFC 9559.

use std::collections::HashMap;
use std::io;
use std::ops::Range;

use super::bytes::Bytes;
use super::ebml::{children, element, float, number, signed, text, unsigned};
use super::h264::Fields;
use crate::picture::{Orientation, Turn};
use crate::timeline::{MAX_LISTED, Timeline};

/// Recordings of a file that are read at most besides the first.
const MAX_LATER: usize = 15;
/// Bytes of a track's parameters that are read at most.
const MAX_PRIVATE: u64 = 1 << 16;
/// Bytes at the start of a block in which its first slice is looked for.
const BLOCK_HEAD: u64 = 4096;

/// Type of a video track (RFC 9559, TrackType).
pub(crate) const VIDEO: u64 = 1;
/// Type of an audio track.
pub(crate) const AUDIO: u64 = 2;

/// Index of a file, and what its clusters were found to hold.
#[derive(Debug, Default)]
pub(crate) struct Segment {
    /// Nanoseconds per timestamp step.
    scale_ns: u64,
    /// Duration in steps; 0 if the file does not say.
    duration: f64,
    pub(crate) tracks: Vec<Track>,
    /// Part of the file that it is.
    pub(crate) part: Range<u64>,
    webm: bool,
}

/// A track, and what was counted of it.
#[derive(Debug, Default)]
pub(crate) struct Track {
    pub(crate) number: u64,
    pub(crate) uid: u64,
    /// [`VIDEO`] or [`AUDIO`].
    pub(crate) kind: u64,
    pub(crate) codec: String,
    pub(crate) default: bool,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) channels: u32,
    pub(crate) orientation: Orientation,
    /// Nanoseconds per frame; 0 if the file does not say.
    frame_ns: u64,
    /// Nanoseconds of audio to drop at the start.
    pub(crate) delay_ns: u64,
    /// Nanoseconds of audio to drop at the end.
    pub(crate) discard_ns: u64,
    /// Number of blocks that show a picture or hold audio.
    pub(crate) blocks: u64,
    /// First and last timestamp of all blocks, in steps.
    span: Option<(i64, i64)>,
    /// Timestamps of the blocks that show a picture, in steps, in file order.
    times: Vec<i64>,
    /// Reader of pictures of H.264 that may come as fields.
    fields: Option<Fields>,
    /// Number of blocks that hold the second field of a picture.
    second_fields: u64,
}

mod id {
    pub(super) const EBML: u32 = 0x1a45_dfa3;
    pub(super) const DOC_TYPE: u32 = 0x4282;
    pub(super) const SEGMENT: u32 = 0x1853_8067;
    pub(super) const INFO: u32 = 0x1549_a966;
    pub(super) const SCALE: u32 = 0x2a_d7b1;
    pub(super) const DURATION: u32 = 0x4489;
    pub(super) const TRACKS: u32 = 0x1654_ae6b;
    pub(super) const ENTRY: u32 = 0xae;
    pub(super) const NUMBER: u32 = 0xd7;
    pub(super) const UID: u32 = 0x73c5;
    pub(super) const KIND: u32 = 0x83;
    pub(super) const DEFAULT: u32 = 0x88;
    pub(super) const CODEC: u32 = 0x86;
    pub(super) const CODEC_PRIVATE: u32 = 0x63a2;
    pub(super) const FRAME_NS: u32 = 0x23_e383;
    pub(super) const CODEC_DELAY: u32 = 0x56aa;
    pub(super) const VIDEO: u32 = 0xe0;
    pub(super) const WIDTH: u32 = 0xb0;
    pub(super) const HEIGHT: u32 = 0xba;
    pub(super) const PROJECTION: u32 = 0x7670;
    pub(super) const PROJECTION_TYPE: u32 = 0x7671;
    pub(super) const YAW: u32 = 0x7673;
    pub(super) const PITCH: u32 = 0x7674;
    pub(super) const ROLL: u32 = 0x7675;
    pub(super) const AUDIO: u32 = 0xe1;
    pub(super) const CHANNELS: u32 = 0x9f;
    pub(super) const CLUSTER: u32 = 0x1f43_b675;
    pub(super) const CLUSTER_TIME: u32 = 0xe7;
    pub(super) const SIMPLE_BLOCK: u32 = 0xa3;
    pub(super) const GROUP: u32 = 0xa0;
    pub(super) const BLOCK: u32 = 0xa1;
    pub(super) const DISCARD: u32 = 0x75a2;
}

impl Segment {
    /// Reads the recordings of a file: the first, and those that were joined to it; `None` if it is not Matroska. A truncated file
    /// counts up to where it ends.
    pub(crate) fn read(bytes: &mut Bytes<'_>) -> io::Result<Option<(Segment, Vec<Segment>)>> {
        if bytes.size() < 4 || bytes.u32(0)? != id::EBML {
            return Ok(None);
        }
        let first = Segment::read_from(bytes, 0)?;
        let (mut next, mut later) = (first.part.end, Vec::new());
        while next < bytes.size() && later.len() < MAX_LATER {
            // What cannot be read of a later one is told as missing.
            let Ok(recording) = Segment::read_from(bytes, next) else { break };
            next = recording.part.end;
            later.push(recording);
        }
        Ok(Some((first, later)))
    }

    /// Reads the recording that starts at a position, up to the next one.
    fn read_from(bytes: &mut Bytes<'_>, start: u64) -> io::Result<Segment> {
        let head = element(bytes, start, bytes.size())?;
        let mut segment = Segment { scale_ns: 1_000_000, part: start..bytes.size(), ..Segment::default() };
        for child in children(bytes, &head.body)? {
            if child.id == id::DOC_TYPE {
                segment.webm = text(bytes, &child.body)? == "webm";
            }
        }
        let mut numbers = HashMap::new();
        let (mut at, mut cluster_time) = (head.body.end, 0i64);
        while at < bytes.size() {
            bytes.spend(1)?;
            let Ok(found) = element(bytes, at, bytes.size()) else { break };
            if found.id == id::EBML {
                segment.part.end = at;
                break;
            }
            at = match found.id {
                // Their children are read by this same loop, so that those of unknown size need no end.
                id::SEGMENT | id::CLUSTER => found.body.start,
                _ if found.open => break,
                _ => found.body.end,
            };
            match found.id {
                id::INFO => segment.info(bytes, &found.body)?,
                id::TRACKS if segment.tracks.is_empty() => {
                    segment.entries(bytes, &found.body)?;
                    numbers = segment.tracks.iter().enumerate().map(|(i, t)| (t.number, i)).collect();
                }
                id::CLUSTER_TIME => cluster_time = unsigned(bytes, &found.body)? as i64,
                // ffmpeg takes no part of a block.
                id::SIMPLE_BLOCK if found.cut => {}
                id::SIMPLE_BLOCK => segment.block(bytes, &numbers, &found.body, cluster_time, 0),
                id::GROUP => {
                    let Ok(parts) = children(bytes, &found.body) else { continue };
                    let mut discard_ns = 0;
                    if let Some(part) = parts.iter().find(|p| p.id == id::DISCARD) {
                        discard_ns = signed(bytes, &part.body)?;
                    }
                    for part in parts.iter().filter(|p| p.id == id::BLOCK && !p.cut) {
                        segment.block(bytes, &numbers, &part.body, cluster_time, discard_ns);
                    }
                }
                _ => {}
            }
        }
        Ok(segment)
    }

    fn info(&mut self, bytes: &mut Bytes<'_>, body: &Range<u64>) -> io::Result<()> {
        for child in children(bytes, body)? {
            match child.id {
                id::SCALE => self.scale_ns = unsigned(bytes, &child.body)?.max(1),
                id::DURATION => self.duration = float(bytes, &child.body)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn entries(&mut self, bytes: &mut Bytes<'_>, body: &Range<u64>) -> io::Result<()> {
        for entry in children(bytes, body)?.iter().filter(|c| c.id == id::ENTRY) {
            let mut track = Track { default: true, channels: 1, ..Track::default() };
            let mut private = Vec::new();
            for child in children(bytes, &entry.body)? {
                let body = &child.body;
                match child.id {
                    id::NUMBER => track.number = unsigned(bytes, body)?,
                    id::UID => track.uid = unsigned(bytes, body)?,
                    id::KIND => track.kind = unsigned(bytes, body)?,
                    id::DEFAULT => track.default = unsigned(bytes, body)? != 0,
                    id::CODEC => track.codec = text(bytes, body)?,
                    id::CODEC_PRIVATE => {
                        private = vec![0; (body.end - body.start).min(MAX_PRIVATE) as usize];
                        bytes.read(body.start, &mut private)?;
                    }
                    id::FRAME_NS => track.frame_ns = unsigned(bytes, body)?,
                    id::CODEC_DELAY => track.delay_ns = unsigned(bytes, body)?,
                    id::VIDEO | id::AUDIO => {
                        for detail in children(bytes, body)? {
                            if detail.id == id::PROJECTION {
                                track.orientation = projection(bytes, &detail.body)?;
                                continue;
                            }
                            let value = unsigned(bytes, &detail.body).unwrap_or(0) as u32;
                            match detail.id {
                                id::WIDTH => track.width = value,
                                id::HEIGHT => track.height = value,
                                id::CHANNELS => track.channels = value,
                                _ => {}
                            }
                        }
                    }
                    _ => {}
                }
            }
            if track.codec == "V_MPEG4/ISO/AVC" {
                track.fields = Some(Fields::new(Some(&private))).filter(Fields::may_come);
            }
            self.tracks.push(track);
        }
        Ok(())
    }

    /// Counts a block, which is a track number, a 16-bit time, flags and the frame.
    fn block(
        &mut self,
        bytes: &mut Bytes<'_>,
        numbers: &HashMap<u64, usize>,
        body: &Range<u64>,
        cluster_time: i64,
        discard_ns: i64,
    ) {
        let Ok((number, length)) = number(bytes, body.start, false) else { return };
        let Some(track) = numbers.get(&number).and_then(|&i| self.tracks.get_mut(i)) else { return };
        let Ok([high, low, _flags, first]) = bytes.array::<4>(body.start + length) else { return };
        let time = cluster_time.saturating_add(i16::from_be_bytes([high, low]).into());
        let (start, end) = track.span.unwrap_or((time, time));
        track.span = Some((start.min(time), end.max(time)));
        track.discard_ns = discard_ns.max(0) as u64;
        if let Some(fields) = &mut track.fields {
            let start = body.start + length + 3;
            let mut head = vec![0; body.end.saturating_sub(start).min(BLOCK_HEAD) as usize];
            if bytes.read(start, &mut head).is_ok() && fields.is_second(&head) {
                track.second_fields += 1;
                return;
            }
        }
        // VP8 has blocks of pictures that are never shown, only referred to (RFC 6386, 9.1: show_frame).
        if track.codec != "V_VP8" || (first >> 4) & 1 == 1 {
            track.blocks += 1;
            // One beyond the limit tells the timeline that there are more.
            if track.kind == VIDEO && track.times.len() <= MAX_LISTED {
                track.times.push(time);
            }
        }
    }

    /// The track of this recording that goes on with one of another: of its kind and codec, and of its number if there are several.
    pub(crate) fn same(&self, other: &Track) -> Option<&Track> {
        let alike = || self.tracks.iter().filter(|t| t.blocks > 0 && (t.kind, &t.codec) == (other.kind, &other.codec));
        alike().find(|t| t.number == other.number).or_else(|| alike().next())
    }

    /// Times at which a track's pictures are shown.
    pub(crate) fn timeline(&self, track: &Track) -> Timeline {
        let at = |steps: i64| Some((u64::try_from(steps).ok()?.checked_mul(self.scale_ns)?, true));
        Timeline::new(track.times.iter().map(|&steps| at(steps)))
    }

    /// Name of the container.
    pub(crate) fn container(&self) -> &'static str {
        if self.webm { "webm" } else { "matroska" }
    }

    /// Duration in seconds: the file's own figure, else the end of the last block.
    pub(crate) fn duration_s(&self) -> f64 {
        if self.duration > 0.0 {
            return (self.duration * self.scale_ns as f64 / 1e3).trunc() / 1e6;
        }
        self.tracks.iter().map(|t| self.track_end_s(t)).fold(0.0, f64::max)
    }

    fn track_end_s(&self, track: &Track) -> f64 {
        let Some((start, end)) = track.span else { return 0.0 };
        let guess =
            end.saturating_sub(start) as f64 / track.blocks.saturating_sub(1).max(1) as f64 * self.scale_ns as f64;
        let last = if track.frame_ns > 0 { track.frame_ns as f64 } else { guess };
        (end as f64 * self.scale_ns as f64 + last) / 1e9
    }

    /// Pictures per second (ffmpeg's `avg_frame_rate`): the file's own figure, else as counted.
    pub(crate) fn average_rate(&self, track: &Track) -> f64 {
        if track.frame_ns > 0 && track.second_fields == 0 {
            return 1e9 / track.frame_ns as f64;
        }
        let packets = track.blocks + track.second_fields;
        match track.span {
            Some((start, end)) if end > start && packets > 0 => {
                let seconds = end.saturating_sub(start) as f64 * self.scale_ns as f64 / 1e9;
                (packets - 1) as f64 / seconds * track.blocks as f64 / packets as f64
            }
            _ => 0.0,
        }
    }

    /// Estimated seconds of audio in the blocks.
    pub(crate) fn audio_s(&self, track: &Track) -> f64 {
        let start = track.span.map_or(0, |s| s.0) as f64 * self.scale_ns as f64 / 1e9;
        (self.track_end_s(track) - start - track.discard_ns.saturating_add(track.delay_ns) as f64 / 1e9).max(0.0)
    }
}

/// Orientation of a flat picture, as ffmpeg takes it (`libavformat/matroskadec.c`, `mkv_create_display_matrix`): a yaw of
/// 180 degrees mirrors it, and the roll that follows is counter-clockwise. RFC 9559, 5.1.4.1.28.41.
fn projection(bytes: &mut Bytes<'_>, body: &Range<u64>) -> io::Result<Orientation> {
    let (mut kind, mut yaw, mut pitch, mut roll) = (0, 0.0, 0.0, 0.0);
    for child in children(bytes, body)? {
        match child.id {
            id::PROJECTION_TYPE => kind = unsigned(bytes, &child.body)?,
            id::YAW => yaw = float(bytes, &child.body)?,
            id::PITCH => pitch = float(bytes, &child.body)?,
            id::ROLL => roll = float(bytes, &child.body)?,
            _ => {}
        }
    }
    let flat = kind == 0 && pitch == 0.0 && (yaw == 0.0 || f64::abs(yaw) == 180.0) && f64::is_finite(roll);
    let turn = Turn::from_degrees((-roll).rem_euclid(360.0).round() as u32);
    Ok(if flat { Orientation { mirrored: yaw != 0.0, turn } } else { Orientation::default() })
}
