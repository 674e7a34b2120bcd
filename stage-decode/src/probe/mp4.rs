//! ISO base media (mp4, mov, m4a): the index that stands in `moov`, and in `moof` for fragmented files.
//!
//! Formats: ISO/IEC 14496-12. What counts as shown follows ffmpeg's demuxer (`libavformat/mov.c`, `mov_fix_index`):
//! picture samples whose composition time lies in an edit; sound from the edit's start to the end of the packet in
//! which it ends.

mod track;

use std::io;
use std::ops::Range;

use super::bytes::Bytes;
use crate::pipeline::Overlay;
pub(crate) use track::Track;

/// Boxes nest this deep at most where they matter here.
const MAX_DEPTH: u32 = 8;
/// Boxes that a file may have; beyond that it is not a video that anyone made.
const MAX_BOXES: u64 = 1 << 22;

/// Samples of a track: ten days of sound in frames of 1024 at 48 kHz.
const MAX_SAMPLES: u64 = 1 << 25;

/// What a file's index says.
#[derive(Debug, Default)]
pub(crate) struct Movie {
    /// `mvhd`: ticks and ticks a second.
    pub(crate) duration: u64,
    pub(crate) timescale: u32,
    pub(crate) fragmented: bool,
    length_field: Option<LengthField>,
    pub(crate) tracks: Vec<Track>,
}

/// Where a header holds its duration, and in how many bytes.
#[derive(Clone, Copy, Debug)]
struct LengthField {
    at: u64,
    width: usize,
}

struct Found {
    name: [u8; 4],
    name_at: u64,
    body: Range<u64>,
    /// The file ends before the box does.
    cut: bool,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// The boxes that fill `range`; a last one that the file cuts short ends with the file.
fn boxes(bytes: &mut Bytes<'_>, range: Range<u64>) -> io::Result<Vec<Found>> {
    let mut at = range.start;
    let mut found = Vec::new();
    while at + 8 <= range.end {
        let size = u64::from(bytes.u32(at)?);
        let name = bytes.array(at + 4)?;
        let (header, size) = match size {
            0 => (8, range.end - at),
            1 if at + 16 <= range.end => (16, bytes.u64(at + 8)?),
            size => (8, size),
        };
        if size < header {
            return Err(bad("a box is smaller than its header"));
        }
        let told = at.saturating_add(size);
        let end = told.min(range.end);
        found.push(Found { name, name_at: at + 4, body: at + header..end, cut: told > range.end });
        if found.len() as u64 > MAX_BOXES {
            return Err(bad("too many boxes"));
        }
        at = end;
    }
    Ok(found)
}

impl Movie {
    /// Reads the index; `None` if the file has none (it is another format, or was cut before its `moov`).
    pub(crate) fn read(bytes: &mut Bytes<'_>) -> io::Result<Option<Movie>> {
        let top = boxes(bytes, 0..bytes.size())?;
        let Some(moov) = top.iter().find(|b| &b.name == b"moov") else { return Ok(None) };
        let mut movie = Movie::default();
        let inside = boxes(bytes, moov.body.clone())?;
        for found in &inside {
            match &found.name {
                b"mvhd" => {
                    let field;
                    (movie.timescale, movie.duration, field) = clock(bytes, &found.body)?;
                    movie.length_field = Some(field);
                }
                b"trak" => {
                    let mut track = Track::named_at(found.name_at);
                    track.descend(bytes, found.body.clone(), 0)?;
                    if track.totals().0 > MAX_SAMPLES {
                        return Err(bad("a track has more samples than any real one"));
                    }
                    if top.iter().any(|b| b.cut) {
                        track.keep_present(bytes)?;
                    }
                    movie.tracks.push(track);
                }
                b"cmov" => return Err(bad("its index is compressed")),
                _ => {}
            }
        }
        for found in inside.iter().filter(|b| &b.name == b"mvex") {
            movie.fragmented = true;
            for trex in boxes(bytes, found.body.clone())?.iter().filter(|b| &b.name == b"trex") {
                let (id, duration) = (bytes.u32(trex.body.start + 4)?, bytes.u32(trex.body.start + 12)?);
                movie.tracks.iter_mut().filter(|t| t.id == id).for_each(|t| t.default_duration = duration);
            }
        }
        if movie.fragmented {
            movie.tracks.iter_mut().for_each(|t| t.fragment_at = t.totals().1 as i64);
            for moof in top.iter().filter(|b| &b.name == b"moof") {
                for traf in boxes(bytes, moof.body.clone())?.iter().filter(|b| &b.name == b"traf") {
                    movie.fragment(bytes, traf.body.clone())?;
                }
            }
        }
        Ok(Some(movie))
    }

