//! Formats of exports, by name and by the ending of a file's name.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use super::media::Media;
use super::{Export, chapters, edl, fcpxml, ffmpeg, otio, subtitles, table};

/// Format of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// OpenTimelineIO: a timeline of the ranges, for whatever reads it.
    Otio,
    /// CMX 3600 edit decision list: the ranges cut together.
    Edl,
    /// Edit decision list as DaVinci Resolve imports markers from: the ranges marked in the whole video.
    EdlMarkers,
    /// Final Cut Pro XML 1.9: the ranges cut together.
    Fcpxml,
    /// WebVTT: titles as subtitles.
    Vtt,
    /// SubRip: titles as subtitles.
    Srt,
    /// Chapters for `ffmpeg -i VIDEO -i FILE -map_chapters 1`.
    Ffmetadata,
    /// Chapters for the description of a video on YouTube.
    Youtube,
    /// List for `ffmpeg -f concat -safe 0 -i FILE`.
    Ffconcat,
    /// Script with one ffmpeg command a range, exact to the frame.
    Sh,
    /// Table with a line of names.
    Csv,
    /// List of objects.
    Json,
}

/// Endings of files' names, with what they stand for.
const ENDINGS: [(&str, Format); 12] = [
    ("otio", Format::Otio),
    ("edl", Format::Edl),
    ("fcpxml", Format::Fcpxml),
    ("vtt", Format::Vtt),
    ("srt", Format::Srt),
    ("ffmetadata", Format::Ffmetadata),
    ("ffmeta", Format::Ffmetadata),
    ("txt", Format::Youtube),
    ("ffconcat", Format::Ffconcat),
    ("sh", Format::Sh),
    ("csv", Format::Csv),
    ("json", Format::Json),
];

impl Format {
    /// Format that the ending of a file's name stands for.
    ///
    /// # Errors
    /// For an ending that stands for none, with those that do.
    pub fn of(file: &Path) -> Result<Self, String> {
        let ending = file.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        let known = ENDINGS.into_iter().find(|(name, _)| ending.as_deref() == Some(*name));
        known.map(|(_, format)| format).ok_or_else(|| {
            let endings = ENDINGS.map(|(name, _)| format!(".{name}")).join(", ");
            format!("the name {} says no format: end it with one of {endings}, or write FORMAT:FILE", file.display())
        })
    }

    /// Format and file of an argument: `FORMAT:FILE`, or a file whose ending says the format.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn and_file(argument: &Path) -> Result<(Self, PathBuf), String> {
        let bytes = argument.as_os_str().as_bytes();
        let named = bytes.iter().position(|byte| *byte == b':').and_then(|colon| {
            let name = std::str::from_utf8(&bytes[..colon]).ok()?;
            let file = Path::new(OsStr::from_bytes(&bytes[colon + 1..]));
            Some((Format::from_str(name, true).ok()?, file.to_owned()))
        });
        named.map_or_else(|| Ok((Format::of(argument)?, argument.to_owned())), Ok)
    }

    /// Checks that ranges of a media file can be written, before any is known.
    ///
    /// # Errors
    /// For a file that the format cannot be about: why, and what can.
    pub fn suits(self, media: &Media) -> Result<(), String> {
        match self {
            Format::Youtube => chapters::suits(media),
            // What a format cannot hold of a file shows without any range too.
            _ => self.write(&Export::new(media.clone(), "", &[], 0.0)).map(|_| ()),
        }
    }

    /// Content of the file for an export: text, in UTF-8 but for the media's own name in lists and scripts.
    ///
    /// # Errors
    /// For an export that the format cannot hold: why, and what can.
    pub fn write(self, export: &Export) -> Result<Vec<u8>, String> {
        let text = match self {
            Format::Otio => otio::otio(export)?,
            Format::Edl => edl::cuts(export)?,
            Format::EdlMarkers => edl::markers(export)?,
            Format::Fcpxml => fcpxml::fcpxml(export)?,
            Format::Vtt => subtitles::vtt(export),
            Format::Srt => subtitles::srt(export),
            Format::Ffmetadata => chapters::ffmetadata(export),
            Format::Youtube => chapters::youtube(export)?,
            Format::Ffconcat => return ffmpeg::ffconcat(export),
            Format::Sh => return Ok(ffmpeg::script(export)),
            Format::Csv => table::csv(export),
            Format::Json => table::json(export),
        };
        Ok(text.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::super::golden::example;
    use super::*;

    #[test]
    fn a_name_before_the_file_says_the_format_whatever_the_ending() {
        let both = |argument: &str| Format::and_file(Path::new(argument)).unwrap();
        assert_eq!(both("edl-markers:a/b.edl"), (Format::EdlMarkers, PathBuf::from("a/b.edl")));
        assert_eq!(both("JSON:x:y.csv"), (Format::Json, PathBuf::from("x:y.csv")));
        // No format is called so: it is the file's name.
        assert_eq!(both("take:2.csv"), (Format::Csv, PathBuf::from("take:2.csv")));
        assert!(Format::and_file(Path::new("take:2")).is_err());
        let odd = Path::new(OsStr::from_bytes(b"json:\xff:x"));
        assert_eq!(Format::and_file(odd), Ok((Format::Json, OsStr::from_bytes(b"\xff:x").into())));
    }

    #[test]
    fn a_format_that_cannot_be_about_a_file_says_so_without_any_range() {
        let mut media = example(25.0, false).media;
        for format in Format::value_variants() {
            assert_eq!(format.suits(&media), Ok(()), "{format:?}");
        }
        media.path = "/a\nb.mp4".into();
        media.duration_s = 29.9;
        media.pictures = None;
        let refused =
            [Format::Otio, Format::Edl, Format::EdlMarkers, Format::Fcpxml, Format::Youtube, Format::Ffconcat];
        for format in Format::value_variants() {
            assert_eq!(format.suits(&media).is_err(), refused.contains(format), "{format:?}");
        }
        assert!(Format::Youtube.suits(&media).unwrap_err().contains("the video has 29.9 s"));
    }

    #[test]
    fn an_ending_says_the_format_in_capitals_too() {
        assert_eq!(Format::of(Path::new("/a.b/c.EDL")), Ok(Format::Edl));
        assert_eq!(Format::of(Path::new("chapters.txt")), Ok(Format::Youtube));
        for unknown in ["a", "a.mp4", ".edl", "-"] {
            let error = Format::of(Path::new(unknown)).unwrap_err();
            assert!(error.contains(".otio, .edl") && error.contains("FORMAT:FILE"), "{error}");
        }
    }
}
