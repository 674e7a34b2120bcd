//! Track of an mp4: its tables.

use std::io;
use std::ops::Range;

use super::boxes::{LengthField, boxes, clock, table};
use super::sound;
use crate::pcm::{Encoding, Pcm};
use crate::picture::Orientation;
use crate::pipeline::{CutSample, Overlay};
use crate::probe::bytes::Bytes;
use crate::probe::h264::Fields;

/// Limit on the nesting of boxes in a track.
const MAX_DEPTH: u32 = 8;
/// Bytes of an `avcC` that are read at most.
const MAX_AVCC: u64 = 1 << 16;
/// Limit on the samples of a track that are looked at one by one: six days of video at 60 pictures per second.
pub(super) const MAX_SAMPLES: u64 = 1 << 25;

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
    /// Whether the container says that values take their full range (`nclx`), which GStreamer's demuxer does not pass on.
    pub(crate) full_range: Option<bool>,
    /// Numbers of the tracks that hold the chapters of this one: their titles, or a picture for each.
    pub(super) chapters: Vec<u32>,
    pub(crate) channels: u32,
    /// Runs of samples: their number and the duration of each, in ticks.
    pub(super) durations: Vec<(u32, u32)>,
    /// Runs of samples: their number and the composition offset of each, in ticks.
    pub(super) offsets: Vec<(u32, i32)>,
    /// Ticks by which GStreamer delays all pictures, from a `cslg` box.
    pub(super) delay: Option<i64>,
    /// Content of the table of sample sizes.
    pub(super) sizes: Range<u64>,
    /// Content of the table of the chunks' sample counts.
    pub(super) chunk_runs: Range<u64>,
    /// First chunk and samples per chunk of each run of chunks; read only of PCM.
    pub(super) chunk_samples: Vec<(u32, u32)>,
    /// Encoding, channels and samples a second of uncompressed sound.
    pub(super) encoding: Option<(Encoding, u32, u32)>,
    /// Samples at 48 kHz that an Opus decoder gives before the sound begins.
    pub(super) pre_skip: u32,
    /// Uncompressed sound, and where it lies.
    pub(crate) pcm: Option<Pcm>,
    /// Content of the table of the chunks' positions.
    pub(super) chunks: Range<u64>,
    /// Bytes of a chunk's position.
    pub(super) chunk_width: u64,
    /// Edits: duration in the movie's ticks, and first tick of the media; -1 for an edit that shows nothing.
    pub(super) edits: Vec<(u64, i64)>,
    /// Default duration of a fragment's samples, from `trex`.
    pub(super) default_duration: u32,
    /// Their default size.
    pub(super) default_size: u32,
    /// Reader of pictures of H.264 that may come as fields.
    pub(super) fields: Option<Fields>,
    /// Whether each sample, in file order, is the second field of a picture; empty where none is.
    pub(super) second_fields: Vec<bool>,
    /// Number of samples in fragments.
    pub(super) fragment_samples: u64,
    /// Duration of those samples in ticks.
    pub(super) fragment_ticks: u64,
    /// Duration of those that lie behind the end of the file.
    pub(super) missing_ticks: u64,
    /// Times at which the fragments' pictures are shown, in ticks, in file order; the first [`MAX_LISTED`].
    pub(super) fragment_times: Vec<i64>,
    /// The last sample, if the file has a part of it, and where the file ends.
    pub(super) cut: Option<(CutSample, u64)>,
    /// Decoding time of the next fragment in ticks, unless it has its own.
    pub(super) fragment_at: i64,
}

/// Bytes that are shown behind the end of a file at most, for the rest of a sample.
const MAX_REST: u64 = 16 << 20;

