//! Exports: found ranges as files for editors, players and programs, and cut out of the media.
//!
//! In reading order: this file (what is exported), [`media`] (the file that it is about) with [`rate`], [`timecode`] and
//! [`start`], [`clock`] (times with no more decimals than are known), [`format`](mod@format) (which writer a name or an ending
//! stands for), the writers: [`otio`], [`edl`] and [`fcpxml`] for editors, [`subtitles`], [`chapters`], [`ffmpeg`] (lists and
//! commands), [`table`]; [`clips`] ([`process`]: ffmpeg, run for each range). Pictures: [`frames`] of the media, [`heading`],
//! [`timeline`], [`contact_sheet`], and [`raster`] (their pixels). Golden files of every format lie in golden/.

pub mod chapters;
pub mod clips;
pub mod clock;
pub mod contact_sheet;
pub mod edl;
pub mod fcpxml;
pub mod ffmpeg;
pub mod format;
pub mod frames;
#[cfg(test)]
mod golden;
pub mod heading;
pub mod media;
pub mod otio;
pub mod process;
pub mod raster;
pub mod rate;
pub mod start;
pub mod subtitles;
pub mod table;
pub mod timecode;
pub mod timeline;

use std::borrow::Cow;
use std::ops::Range;

use protocol::event::TimeRange;

use clock::Clock;
use media::{Media, Pictures};

/// Ranges of one media file that answer one question: what every writer takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Export {
    /// Media file.
    pub media: Media,
    /// Question, on one line.
    pub query: String,
    /// Resolution of all times, seconds.
    pub resolution_s: f64,
    /// Ranges, by their start.
    pub cuts: Vec<Cut>,
    /// Ranges of the answer that are not among them: they end before they begin, or lie behind the end of the file.
    pub left_out: usize,
}

/// Range of the media file, inside of it and not empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// Start, seconds from the first picture on.
    pub start_s: f64,
    /// End, seconds.
    pub end_s: f64,
    /// Frames from the nearest to its start up to, without it, the nearest to its end; at least one where there are pictures.
    pub frames: Range<u64>,
    /// Title, on one line and not empty.
    pub title: String,
}

impl Export {
    /// Export of the ranges of an answer: sorted, clipped to the file, and each at least as long as the resolution, since
    /// times nearer to each other are one time to the model. A range without a title has the question for one, or the name
    /// of the file.
    pub fn new(media: Media, query: &str, ranges: &[TimeRange], resolution_s: f64) -> Self {
        let query = on_one_line(query);
        let mut cuts: Vec<Cut> =
            ranges.iter().filter_map(|range| Cut::new(range, &media, &query, resolution_s)).collect();
        cuts.sort_by(|a, b| a.start_s.total_cmp(&b.start_s).then(a.end_s.total_cmp(&b.end_s)));
        let left_out = ranges.len() - cuts.len();
        Export { media, query, resolution_s, cuts, left_out }
    }

    /// Pictures of the media, which the format called `format` is made of.
    ///
    /// # Errors
    /// For sound alone, and for pictures without a usable rate.
    pub fn pictures(&self, format: &str) -> Result<&Pictures, String> {
        self.media.pictures.as_ref().ok_or_else(|| {
            format!(
                "{format} counts frames, and {} has none (no picture, or no usable frame rate); use vtt, srt, ffmetadata, \
                 youtube, ffconcat, sh, csv or json",
                self.media.name()
            )
        })
    }

    /// Clock for its times.
    pub fn clock(&self) -> Clock {
        Clock::new(self.resolution_s)
    }

    /// Start and end of a range in ticks of the clock; an end is at least a tick behind its start.
    pub fn ticks(&self, cut: &Cut) -> Range<u64> {
        let start = self.clock().ticks(cut.start_s);
        start..self.clock().ticks(cut.end_s).max(start + 1)
    }

    /// Name of the whole: the question, or the file's name where there is none.
    pub fn name(&self) -> Cow<'_, str> {
        if self.query.is_empty() { self.media.name() } else { Cow::Borrowed(&self.query) }
    }

    /// Sentences for formats with comments: how exact the times are, and whether the frame rate is an average.
    pub fn notes(&self) -> Vec<String> {
        let resolution = format!("times are known to {} s", self.resolution_s);
        std::iter::once(resolution).chain(self.average()).collect()
    }

    /// Sentence about a frame rate that is an average; none for a standard rate.
    pub fn average(&self) -> Option<String> {
        let rate = self.media.pictures.map(|pictures| pictures.rate).filter(|rate| rate.is_average)?;
        Some(format!(
            "{:.3} frames a second ({rate}) are the average of the file: where its rate varies, frames are off",
            rate.per_second()
        ))
    }
}

