//! Index of ISO base media files (mp4, mov, m4a): `moov`, and for fragmented files `moof`.
//!
//! Format: ISO/IEC 14496-12. Which samples count as shown follows ffmpeg's demuxer (`libavformat/mov.c`,
//! `mov_fix_index`), edit by edit in the order of the list: video samples whose composition time lies in the edit; audio
//! from the start of the edit to the end of the packet in which it ends. In reading order: `boxes` (the parts of a
//! file), `sound` (uncompressed sound), `track` (one track's tables), `chunks` (where its samples lie), `spans` and `edits` (which
//! of them are shown), `fragment` (samples behind the index), and this file, the whole index.

mod boxes;
mod chunks;
mod edits;
mod fragment;
mod sound;
mod spans;
mod track;

use std::collections::HashSet;
use std::io;

use super::bytes::Bytes;
use crate::pipeline::Overlay;
use boxes::{LengthField, bad, boxes, clock};
use track::MAX_SAMPLES;
pub(crate) use track::Track;

/// Index of a file.
#[derive(Debug, Default)]
pub(crate) struct Movie {
    /// Duration in ticks, from `mvhd`.
    pub(crate) duration: u64,
    /// Ticks per second, from `mvhd`.
    pub(crate) timescale: u32,
    /// Whether samples lie in fragments behind the index.
    pub(crate) fragmented: bool,
    length_field: Option<LengthField>,
    pub(crate) tracks: Vec<Track>,
}

impl Movie {
    /// Reads the index; `None` if the file has no `moov` (another format, or truncated).
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
                    let samples = track.single_samples();
                    if samples > MAX_SAMPLES {
                        return Err(bad("a track has more than 33,554,432 samples"));
                    }
                    // Tables say this many in a few bytes, and each of them is looked at later.
                    bytes.spend(samples)?;
                    if top.iter().any(|b| b.cut) {
                        track.keep_present(bytes)?;
                    }
                    track.read_chunks(bytes)?;
                    track.locate_pcm(bytes)?;
                    track.find_second_fields(bytes)?;
                    movie.tracks.push(track);
                }
                b"cmov" => return Err(bad("it is compressed (cmov)")),
                _ => {}
            }
        }
        for found in inside.iter().filter(|b| &b.name == b"mvex") {
            movie.fragmented = true;
            for trex in boxes(bytes, found.body.clone())?.iter().filter(|b| &b.name == b"trex") {
                let at = trex.body.start;
                let (id, duration, size) = (bytes.u32(at + 4)?, bytes.u32(at + 12)?, bytes.u32(at + 16)?);
                let track = movie.tracks.iter_mut().filter(|t| t.id == id);
                track.for_each(|t| (t.default_duration, t.default_size) = (duration, size));
            }
        }
        if movie.fragmented {
            movie.tracks.iter_mut().for_each(|t| t.fragment_at = t.totals().1 as i64);
            // The media of a fragment whose index the file cuts short are not there either.
            for moof in top.iter().filter(|b| &b.name == b"moof" && !b.cut) {
                movie.fragment(bytes, moof.name_at - 4, moof.body.clone())?;
            }
        }
        Ok(Some(movie))
    }

    /// Numbers of the tracks that hold the chapters of another: what they show is no film.
    pub(crate) fn chapters(&self) -> HashSet<u32> {
        self.tracks.iter().flat_map(|track| track.chapters.iter().copied()).collect()
    }

    /// Overlays by which GStreamer's demuxer delivers every sample of one track and none of the others: the other tracks
    /// and all edit lists are renamed `free`, and the headers' durations, at which it would stop, exceed the last sample. Both are
    /// about the same: it leaves out a track of less than a fifth of the whole.
    pub(crate) fn overlays(&self, wanted: &Track) -> Vec<Overlay> {
        let free = |at| Overlay { at, bytes: b"free".to_vec() };
        let others = self.tracks.iter().filter(|t| t.id != wanted.id).map(|t| free(t.box_at));
        let edits = self.tracks.iter().filter_map(|t| t.edits_at).map(free);
        let last = wanted.end();
        let scaled = u128::from(last) * u128::from(self.timescale) / u128::from(wanted.timescale.max(1));
        let lengths = [
            (self.length_field, u64::try_from(scaled).unwrap_or(u64::MAX).saturating_add(self.timescale.into())),
            (wanted.length_field, last.saturating_add(wanted.timescale.into())),
        ];
        // The headers of a fragmented file have no duration to stop at.
        let lengths = lengths.into_iter().filter(|_| !self.fragmented).filter_map(|(field, ticks)| {
            let field = field?;
            let bytes = ticks.to_be_bytes();
            Some(Overlay { at: field.at, bytes: bytes[8 - field.width..].to_vec() })
        });
        others.chain(edits).chain(lengths).chain(wanted.rest_of_cut()).collect()
    }

    /// Duration in seconds as ffprobe reports it: the movie header's, or the longest track's in a fragmented file.
    pub(crate) fn duration_s(&self) -> f64 {
        let header = self.duration as f64 / f64::from(self.timescale.max(1));
        if header > 0.0 && !self.fragmented {
            return (header * 1e6).round() / 1e6;
        }
        self.tracks.iter().map(Track::length_s).fold(header, f64::max)
    }
}
