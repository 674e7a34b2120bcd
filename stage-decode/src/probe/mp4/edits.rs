//! Which samples of a track are shown, in which order: its edit list, as ffmpeg follows it.

use std::ops::Range;

use super::spans::Spans;
use super::track::Track;
use crate::timeline::{Pass, Timeline};

/// Limit on the parts of an edit list that each go forward only: for each the media are decoded once more.
const MAX_PASSES: usize = 16;
/// Limit on the rows that are looked at to find the edits of a sound.
const MAX_LOOKS: u64 = 1 << 28;

impl Track {
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

    /// Ticks after which no sample of the index lasts any more.
    pub(super) fn end(&self) -> u64 {
        if self.offsets.is_empty() {
            return self.totals().1.saturating_sub(self.fragment_ticks);
        }
        self.spans().map(|span| span.end).max().unwrap_or(0).max(0) as u64
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
    /// index says, else so that the least composition offset is not negative. The last sample may give none.
    pub(crate) fn pictures(&self, movie_timescale: u32, gives_last: bool) -> Vec<Pass> {
        let least = || self.offsets.iter().map(|&(_, offset)| i64::from(offset)).min().unwrap_or(0).min(0);
        let delay = self.delay.unwrap_or_else(|| -least());
        let nanoseconds = |ticks: i64| {
            let delayed = u128::try_from(i128::from(ticks) + i128::from(delay)).ok()?;
            u64::try_from(delayed * 1_000_000_000 / u128::from(self.timescale.max(1))).ok()
        };
        let indexed = || self.spans().map(|span| span.start).chain(self.fragment_times.iter().copied());
        let unlisted = self.fragment_samples - self.fragment_times.len() as u64;
        let counted = self.totals().0 - unlisted - u64::from(!gives_last);
        let pictures = || {
            indexed().take(counted as usize).zip(self.seconds()).filter(|(_, second)| !second).map(|(ticks, _)| ticks)
        };
        let pass = |edits| {
            let edits = Spans::new(edits);
            let mut cursor = edits.cursor();
            let frames = pictures().filter(|&ticks| cursor.contains(ticks)).count() as u64 + unlisted;
            let times = pictures().map(Some);
            let times = times.chain((unlisted > 0).then_some(None));
            let mut cursor = edits.cursor();
            let timeline = Timeline::new(times.map(|ticks| Some((nanoseconds(ticks?)?, cursor.contains(ticks?)))));
            Pass { frames, timeline }
        };
        self.passes(movie_timescale).into_iter().map(pass).collect()
    }

    /// Ticks of the decoded sound that are heard, pass by pass; of none all. As ffmpeg cuts (`mov_fix_index`): the first
    /// edit starts at its very sample, every later one with its first whole packet, and each ends after a whole packet. What an
    /// Opus decoder gives before the sound begins is left out by the decoder, unless the first edit says where to start.
    pub(crate) fn heard(&self, movie_timescale: u32) -> Vec<Vec<Range<u64>>> {
        let edits = self.shown(movie_timescale);
        let pre_skip = (f64::from(self.pre_skip) / 48_000.0 * f64::from(self.timescale)).round() as i64;
        if edits.first().is_none_or(|first| first.start == i64::MIN) {
            return if pre_skip > 0 { vec![vec![pre_skip as u64..u64::MAX]] } else { Vec::new() };
        }
        let heard = edits.iter().enumerate().filter_map(|(i, edit)| {
            let start = match (i, edit.start) {
                (0, 0) => pre_skip,
                (0, start) => start,
                (_, start) => self.start_from(start)?,
            };
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
