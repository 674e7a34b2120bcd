//! Track of an mp4: its tables, and which of its samples are shown.

use std::io;
use std::ops::Range;

use super::boxes::{LengthField, bad, boxes, clock, table};
use super::sound;
use super::spans::Spans;
use crate::pcm::{Encoding, Pcm};
use crate::picture::Orientation;
use crate::probe::bytes::Bytes;
use crate::timeline::{MAX_LISTED, Pass, Timeline};

/// Limit on the nesting of boxes in a track.
const MAX_DEPTH: u32 = 8;
/// Limit on the samples of a track that are looked at one by one: six days of video at 60 pictures per second.
pub(super) const MAX_SAMPLES: u64 = 1 << 25;
/// Limit on the parts of an edit list that each go forward only: for each the media are decoded once more.
const MAX_PASSES: usize = 16;
/// Limit on the rows that are looked at to find the edits of a sound.
const MAX_LOOKS: u64 = 1 << 28;
/// Samples of PCM that ffmpeg takes together at most (`libavformat/mov.c`, `mov_build_index`).
const PCM_PACKET: u64 = 1024;

/// A track's index; tables are kept only as far as they are needed.
#[derive(Debug, Default)]
pub(crate) struct Track {
    /// Position of the name of its `trak` box.
    pub(super) box_at: u64,
    /// Position of the name of its `edts` box.
    pub(super) edits_at: Option<u64>,
    pub(super) length_field: Option<LengthField>,
    pub(crate) id: u32,
    pub(crate) enabled: bool,
    pub(crate) handler: [u8; 4],
    pub(crate) codec: [u8; 4],
    pub(crate) timescale: u32,
    /// Stored width of the picture.
    pub(crate) width: u32,
    /// Stored height of the picture.
    pub(crate) height: u32,
    pub(crate) orientation: Orientation,
    /// Numbers of the tracks that hold the chapters of this one: their titles, or a picture for each.
    pub(super) chapters: Vec<u32>,
    pub(crate) channels: u32,
    /// Runs of samples: their number and the duration of each, in ticks.
    durations: Vec<(u32, u32)>,
    /// Runs of samples: their number and the composition offset of each, in ticks.
    offsets: Vec<(u32, i32)>,
    /// Ticks by which GStreamer delays all pictures, from a `cslg` box.
    delay: Option<i64>,
    /// Content of the table of sample sizes.
    sizes: Range<u64>,
    /// Content of the table of the chunks' sample counts.
    chunk_runs: Range<u64>,
    /// First chunk and samples per chunk of each run of chunks; read only of PCM.
    chunk_samples: Vec<(u32, u32)>,
    /// Encoding, channels and samples a second of uncompressed sound.
    encoding: Option<(Encoding, u32, u32)>,
    /// Uncompressed sound, and where it lies.
    pub(crate) pcm: Option<Pcm>,
    /// Content of the table of the chunks' positions.
    chunks: Range<u64>,
    /// Bytes of a chunk's position.
    chunk_width: u64,
    /// Edits: duration in the movie's ticks, and first tick of the media; -1 for an edit that shows nothing.
    edits: Vec<(u64, i64)>,
    /// Default duration of a fragment's samples, from `trex`.
    pub(super) default_duration: u32,
    /// Number of samples in fragments.
    pub(super) fragment_samples: u64,
    /// Duration of those samples in ticks.
    pub(super) fragment_ticks: u64,
    /// Times at which the fragments' pictures are shown, in ticks, in file order; the first [`MAX_LISTED`].
    pub(super) fragment_times: Vec<i64>,
    /// Decoding time of the next fragment in ticks, unless it has its own.
    pub(super) fragment_at: i64,
}

fn pair(row: [u8; 8]) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = row;
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

impl Track {
    /// A track whose box name is at that position, without its tables yet.
    pub(super) fn named_at(box_at: u64) -> Self {
        Track { box_at, ..Track::default() }
    }

