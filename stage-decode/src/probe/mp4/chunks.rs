//! Where the samples of a track lie: in chunks, one behind the other.

use std::io;
use std::ops::Range;

use super::boxes::table;
use super::track::{Track, pair};
use crate::pcm::Pcm;
use crate::probe::bytes::Bytes;
use crate::probe::h264::Fields;

/// Samples of PCM that ffmpeg takes together at most (`libavformat/mov.c`, `mov_build_index`).
const PCM_PACKET: u64 = 1024;
/// Steps that a look into a sample counts as.
const LOOK_STEPS: u64 = 8;
/// Bytes at the start of a sample in which its first slice is looked for.
const SAMPLE_HEAD: u64 = 4096;

/// Taker of places, until it says that these are enough.
type See<'s, P> = dyn FnMut(&mut Bytes<'_>, P) -> io::Result<bool> + 's;

impl Track {
    /// Rows of the table of the chunks' sample counts: first chunk, from 1, and samples of each.
    fn chunk_rows(&self, bytes: &mut Bytes<'_>) -> io::Result<Vec<(u32, u32)>> {
        if self.chunk_runs.is_empty() || self.chunks.is_empty() {
            return Ok(Vec::new());
        }
        let rows = table::<12>(bytes, &self.chunk_runs)?;
        Ok(rows.iter().map(|&[a, b, c, d, e, f, g, h, ..]| pair([a, b, c, d, e, f, g, h])).collect())
    }

    /// Shows position and samples of every chunk.
    fn each_chunk(&self, bytes: &mut Bytes<'_>, rows: &[(u32, u32)], see: &mut See<'_, (u64, u64)>) -> io::Result<()> {
        if self.chunks.is_empty() {
            return Ok(());
        }
        let count = u64::from(bytes.u32(self.chunks.start + 4)?);
        let mut rows = rows.iter().peekable();
        let mut in_chunk = 0;
        for chunk in 0..count {
            bytes.spend(1)?;
            while let Some((_, samples)) = rows.next_if(|(first, _)| u64::from(*first) <= chunk + 1) {
                in_chunk = u64::from(*samples);
            }
            let place = self.chunks.start + 8 + chunk * self.chunk_width;
            let at = if self.chunk_width == 8 { bytes.u64(place)? } else { bytes.u32(place)?.into() };
            if !see(bytes, (at, in_chunk))? {
                break;
            }
        }
        Ok(())
    }

    /// Shows the place of every sample of the index.
    fn each_sample(&self, bytes: &mut Bytes<'_>, see: &mut See<'_, Range<u64>>) -> io::Result<()> {
        if self.sizes.is_empty() {
            return Ok(());
        }
        let (uniform, samples) = (bytes.u32(self.sizes.start + 4)?, u64::from(bytes.u32(self.sizes.start + 8)?));
        let (rows, sizes, mut next) = (self.chunk_rows(bytes)?, self.sizes.start + 12, 0);
        self.each_chunk(bytes, &rows, &mut |bytes, (mut at, count)| {
            for _ in 0..count.min(samples - next) {
                bytes.spend(1)?;
                let size = if uniform > 0 { uniform } else { bytes.u32(sizes + next * 4)? };
                let end = at.saturating_add(size.into());
                if !see(bytes, at..end)? {
                    return Ok(false);
                }
                (at, next) = (end, next + 1);
            }
            Ok(next < samples)
        })
    }

    /// Reads how PCM lies in chunks: ffmpeg cuts it between its packets, which lie within chunks.
    pub(super) fn read_chunks(&mut self, bytes: &mut Bytes<'_>) -> io::Result<()> {
        let samples_as_ticks = matches!(self.durations[..], [(_, 1)]) && self.offsets.is_empty();
        if &self.handler == b"soun" && samples_as_ticks {
            self.chunk_samples = self.chunk_rows(bytes)?;
        }
        Ok(())
    }