/// Two numbers of a row.
pub(super) fn pair(row: [u8; 8]) -> (u32, u32) {
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
            // Its parameters may lie in the pictures alone.
            if &self.codec == b"avc3" {
                self.fields = Some(Fields::new(None));
            }
            // What is broken of these the decoder may not need.
            let _ = self.picture(bytes, entry);
        } else if &self.handler == b"soun" {
            self.channels = bytes.u32(entry + 24)? >> 16;
            let end = entry.saturating_add(bytes.u32(entry)?.into()).min(body.end);
            // A description that is cut short is left to the demuxer.
            self.encoding = sound::encoding(bytes, entry..end).unwrap_or_default();
            if &self.codec == b"Opus" {
                self.pre_skip = sound::pre_skip(bytes, entry..end).unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Reads the boxes behind the fixed part of the description of a picture.
    fn picture(&mut self, bytes: &mut Bytes<'_>, entry: u64) -> io::Result<()> {
        let end = entry.saturating_add(bytes.u32(entry)?.into());
        for found in boxes(bytes, entry + 86..end.min(bytes.size()))? {
            let at = found.body.start;
            match &found.name {
                b"avcC" => {
                    let mut avcc = vec![0; (found.body.end - at).min(MAX_AVCC) as usize];
                    bytes.read(at, &mut avcc)?;
                    self.fields = Some(Fields::new(Some(&avcc)));
                }
                b"colr" if &bytes.array::<4>(at)? == b"nclx" => {
                    self.full_range = Some(bytes.array::<1>(at + 10)?[0] >> 7 == 1);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Notes the sample that lies there as the next one, if the file has a part of it, which ends at `end`.
    pub(super) fn note_cut(&mut self, number: u64, place: &Range<u64>, end: u64) -> bool {
        let (bytes, there) = (place.end - place.start, end.saturating_sub(place.start));
        let is_cut = self.cut.is_none() && there > 0 && there < bytes && bytes - there <= MAX_REST;
        if is_cut && let (Ok(bytes), Ok(there)) = (usize::try_from(bytes), usize::try_from(there)) {
            self.cut = Some((CutSample { number, bytes, there }, end));
        }
        is_cut
    }

    /// The last sample, if the file has a part of it.
    pub(crate) fn cut_sample(&self) -> Option<CutSample> {
        self.cut.map(|(sample, _)| sample)
    }

    /// What the demuxer is to see behind the end of the file for the last sample.
    pub(super) fn rest_of_cut(&self) -> Option<Overlay> {
        self.cut.map(|(sample, at)| Overlay { at, bytes: vec![0; sample.bytes - sample.there] })
    }

    /// Duration of the media in seconds, without its edits, as the index tells it.
    pub(super) fn length_s(&self) -> f64 {
        let ticks = self.totals().1.saturating_add(self.missing_ticks);
        ticks as f64 / f64::from(self.timescale.max(1))
    }

    /// Samples and ticks of index and fragments together.
    pub(super) fn totals(&self) -> (u64, u64) {
        let indexed = self.durations.iter().fold((0, 0), |(n, ticks), &(count, duration)| {
            (n + u64::from(count), u64::saturating_add(ticks, u64::from(count) * u64::from(duration)))
        });
        (indexed.0 + self.fragment_samples, indexed.1.saturating_add(self.fragment_ticks))
    }

    /// Whether each picture, in file order, is the second field of the one before it; without an end.
    pub(super) fn seconds(&self) -> impl Iterator<Item = bool> {
        self.second_fields.iter().copied().chain(std::iter::repeat(false))
    }

    /// Pictures, or packets of sound, per second over the whole index: ffmpeg's `avg_frame_rate`, but where fields come one by
    /// one, which it counts as frames here.
    pub(crate) fn average_rate(&self) -> f64 {
        let seconds = self.second_fields.iter().filter(|second| **second).count() as u64;
        match self.totals() {
            (samples, ticks) if ticks > 0 => {
                samples.saturating_sub(seconds) as f64 * f64::from(self.timescale) / ticks as f64
            }
            _ => 0.0,
        }
    }

    /// Number of samples that have to be looked at one by one: those that may be shown in another order than they are
    /// decoded in. The others follow from their runs (an hour of PCM has 172 million samples in one).
    pub(super) fn single_samples(&self) -> u64 {
        if self.offsets.is_empty() && &self.handler != b"vide" { self.fragment_samples } else { self.totals().0 }
    }
}