    pub(super) fn descend(&mut self, bytes: &mut Bytes<'_>, range: Range<u64>, depth: u32) -> io::Result<()> {
        for found in boxes(bytes, range)? {
            let (at, body) = (found.body.start, found.body.clone());
            match &found.name {
                b"mdia" | b"minf" | b"stbl" if depth < MAX_DEPTH => self.descend(bytes, body, depth + 1)?,
                b"edts" => {
                    self.edits_at = Some(found.name_at);
                    self.descend(bytes, body, depth + 1)?;
                }
                b"tkhd" => self.header(bytes, &body)?,
                b"tref" => self.references(bytes, body)?,
                b"mdhd" => {
                    let field;
                    (self.timescale, _, field) = clock(bytes, &body)?;
                    self.length_field = Some(field);
                }
                b"hdlr" if self.handler == [0; 4] => self.handler = bytes.array(at + 8)?,
                b"stsd" if bytes.u32(at + 4)? > 0 => self.description(bytes, &body)?,
                b"stts" => self.durations = table(bytes, &body)?.into_iter().map(pair).collect(),
                b"ctts" => {
                    let rows = table(bytes, &body)?;
                    self.offsets = rows.into_iter().map(pair).map(|(n, o)| (n, o as i32)).collect();
                }
                b"cslg" => {
                    let long = bytes.array::<1>(at)?[0] == 1;
                    let delay = if long { bytes.u64(at + 4)? as i64 } else { i64::from(bytes.u32(at + 4)? as i32) };
                    self.delay = Some(delay.max(0));
                }
                b"stsz" => self.sizes = body,
                b"stsc" => self.chunk_runs = body,
                b"stco" => (self.chunks, self.chunk_width) = (body, 4),
                b"co64" => (self.chunks, self.chunk_width) = (body, 8),
                b"elst" if bytes.array::<1>(at)?[0] == 1 => {
                    let rows = table::<20>(bytes, &body)?;
                    self.edits = rows
                        .into_iter()
                        .map(|r| {
                            let number = |i: usize| u64::from_be_bytes(r[i..i + 8].try_into().unwrap_or_default());
                            (number(0), number(8) as i64)
                        })
                        .collect();
                }
                b"elst" => {
                    let rows = table::<12>(bytes, &body)?;
                    self.edits = rows
                        .into_iter()
                        .map(|r| {
                            let number = |i: usize| u32::from_be_bytes(r[i..i + 4].try_into().unwrap_or_default());
                            (number(0).into(), i64::from(number(4) as i32))
                        })
                        .collect();
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn header(&mut self, bytes: &mut Bytes<'_>, body: &Range<u64>) -> io::Result<()> {
        let at = body.start;
        let version = bytes.u32(at)?;
        self.enabled = version & 1 == 1;
        let long = version >> 24 == 1;
        self.id = bytes.u32(at + if long { 20 } else { 12 })?;
        let matrix = at + if long { 52 } else { 40 };
        let mut cell = |i: u64| bytes.u32(matrix + 4 * i).map(|v| v as i32);
        self.orientation = Orientation::from_matrix([cell(0)?, cell(1)?, cell(3)?, cell(4)?]);
        Ok(())
    }

    fn references(&mut self, bytes: &mut Bytes<'_>, body: Range<u64>) -> io::Result<()> {
        for found in boxes(bytes, body)?.iter().filter(|found| &found.name == b"chap") {
            let count = (found.body.end - found.body.start) / 4;
            bytes.spend(count)?;
            for i in 0..count {
                self.chapters.push(bytes.u32(found.body.start + 4 * i)?);
            }
        }
        Ok(())
    }

    fn description(&mut self, bytes: &mut Bytes<'_>, body: &Range<u64>) -> io::Result<()> {
        let entry = body.start + 8;
        self.codec = bytes.array(entry + 4)?;
        if &self.handler == b"vide" {
            let size = bytes.u32(entry + 32)?;
            (self.width, self.height) = (size >> 16, size & 0xffff);
        } else if &self.handler == b"soun" {
            self.channels = bytes.u32(entry + 24)? >> 16;
            let end = entry.saturating_add(bytes.u32(entry)?.into()).min(body.end);
            // A description that is cut short is left to the demuxer.
            self.encoding = sound::encoding(bytes, entry..end).unwrap_or_default();
        }
        Ok(())
    }

    /// Reads how PCM lies in chunks: ffmpeg cuts it between its packets, which lie within chunks.
    pub(super) fn read_chunks(&mut self, bytes: &mut Bytes<'_>) -> io::Result<()> {
        let samples_as_ticks = matches!(self.durations[..], [(_, 1)]) && self.offsets.is_empty();
        if &self.handler == b"soun" && samples_as_ticks && !self.chunk_runs.is_empty() {
            let rows = table::<12>(bytes, &self.chunk_runs)?;
            self.chunk_samples =
                rows.iter().map(|&[a, b, c, d, e, f, g, h, ..]| pair([a, b, c, d, e, f, g, h])).collect();
        }
        Ok(())
    }

    /// Locates uncompressed sound: its chunks, as far as its samples go.
    pub(super) fn locate_pcm(&mut self, bytes: &mut Bytes<'_>) -> io::Result<()> {
        let Some((encoding, channels, rate)) = self.encoding else { return Ok(()) };
        if self.chunk_samples.is_empty() || self.chunks.is_empty() {
            return Ok(());
        }
        let (mut left, count) = (self.totals().0, u64::from(bytes.u32(self.chunks.start + 4)?));
        let mut runs = self.chunk_samples.iter().peekable();
        let (mut chunks, mut in_chunk) = (Vec::new(), 0);
        for chunk in 0..count {
            bytes.spend(1)?;
            while let Some((_, samples)) = runs.next_if(|(first, _)| u64::from(*first) <= chunk + 1) {
                in_chunk = u64::from(*samples);
            }
            let place = self.chunks.start + 8 + chunk * self.chunk_width;
            let at = if self.chunk_width == 8 { bytes.u64(place)? } else { bytes.u32(place)?.into() };
            let samples = in_chunk.min(left);
            left -= samples;
            chunks.push((at, samples));
            if left == 0 {
                break;
            }
        }
        self.pcm = Some(Pcm { encoding, channels, rate, chunks: chunks.into() });
        Ok(())
    }

    /// Drops the samples behind the end of a truncated file, as ffmpeg does.
    pub(super) fn keep_present(&mut self, bytes: &mut Bytes<'_>) -> io::Result<()> {
        if self.sizes.is_empty() || self.chunk_runs.is_empty() || self.chunks.is_empty() {
            return Ok(());
        }
        let uniform = bytes.u32(self.sizes.start + 4)?;
        let samples = u64::from(bytes.u32(self.sizes.start + 8)?);
        let chunks = u64::from(bytes.u32(self.chunks.start + 4)?);
        let runs = table::<12>(bytes, &self.chunk_runs)?;
        let mut runs = runs
            .iter()
            .map(|r| (u32::from_be_bytes([r[0], r[1], r[2], r[3]]), u32::from_be_bytes([r[4], r[5], r[6], r[7]])))
            .peekable();
        let (mut present, mut in_chunk) = (0, 0);
        'chunks: for chunk in 0..chunks {
            bytes.spend(1)?;
            while let Some((_, count)) = runs.next_if(|(first, _)| u64::from(*first) <= chunk + 1) {
                in_chunk = count;
            }
            let place = self.chunks.start + 8 + chunk * self.chunk_width;
            let mut at = if self.chunk_width == 8 { bytes.u64(place)? } else { bytes.u32(place)?.into() };
            let wanted = u64::from(in_chunk).min(samples - present);
            if uniform > 0 {
                let there = (bytes.size().saturating_sub(at) / u64::from(uniform)).min(wanted);
                present += there;
                if there < wanted {
                    break 'chunks;
                }
                continue;
            }
            for _ in 0..wanted {
                bytes.spend(1)?;
                at = at.saturating_add(bytes.u32(self.sizes.start + 12 + present * 4)?.into());
                if at > bytes.size() {
                    break 'chunks;
                }
                present += 1;
            }
            if present == samples {
                break;
            }
        }
        for (count, _) in &mut self.durations {
            *count = present.min(u64::from(*count)) as u32;
            present -= u64::from(*count);
        }
        Ok(())
    }

    /// Adds a run of a fragment's samples; `duration` is the fragment's own default.
    pub(super) fn run(&mut self, bytes: &mut Bytes<'_>, body: &Range<u64>, duration: Option<u32>) -> io::Result<()> {
        let flags = bytes.u32(body.start)? & 0xff_ffff;
        let count = u64::from(bytes.u32(body.start + 4)?);
        let first = body.start + 8 + 4 * u64::from(flags & 1) + 4 * u64::from(flags >> 2 & 1);
        // Each sample has those of duration, size, flags and composition offset whose flag is set.
        let width = 4 * u64::from((flags >> 8 & 0xf).count_ones());
        if first + count * width > body.end {
            return Err(bad("a fragment's table is truncated"));
        }
        self.fragment_samples = self.fragment_samples.saturating_add(count);
        if self.fragment_samples > MAX_SAMPLES {
            return Err(bad("a track has more than 33,554,432 samples"));
        }
        bytes.spend(count)?;
        let usual = duration.unwrap_or(self.default_duration);
        for row in (0..count).map(|i| first + i * width) {
            let ticks = if flags & 0x100 == 0 { usual } else { bytes.u32(row)? };
            let offset = if flags & 0x800 == 0 { 0 } else { bytes.u32(row + width - 4)? as i32 };
            if &self.handler == b"vide" && self.fragment_times.len() < MAX_LISTED {
                self.fragment_times.push(self.fragment_at.saturating_add(offset.into()));
            }
            self.fragment_at = self.fragment_at.saturating_add(ticks.into());
            self.fragment_ticks += u64::from(ticks);
        }
        Ok(())
    }

    /// Duration of the media in seconds, without its edits.
    pub(super) fn length_s(&self) -> f64 {
        let (_, ticks) = self.totals();
        ticks as f64 / f64::from(self.timescale.max(1))
    }

    /// Samples and ticks of index and fragments together.
    pub(super) fn totals(&self) -> (u64, u64) {
        let indexed = self.durations.iter().fold((0, 0), |(n, ticks), &(count, duration)| {
            (n + u64::from(count), u64::saturating_add(ticks, u64::from(count) * u64::from(duration)))
        });
        (indexed.0 + self.fragment_samples, indexed.1.saturating_add(self.fragment_ticks))
    }

    /// Samples per second over the whole index, as ffmpeg's `avg_frame_rate`.
    pub(crate) fn average_rate(&self) -> f64 {
        match self.totals() {
            (samples, ticks) if ticks > 0 => samples as f64 * f64::from(self.timescale) / ticks as f64,
            _ => 0.0,
        }
    }

    /// The edits that show something, in ticks of the track and in the order of the list; an unbounded one where there is
    /// no edit list.
    fn shown(&self, movie_timescale: u32) -> Vec<Range<i64>> {
        let shown: Vec<_> = self
            .edits
            .iter()
            .filter(|(_, start)| *start >= 0)
            .map(|&(length, start)| {
                let scaled = u128::from(length) * u128::from(self.timescale) + u128::from(movie_timescale) / 2;
                let ticks = scaled / u128::from(movie_timescale.max(1));
                let ticks = if ticks == 0 { i64::MAX } else { i64::try_from(ticks).unwrap_or(i64::MAX) };
                start..start.saturating_add(ticks)
            })
            .collect();
        // ffmpeg applies edits to the index only, and fragments lie outside.
        let all = i64::MIN..i64::MAX;
        if shown.is_empty() || self.fragment_samples > 0 { vec![all] } else { shown }
    }

    /// Number of samples that have to be looked at one by one: those that may be shown in another order than they are
    /// decoded in. The others follow from their runs (an hour of PCM has 172 million samples in one).
    pub(super) fn single_samples(&self) -> u64 {
        if self.offsets.is_empty() && &self.handler != b"vide" { self.fragment_samples } else { self.totals().0 }
    }

    /// Ticks after which no sample of the index lasts any more.
    pub(super) fn end(&self) -> u64 {
        if self.offsets.is_empty() {
            return self.totals().1.saturating_sub(self.fragment_ticks);
        }
        self.spans().map(|span| span.end).max().unwrap_or(0).max(0) as u64
    }

    /// Start of the first packet of PCM that starts at a time or later.
    fn pcm_packet_from(&self, time: u64) -> Option<u64> {
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

    /// Start of the first indexed sample, in decoding order, that starts at a time or later.
    fn start_from(&self, time: i64) -> Option<i64> {
        if !self.chunk_samples.is_empty() {
            return i64::try_from(self.pcm_packet_from(time.max(0) as u64)?).ok();
        }
        if !self.offsets.is_empty() {
            return self.spans().map(|span| span.start).find(|start| *start >= time);
        }
        let mut at = 0i64;
        for &(count, duration) in &self.durations {
            let before = u64::try_from(time.saturating_sub(at)).unwrap_or(0);
            let skipped = match (before, u64::from(duration)) {
                (0, _) => 0,
                (_, 0) => u64::MAX,
                (before, duration) => before.div_ceil(duration),
            };
            if skipped < u64::from(count) {
                return Some(at.saturating_add((skipped * u64::from(duration)) as i64));
            }
            at = at.saturating_add(i64::from(count).saturating_mul(duration.into()));
        }
        None
    }

    /// Start and end, in ticks, of every indexed sample, in decoding order.
    fn spans(&self) -> impl Iterator<Item = Range<i64>> {
        let mut offsets = self.offsets.iter().flat_map(|&(n, o)| std::iter::repeat_n(o, n as usize));
        let durations = self.durations.iter().flat_map(|&(n, d)| std::iter::repeat_n(d, n as usize));
        let mut decoded_at = 0i64;
        durations.map(move |duration| {
            let start = decoded_at.saturating_add(offsets.next().unwrap_or(0).into());
            decoded_at = decoded_at.saturating_add(duration.into());
            start..start.saturating_add(duration.into())
        })
    }

    /// The edits in the order of the list, in passes over the media: one pass goes forward only.
    fn passes(&self, movie_timescale: u32) -> Vec<Vec<Range<i64>>> {
        in_passes(self.shown(movie_timescale).into_iter())
    }

    /// What is too much about the edit list, if something is: the media are decoded once more for each jump back, and
    /// every edit of a sound is looked up in its tables.
    pub(crate) fn excess_of_edits(&self, movie_timescale: u32) -> Option<String> {
        let passes = self.passes(movie_timescale).len();
        if passes > MAX_PASSES {
            return Some(format!("its edit list goes back in time {} times, more than {}", passes - 1, MAX_PASSES - 1));
        }
        let samples = if self.offsets.is_empty() { 0 } else { self.totals().0 };
        let rows = (self.durations.len() + self.chunk_samples.len()) as u64 + samples;
        let looks = rows.saturating_mul(self.edits.len() as u64);
        (&self.handler == b"soun" && looks > MAX_LOOKS)
            .then(|| format!("its {} edits of {rows} rows of tables are too many to look up", self.edits.len()))
    }

    /// The pictures that are shown, pass by pass, and the times at which GStreamer shows them: it delays all by what the
    /// index says, else so that the least composition offset is not negative.
    pub(crate) fn pictures(&self, movie_timescale: u32) -> Vec<Pass> {
        let least = || self.offsets.iter().map(|&(_, offset)| i64::from(offset)).min().unwrap_or(0).min(0);
        let delay = self.delay.unwrap_or_else(|| -least());
        let nanoseconds = |ticks: i64| {
            let delayed = u128::try_from(i128::from(ticks) + i128::from(delay)).ok()?;
            u64::try_from(delayed * 1_000_000_000 / u128::from(self.timescale.max(1))).ok()
        };
        let indexed = || self.spans().map(|span| span.start);
        let unlisted = self.fragment_samples - self.fragment_times.len() as u64;
        let pass = |edits| {
            let edits = Spans::new(edits);
            let mut cursor = edits.cursor();
            let frames = indexed().filter(|&ticks| cursor.contains(ticks)).count() as u64 + self.fragment_samples;
            let times = indexed().chain(self.fragment_times.iter().copied()).map(Some);
            let times = times.chain((unlisted > 0).then_some(None));
            let mut cursor = edits.cursor();
            let timeline = Timeline::new(times.map(|ticks| Some((nanoseconds(ticks?)?, cursor.contains(ticks?)))));
            Pass { frames, timeline }
        };
        self.passes(movie_timescale).into_iter().map(pass).collect()
    }

    /// Ticks of the decoded sound that are heard, pass by pass; of none all. As ffmpeg cuts (`mov_fix_index`): the first
    /// edit starts at its very sample, every later one with its first whole packet, and each ends after a whole packet.
    pub(crate) fn heard(&self, movie_timescale: u32) -> Vec<Vec<Range<u64>>> {
        let edits = self.shown(movie_timescale);
        if edits.first().is_none_or(|first| first.start == i64::MIN) {
            return Vec::new();
        }
        let heard = edits.iter().enumerate().filter_map(|(i, edit)| {
            let start = if i == 0 { edit.start } else { self.start_from(edit.start)? };
            let end = self.start_from(edit.end).unwrap_or(i64::MAX);
            Some(start.max(0) as u64..end.max(0) as u64)
        });
        in_passes(heard)
    }

    /// Estimated seconds of audio that are heard.
    pub(crate) fn audio_s(&self, movie_timescale: u32) -> f64 {
        let (_, all) = self.totals();
        let heard = self.heard(movie_timescale);
        let ticks = match &heard[..] {
            [] => all,
            passes => passes.iter().flatten().map(|part| part.end.min(all).saturating_sub(part.start)).sum(),
        };
        ticks as f64 / f64::from(self.timescale.max(1))
    }
}

/// Spans in the order of a list, in passes: within one each starts where the one before it ends, or later.
fn in_passes<T: Copy + Ord>(spans: impl Iterator<Item = Range<T>>) -> Vec<Vec<Range<T>>> {
    let mut passes: Vec<Vec<Range<T>>> = Vec::new();
    for span in spans.filter(|span| !span.is_empty()) {
        match passes.last_mut() {
            Some(pass) if pass.last().is_none_or(|last| last.end <= span.start) => pass.push(span),
            _ => passes.push(vec![span]),
        }
    }
    passes
}