    /// Locates uncompressed sound: its chunks, as far as its samples go.
    pub(super) fn locate_pcm(&mut self, bytes: &mut Bytes<'_>) -> io::Result<()> {
        let Some((encoding, channels, rate)) = self.encoding else { return Ok(()) };
        if self.chunk_samples.is_empty() {
            return Ok(());
        }
        let (mut left, mut chunks) = (self.totals().0, Vec::new());
        self.each_chunk(bytes, &self.chunk_samples, &mut |_, (at, samples)| {
            let samples = samples.min(left);
            left -= samples;
            chunks.push((at, samples));
            Ok(left > 0)
        })?;
        self.pcm = Some(Pcm { encoding, channels, rate, chunks });
        Ok(())
    }

    /// Drops the samples behind the end of a truncated file, as ffmpeg does: of one it gives the part that is there.
    pub(super) fn keep_present(&mut self, bytes: &mut Bytes<'_>) -> io::Result<()> {
        if self.sizes.is_empty() || self.chunk_runs.is_empty() || self.chunks.is_empty() {
            return Ok(());
        }
        let uniform = u64::from(bytes.u32(self.sizes.start + 4)?);
        let (mut present, mut cut, mut size) = (0, None, uniform);
        if uniform > 0 {
            // There may be many million of them, of PCM.
            let (samples, rows) = (u64::from(bytes.u32(self.sizes.start + 8)?), self.chunk_rows(bytes)?);
            self.each_chunk(bytes, &rows, &mut |bytes, (at, count)| {
                let wanted = count.min(samples - present);
                let there = (bytes.size().saturating_sub(at) / uniform).min(wanted);
                present += there;
                if there < wanted {
                    cut = Some(at.saturating_add(there * uniform));
                }
                Ok(there == wanted && present < samples)
            })?;
        } else {
            self.each_sample(bytes, &mut |bytes, place| {
                let there = place.end <= bytes.size();
                present += u64::from(there);
                if !there {
                    (cut, size) = (Some(place.start), place.end - place.start);
                }
                Ok(there)
            })?;
        }
        // Of uncompressed sound every sample that is there is read.
        if let Some(at) = cut.filter(|_| self.encoding.is_none())
            && self.note_cut(present, &(at..at.saturating_add(size)), bytes.size())
        {
            present += 1;
        }
        for (count, _) in &mut self.durations {
            *count = present.min(u64::from(*count)) as u32;
            present -= u64::from(*count);
        }
        Ok(())
    }

    /// Finds the samples that hold the second field of a picture of H.264, where fields come one by one.
    pub(super) fn find_second_fields(&mut self, bytes: &mut Bytes<'_>) -> io::Result<()> {
        let Some(mut fields) = self.fields.take().filter(Fields::may_come) else { return Ok(()) };
        let mut second = Vec::new();
        self.each_sample(bytes, &mut |bytes, place| {
            second.push(is_second(&mut fields, bytes, place)?);
            Ok(true)
        })?;
        (self.second_fields, self.fields) = (second, Some(fields));
        Ok(())
    }

    /// Start of the first packet of PCM that starts at a time or later.
    pub(super) fn pcm_packet_from(&self, time: u64) -> Option<u64> {
        let all = self.totals().0;
        let mut at = 0;
        for (i, &(first, count)) in self.chunk_samples.iter().enumerate() {
            let next = self.chunk_samples.get(i + 1).map_or(u64::MAX, |&(next, _)| next.into());
            let count = u64::from(count);
            let end = next.saturating_sub(first.into()).saturating_mul(count).saturating_add(at).min(all);
            if time < end {
                let offset = (time - at) % count;
                let start = time - offset + offset.next_multiple_of(PCM_PACKET).min(count);
                return (start < all).then_some(start);
            }
            at = end;
        }
        None
    }
}

/// Whether a sample holds the second field of a picture. What lies behind the end of the file does not.
pub(super) fn is_second(fields: &mut Fields, bytes: &mut Bytes<'_>, place: Range<u64>) -> io::Result<bool> {
    bytes.spend(LOOK_STEPS)?;
    let end = place.end.min(place.start.saturating_add(SAMPLE_HEAD)).min(bytes.size());
    let mut head = vec![0; end.saturating_sub(place.start) as usize];
    if !head.is_empty() {
        bytes.read(place.start, &mut head)?;
    }
    Ok(fields.is_second(&head))
}
