//! What ffmpeg takes: a list for its concat demuxer, and one command a range.
//!
//! Frames are found by their time stamps. The first of frames n to m begins at n / rate: a command seeks to a tenth of a frame
//! before it, so that rounding in a container does not hide it, and stops a tenth before frame m.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::media::Media;
use super::process::of_file;
use super::rate::Rate;
use super::{Cut, Export};

/// Options before an input: no questions, errors only, files that are there are replaced, and what the input names is not
/// opened.
pub const BEFORE: [&str; 6] = ["-nostdin", "-v", "error", "-y", "-protocol_whitelist", "file"];
/// Options of a clip with pictures. H.264 in 4:2:0 needs even sides.
const PICTURES: [&str; 8] =
    ["-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"];
/// Options of any clip: the first picture and sound track, nothing of the source's chapters and time codes, which are those
/// of the whole; a clip without a picture or a sample is an error.
const CLIP: [&str; 14] = [
    "-sn",
    "-dn",
    "-c:a",
    "aac",
    "-b:a",
    "192k",
    "-map_metadata",
    "-1",
    "-map_chapters",
    "-1",
    "-movflags",
    "+faststart",
    "-abort_on",
    "empty_output",
];

/// A list for `ffmpeg -f concat -safe 0 -i FILE`. Where the codec has frames that need others, the demuxer hands out what it
/// needs before each in point too, and of a container without an index it may miss the first frames: the list is exact for codecs
/// of key frames alone, and the script for all.
///
/// A path that is not UTF-8 stands there byte by byte, as ffmpeg takes it.
///
/// # Errors
/// For a path with a line break, which the format cannot hold.
pub fn ffconcat(export: &Export) -> Result<Vec<u8>, String> {
    let path = &export.media.path;
    if path.as_os_str().as_bytes().iter().any(|byte| b"\n\r".contains(byte)) {
        return Err(format!("ffconcat cannot hold a line break, and {path:?} has one: rename it, or use sh"));
    }
    let mut list = format!("ffconcat version 1.0\n# query: {}\n", export.query);
    for note in export.notes() {
        list += &format!("# {note}\n");
    }
    let start = micros(export.media.start.picture_s);
    let mut list = list.into_bytes();
    let path = in_quotes(path.as_os_str());
    for cut in &export.cuts {
        let (from, to) = match export.media.pictures {
            Some(pictures) => (pictures.rate.micros(cut.frames.start * 10), pictures.rate.micros(cut.frames.end * 10)),
            None => (micros(cut.start_s), micros(cut.end_s)),
        };
        let points = format!("\ninpoint {}\noutpoint {}\n", seconds(start + from), seconds(start + to));
        list.extend([&b"file "[..], &path, points.as_bytes()].concat());
    }
    Ok(list)
}

/// A script that cuts each range into a file of its own in the working directory, exact to the frame. A path that is not UTF-8
/// stands there byte by byte, as a shell takes it.
pub fn script(export: &Export) -> Vec<u8> {
    let mut script = format!("#!/bin/sh\n# query: {}\n", export.query);
    for note in export.notes() {
        script += &format!("# {note}\n");
    }
    script += "set -e\n";
    let mut script = script.into_bytes();
    for (at, cut) in export.cuts.iter().enumerate() {
        let command = arguments(export, cut, Path::new(&clip_name(export, at + 1)));
        let words: Vec<Vec<u8>> = command.iter().map(|word| quoted(word)).collect();
        script.extend([format!("# {}\nffmpeg ", cut.title).as_bytes(), &words.join(&b' '), b"\n"].concat());
    }
    script
}

/// Name of a clip: the media's, with the number of the range, from 1.
pub fn clip_name(export: &Export, number: usize) -> String {
    let width = export.cuts.len().to_string().len().max(2);
    let ending = if export.media.pictures.is_some() { "mp4" } else { "m4a" };
    format!("{}-{number:0width$}.{ending}", export.media.stem())
}

/// Arguments of ffmpeg that cut one range to the file `output`.
pub fn arguments(export: &Export, cut: &Cut, output: &Path) -> Vec<OsString> {
    let (from, length) = match export.media.pictures {
        Some(pictures) => {
            let frames = cut.frames.end - cut.frames.start;
            (before_frame(&export.media, pictures.rate, cut.frames.start), pictures.rate.micros(frames * 10 - 1))
        }
        None => (micros(cut.start_s), micros(cut.end_s - cut.start_s)),
    };
    let pictures: &[&str] = if export.media.pictures.is_some() { &PICTURES } else { &["-vn"] };
    let owned = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let mut command = owned(&BEFORE);
    command.extend(part(&export.media, from, Some(length)));
    command.extend(owned(pictures));
    command.extend(owned(&CLIP));
    command.push(of_file(output));
    command
}

