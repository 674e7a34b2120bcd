//! Fragments of a file (`moof`): the samples of each track that are there.

use std::io;
use std::ops::Range;

use super::Movie;
use super::boxes::{bad, boxes};
use super::chunks::is_second;
use super::track::{MAX_SAMPLES, Track};
use crate::pcm::Pcm;
use crate::probe::bytes::Bytes;
use crate::timeline::MAX_LISTED;

/// What a fragment says of the samples of a track in it.
#[derive(Default)]
struct Header {
    track: u32,
    duration: Option<u32>,
    size: Option<u32>,
    /// Position that the offsets of its runs count from.
    base: u64,
}

impl Movie {
    /// Adds the samples of a fragment, which starts there, to their tracks.
    pub(super) fn fragment(&mut self, bytes: &mut Bytes<'_>, start: u64, moof: Range<u64>) -> io::Result<()> {
        // Without a base of its own, a track's data begin where those of the one before it end.
        let mut next = start;
        for traf in boxes(bytes, moof)?.iter().filter(|b| &b.name == b"traf") {
            let mut header = Header { base: next, ..Header::default() };
            for found in boxes(bytes, traf.body.clone())? {
                let at = found.body.start;
                let track = self.tracks.iter_mut().find(|t| t.id == header.track);
                match (&found.name, track) {
                    (b"tfhd", _) => header.read(bytes, at, start)?,
                    (b"tfdt", Some(track)) => {
                        let long = bytes.array::<1>(at)?[0] == 1;
                        let time = if long { bytes.u64(at + 4)? } else { bytes.u32(at + 4)?.into() };
                        track.fragment_at =
                            i64::try_from(time).map_err(|_| bad("a fragment's time exceeds 63 bits"))?;
                    }
                    (b"trun", Some(track)) => next = track.run(bytes, &found.body, &header, next)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

impl Header {
    fn read(&mut self, bytes: &mut Bytes<'_>, at: u64, moof: u64) -> io::Result<()> {
        let flags = bytes.u32(at)? & 0xff_ffff;
        self.track = bytes.u32(at + 4)?;
        let mut field = at + 8;
        if flags & 1 != 0 {
            self.base = bytes.u64(field)?;
            field += 8;
        } else if flags & 0x2_0000 != 0 {
            self.base = moof;
        }
        field += 4 * u64::from(flags >> 1 & 1);
        if flags & 8 != 0 {
            self.duration = Some(bytes.u32(field)?);
            field += 4;
        }
        if flags & 16 != 0 {
            self.size = Some(bytes.u32(field)?);
        }
        Ok(())
    }
}

impl Track {
    /// Adds a run of a fragment's samples, as far as the file goes, and gives the position behind their data; `next` is where
    /// those of the run before it end.
    fn run(&mut self, bytes: &mut Bytes<'_>, body: &Range<u64>, header: &Header, next: u64) -> io::Result<u64> {
        let flags = bytes.u32(body.start)? & 0xff_ffff;
        let count = u64::from(bytes.u32(body.start + 4)?);
        let first = body.start + 8 + 4 * u64::from(flags & 1) + 4 * u64::from(flags >> 2 & 1);
        // Each sample has those of duration, size, flags and composition offset whose flag is set.
        let width = 4 * u64::from((flags >> 8 & 0xf).count_ones());
        if first + count * width > body.end {
            return Err(bad("a fragment's table is truncated"));
        }
        if self.fragment_samples.saturating_add(count) > MAX_SAMPLES {
            return Err(bad("a track has more than 33,554,432 samples"));
        }
        bytes.spend(count)?;
        let offset = if flags & 1 != 0 { Some(bytes.u32(body.start + 8)? as i32) } else { None };
        let start = offset.map_or(next, |offset| header.base.saturating_add_signed(offset.into()));
        let (usual_ticks, usual_size) =
            (header.duration.unwrap_or(self.default_duration), header.size.unwrap_or(self.default_size));
        let size_at = 4 * u64::from(flags >> 8 & 1);
        let mut at = start;
        for row in (0..count).map(|i| first + i * width) {
            let ticks = if flags & 0x100 == 0 { usual_ticks } else { bytes.u32(row)? };
            let size = if flags & 0x200 == 0 { usual_size } else { bytes.u32(row + size_at)? };
            let offset = if flags & 0x800 == 0 { 0 } else { bytes.u32(row + width - 4)? as i32 };
            let end = at.saturating_add(size.into());
            let is_cut = end > bytes.size() && self.note_cut(self.totals().0, &(at..end), bytes.size());
            if end > bytes.size() && !is_cut {
                self.missing_ticks += u64::from(ticks);
                at = end;
                continue;
            }
            if let Some(fields) = &mut self.fields {
                self.second_fields.push(is_second(fields, bytes, at..end)?);
            }
            if &self.handler == b"vide" && self.fragment_times.len() < MAX_LISTED {
                self.fragment_times.push(self.fragment_at.saturating_add(offset.into()));
            }
            self.fragment_samples += 1;
            self.fragment_at = self.fragment_at.saturating_add(ticks.into());
            self.fragment_ticks += u64::from(ticks);
            at = end;
        }
        self.fragment_pcm(start..at.min(bytes.size()));
        Ok(at)
    }

    /// Notes where uncompressed sound of a fragment lies.
    fn fragment_pcm(&mut self, place: Range<u64>) {
        let Some((encoding, channels, rate)) = self.encoding else { return };
        // What the index itself has may not have been located.
        if self.pcm.is_none() && self.durations.iter().any(|(samples, _)| *samples > 0) {
            return;
        }
        let samples = place.end.saturating_sub(place.start) / encoding.frame_bytes(channels);
        let pcm = self.pcm.get_or_insert_with(|| Pcm { encoding, channels, rate, chunks: Vec::new() });
        pcm.chunks.push((place.start, samples));
    }
}