impl Cut {
    /// What is inside of the media of a range of an answer; none if nothing is.
    fn new(range: &TimeRange, media: &Media, query: &str, resolution_s: f64) -> Option<Self> {
        let is_range = range.start_s.is_finite() && range.end_s.is_finite() && range.start_s <= range.end_s;
        let start_s = range.start_s.max(0.0);
        if !is_range || start_s >= media.duration_s || range.end_s < 0.0 {
            return None;
        }
        let end_s = range.end_s.max(start_s + resolution_s).min(media.duration_s);
        let frames = media.pictures.map_or(0..0, |pictures| {
            let first = pictures.rate.frame_at(start_s).min(pictures.count - 1);
            first..pictures.rate.frame_at(end_s).clamp(first + 1, pictures.count)
        });
        let titles =
            [on_one_line(range.title.as_deref().unwrap_or_default()), query.to_owned(), media.stem().into_owned()];
        let title = titles.into_iter().find(|title| !title.is_empty())?;
        Some(Cut { start_s, end_s, frames, title })
    }
}

/// A text on one line: white space of any kind, and what no text file should hold, become single spaces.
fn on_one_line(text: &str) -> String {
    let unfit = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}');
    text.split(unfit).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::golden::example;
    use super::*;

    fn range(start_s: f64, end_s: f64, title: Option<&str>) -> TimeRange {
        TimeRange { start_s, end_s, title: title.map(str::to_owned) }
    }

    fn export(ranges: &[TimeRange]) -> Export {
        Export::new(example(25.0, false).media, "a \n red\u{7}box", ranges, 0.2)
    }

    #[test]
    fn ranges_are_sorted_clipped_and_as_long_as_their_resolution_at_least() {
        let end = example(25.0, false).media.duration_s;
        let export = export(&[
            range(end - 1.0, end + 20.0, None),
            range(-5.0, 2.0, Some(" two\tlines\r\nof it ")),
            range(10.0, 10.0, None),
        ]);
        let spans: Vec<_> = export.cuts.iter().map(|cut| (cut.start_s, cut.end_s)).collect();
        assert_eq!(spans, [(0.0, 2.0), (10.0, 10.2), (end - 1.0, end)]);
        let titles: Vec<_> = export.cuts.iter().map(|cut| cut.title.as_str()).collect();
        assert_eq!(titles, ["two lines of it", "a red box", "a red box"]);
        assert_eq!(export.cuts[1].frames, 250..255);
        assert_eq!((export.left_out, export.ticks(&export.cuts[1])), (0, 100..102));
    }

    #[test]
    fn what_is_no_range_of_the_file_is_left_out_and_counted() {
        let end = example(25.0, false).media.duration_s;
        let export = export(&[
            range(5.0, 4.0, None),
            range(end, end + 1.0, None),
            range(-2.0, -1.0, None),
            range(f64::NAN, 1.0, None),
            range(0.0, f64::INFINITY, None),
        ]);
        assert_eq!((export.cuts.len(), export.left_out), (0, 5));
    }

    #[test]
    fn no_range_has_a_frame_that_the_file_has_not_or_none_at_all() {
        let mut media = example(25.0, false).media;
        if let Some(pictures) = &mut media.pictures {
            pictures.count = 50;
        }
        // The sound goes on for longer than the pictures.
        let frames = |start_s, end_s| {
            let export = Export::new(media.clone(), "x", &[range(start_s, end_s, None)], 0.001);
            export.cuts[0].frames.clone()
        };
        assert_eq!([frames(1.0, 30.0), frames(20.0, 30.0), frames(1.0, 1.0)], [25..50, 49..50, 25..26]);
    }

    #[test]
    fn an_average_rate_is_said_and_sound_alone_has_no_frames() {
        assert_eq!(export(&[]).notes(), ["times are known to 0.2 s"]);
        let average = example(24.31, false);
        assert!(average.notes()[1].starts_with("24.310 frames a second (2431/100) are the average"), "{average:?}");
        let mut sound = example(25.0, false);
        sound.media.pictures = None;
        assert!(sound.pictures("edl").unwrap_err().contains("use vtt"));
    }
}