    /// Adds a track fragment's samples to its track.
    fn fragment(&mut self, bytes: &mut Bytes<'_>, traf: Range<u64>) -> io::Result<()> {
        let (mut id, mut duration) = (0, None);
        for found in boxes(bytes, traf)? {
            let start = found.body.start;
            let track = self.tracks.iter_mut().find(|t| t.id == id);
            match (&found.name, track) {
                (b"tfhd", _) => {
                    let flags = bytes.u32(start)? & 0xff_ffff;
                    id = bytes.u32(start + 4)?;
                    let skipped = 8 * u64::from(flags & 1) + 4 * u64::from(flags >> 1 & 1);
                    duration = if flags & 8 != 0 { Some(bytes.u32(start + 8 + skipped)?) } else { None };
                }
                (b"tfdt", Some(track)) => {
                    let long = bytes.array::<1>(start)?[0] == 1;
                    let at = if long { bytes.u64(start + 4)? } else { bytes.u32(start + 4)?.into() };
                    track.fragment_at = i64::try_from(at).map_err(|_| bad("a fragment lies beyond all time"))?;
                }
                (b"trun", Some(track)) => track.run(bytes, &found.body, duration)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// What makes GStreamer's demuxer give every sample of one track, and none of another: the other tracks and all
    /// edit lists are named `free`, and the headers' durations, at which it would stop, come after the last sample.
    pub(crate) fn overlays(&self, wanted: &Track) -> Vec<Overlay> {
        let free = |at| Overlay { at, bytes: b"free".to_vec() };
        let others = self.tracks.iter().filter(|t| t.id != wanted.id).map(|t| free(t.box_at));
        let edits = self.tracks.iter().filter_map(|t| t.edits_at).map(free);
        let last = wanted.spans().map(|span| span.end).max().unwrap_or(0).max(0) as u64;
        let scaled = u128::from(last) * u128::from(self.timescale) / u128::from(wanted.timescale.max(1));
        let lengths = [
            (self.length_field, self.duration.max(scaled as u64 + u64::from(self.timescale))),
            (wanted.length_field, last + u64::from(wanted.timescale)),
        ];
        // A fragmented file's headers tell no duration, and nothing stops at it.
        let lengths = lengths.into_iter().filter(|_| !self.fragmented).filter_map(|(field, ticks)| {
            let field = field?;
            let bytes = ticks.to_be_bytes();
            Some(Overlay { at: field.at, bytes: bytes[8 - field.width..].to_vec() })
        });
        others.chain(edits).chain(lengths).collect()
    }

    /// The duration as ffprobe tells it: the movie header's, or the longest track's in a fragmented file.
    pub(crate) fn duration_s(&self) -> f64 {
        let header = self.duration as f64 / f64::from(self.timescale.max(1));
        if header > 0.0 && !self.fragmented {
            return (header * 1e6).round() / 1e6;
        }
        self.tracks.iter().map(Track::length_s).fold(header, f64::max)
    }
}

/// Ticks a second, length in ticks and where that stands, as `mvhd` and `mdhd` hold them.
fn clock(bytes: &mut Bytes<'_>, body: &Range<u64>) -> io::Result<(u32, u64, LengthField)> {
    let at = body.start;
    Ok(if bytes.array::<1>(at)?[0] == 1 {
        (bytes.u32(at + 20)?, bytes.u64(at + 24)?, LengthField { at: at + 24, width: 8 })
    } else {
        let duration = bytes.u32(at + 16)?;
        let told = if duration == u32::MAX { 0 } else { duration.into() };
        (bytes.u32(at + 12)?, told, LengthField { at: at + 16, width: 4 })
    })
}

/// The rows of a counted table that starts with version and flags.
fn table<const N: usize>(bytes: &mut Bytes<'_>, body: &Range<u64>) -> io::Result<Vec<[u8; N]>> {
    let count = u64::from(bytes.u32(body.start + 4)?);
    if body.start + 8 + count * N as u64 > body.end {
        return Err(bad("a table is cut short"));
    }
    (0..count).map(|i| bytes.array(body.start + 8 + i * N as u64)).collect()
}