/// Time from which ffmpeg is to seek so that a frame is the first that it finds, microseconds from the file's least time stamp on:
/// a tenth of a frame before it.
pub fn before_frame(media: &Media, rate: Rate, frame: u64) -> u64 {
    micros(media.start.picture_s - media.start.file_s) + rate.micros((frame * 10).saturating_sub(1))
}

/// Arguments of ffmpeg for the part of a media file from a time on, for so long, both in microseconds; to its end without a
/// length.
pub fn part(media: &Media, from: u64, length: Option<u64>) -> Vec<OsString> {
    let input = ["-i".into(), of_file(&media.path)];
    let seek = ["-ss".into(), seconds(from).into()];
    // Before the input it is sought, and decoded from a key frame on; behind it, all before is decoded and left out.
    let mut part = if media.has_index { [seek, input] } else { [input, seek] }.concat();
    part.extend(length.into_iter().flat_map(|length| ["-t".into(), seconds(length).into()]));
    part
}

/// Microseconds, cut off; 0 for less.
fn micros(seconds: f64) -> u64 {
    (seconds * 1e6 + 1e-3).max(0.0) as u64
}

/// Microseconds as seconds with six decimals.
fn seconds(micros: u64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

/// A word as a shell reads it back.
fn quoted(word: &OsStr) -> Vec<u8> {
    let (bytes, is_plain) = (word.as_bytes(), |c: &u8| c.is_ascii_alphanumeric() || b"-._/:+=,@%".contains(c));
    if !bytes.is_empty() && bytes.iter().all(is_plain) { bytes.to_owned() } else { in_quotes(word) }
}

/// A text in quotation marks, as a shell and ffmpeg's lists read it back.
fn in_quotes(text: &OsStr) -> Vec<u8> {
    let parts: Vec<&[u8]> = text.as_bytes().split(|byte| *byte == b'\'').collect();
    [&b"'"[..], &parts.join(&br"'\''"[..]), b"'"].concat()
}

#[cfg(test)]
mod tests {
    use super::super::golden::example;
    use super::*;

    #[test]
    fn a_file_that_does_not_start_at_zero_is_cut_from_its_first_picture_on() {
        let mut export = example(25.0, false);
        (export.media.start.file_s, export.media.start.picture_s) = (1.4, 1.48);
        let command = arguments(&export, &export.cuts[0], Path::new("x.mp4"));
        // Frame 1763 begins at 70.52 s, a tenth of a frame is 4 ms, and the first picture 80 ms behind the file's start.
        assert!(command.windows(2).any(|pair| pair == ["-ss", "70.596000"]), "{command:?}");
        let holds = |text: &[u8], part: &[u8]| text.windows(part.len()).any(|at| at == part);
        assert!(holds(&ffconcat(&export).unwrap(), b"inpoint 72.000000\noutpoint 96.680000\n"));
        export.media.has_index = false;
        let slower = arguments(&export, &export.cuts[0], Path::new("x.mp4"));
        let place = |command: &[OsString], word: &str| command.iter().position(|w| w == word);
        assert!(place(&command, "-ss") < place(&command, "-i") && place(&slower, "-i") < place(&slower, "-ss"));
        export.media.path = "/a\nb.mp4".into();
        assert!(ffconcat(&export).unwrap_err().contains("use sh"));
        assert!(holds(&script(&export), b"'file:/a\nb.mp4'"));
        export.media.path = protocol::file_uri::path("file:///%FF's.mp4");
        assert!(holds(&ffconcat(&export).unwrap(), b"file '/\xff'\\''s.mp4'\ninpoint"));
        assert!(holds(&script(&export), b" 'file:/\xff'\\''s.mp4' "));
        let odd = of_file(&export.media.path);
        assert!(arguments(&export, &export.cuts[0], Path::new("x.mp4")).contains(&odd));
    }

    #[test]
    fn sound_alone_is_cut_by_seconds() {
        let mut export = example(25.0, false);
        export.media.pictures = None;
        let command = arguments(&export, &export.cuts[0], Path::new("x.m4a"));
        assert!(command.windows(2).any(|pair| pair == ["-ss", "70.500000"]), "{command:?}");
        assert!(command.windows(2).any(|pair| pair == ["-t", "24.700000"]), "{command:?}");
        assert!(command.contains(&"-vn".into()) && !command.contains(&"libx264".into()));
        assert!(clip_name(&export, 7).ends_with("-07.m4a"));
    }

    #[test]
    fn a_shell_reads_every_word_back_as_it_is() {
        for (word, shown) in [("a-b.c", "a-b.c"), ("", "''"), ("a b", "'a b'"), ("it's $x", r"'it'\''s $x'")] {
            assert_eq!(quoted(OsStr::new(word)), shown.as_bytes());
        }
    }
}
