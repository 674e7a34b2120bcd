//! What an export knows of the media file.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::path::PathBuf;

use protocol::file_uri;
use protocol::plan::MediaInfo;

use super::rate::Rate;
use super::start::Start;
use super::timecode::{Code, Timecodes};

/// Containers with an index, in which ffmpeg seeks to a key frame before the time that is asked for.
const INDEXED: [&str; 4] = ["mp4", "mov", "matroska", "webm"];

/// Wishes about time codes, of whoever asks for an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Drop-frame time codes; a file whose own code is a drop-frame one has them anyway.
    pub drop_frame: bool,
    /// Time code of the first picture; none for the file's own, or 00:00:00:00.
    pub start: Option<Code>,
}

/// Media file that ranges are of.
#[derive(Clone, Debug, PartialEq)]
pub struct Media {
    /// Path of the file, absolute.
    pub path: PathBuf,
    /// Length, seconds.
    pub duration_s: f64,
    /// Pictures; none for sound alone.
    pub pictures: Option<Pictures>,
    /// Whether there is a sound track.
    pub has_audio: bool,
    /// Whether a seek leads to a key frame before the time asked for; in a transport stream it may lead behind it.
    pub has_index: bool,
    /// Time stamps of its start.
    pub start: Start,
}

/// Pictures of a media file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pictures {
    /// Their rate.
    pub rate: Rate,
    /// How many.
    pub count: u64,
    /// Width and height as shown, pixels.
    pub size: [u32; 2],
    /// Time codes of them.
    pub codes: Timecodes,
    /// Number, counted from the time code of 0 o'clock on, of the first one.
    pub first: u64,
}

impl Media {
    /// Media file from a probe of stage-decode and from what is known of its start; `video` is its path or `file:` URI.
    ///
    /// # Errors
    /// For drop-frame codes of a rate that has none, and for a first time code that no frame has.
    pub fn new(video: &str, info: &MediaInfo, start: Start, wishes: Wishes) -> Result<Self, String> {
        let rate = if info.frames > 0 { Rate::of(info.avg_fps, info.duration_s) } else { None };
        let pictures = rate.map(|rate| {
            let code = wishes.start.or(start.code);
            let own = code.is_some_and(|code| code.is_drop) && rate.dropped().is_some();
            let codes = Timecodes::new(rate, wishes.drop_frame || own)?;
            let first = match (wishes.start, start.code) {
                (Some(code), _) => codes.frame(code)?,
                // Not every writer of files knows the rules.
                (None, code) => code.and_then(|code| codes.frame(code).ok()).unwrap_or(0),
            };
            Ok::<_, String>(Pictures { rate, count: info.frames, size: [info.width, info.height], codes, first })
        });
        Ok(Media {
            path: file_uri::path(video),
            duration_s: info.duration_s,
            pictures: pictures.transpose()?,
            has_audio: info.has_audio,
            has_index: INDEXED.contains(&info.container.as_str()),
            start,
        })
    }

    /// Name of the file, without its folder, to be shown.
    pub fn name(&self) -> Cow<'_, str> {
        self.shown(self.path.file_name())
    }

    /// Name of the file, without folder and ending, to be shown.
    pub fn stem(&self) -> Cow<'_, str> {
        self.shown(self.path.file_stem())
    }

    fn shown<'a>(&'a self, name: Option<&'a OsStr>) -> Cow<'a, str> {
        name.unwrap_or(self.path.as_os_str()).to_string_lossy()
    }

    /// `file:` URI of the file.
    pub fn uri(&self) -> String {
        file_uri::uri(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn info(avg_fps: f64) -> MediaInfo {
        MediaInfo {
            v: 1,
            duration_s: 10.0,
            frames: 300,
            avg_fps,
            width: 320,
            height: 180,
            rotation: 0,
            mirrored: false,
            has_audio: true,
            audio_samples: 160_000,
            container: "mp4".to_owned(),
            codecs: Vec::new(),
            content_id: String::new(),
            notes: Vec::new(),
        }
    }

    fn first(avg_fps: f64, own: &str, drop_frame: bool, start: Option<&str>) -> Result<(u64, bool), String> {
        let start_of_file = Start { code: own.parse().ok(), ..Start::default() };
        let wishes = Wishes { drop_frame, start: start.map(|code| code.parse().unwrap()) };
        let pictures = Media::new("/v.mp4", &info(avg_fps), start_of_file, wishes)?.pictures.unwrap();
        Ok((pictures.first, pictures.codes.is_drop()))
    }

    #[test]
    fn the_first_time_code_is_the_one_asked_for_or_the_files_own_or_zero() {
        let ntsc = 30_000.0 / 1001.0;
        assert_eq!(first(25.0, "", false, None), Ok((0, false)));
        assert_eq!(first(25.0, "01:00:00:00", false, None), Ok((90_000, false)));
        assert_eq!(first(25.0, "01:00:00:00", false, Some("00:00:01:05")), Ok((30, false)));
        assert_eq!(first(ntsc, "01:00:00:00", false, None), Ok((108_000, false)));
        assert_eq!(first(ntsc, "01:00:00;00", false, None), Ok((107_892, true)));
        assert_eq!(first(ntsc, "", true, Some("01:00:00:00")), Ok((107_892, true)));
        // A file's own code that cannot be is none; one that is asked for is an error.
        assert_eq!(first(25.0, "00:00:00;29", false, None), Ok((0, false)));
        assert!(first(25.0, "", false, Some("00:00:00:29")).is_err());
        assert!(first(25.0, "", true, None).unwrap_err().contains("--drop-frame"));
    }

    #[test]
    fn paths_and_uris_lead_to_each_other() {
        let odd = "/media/a \"b\" & c's 100%é.mp4";
        let media = Media::new(odd, &info(25.0), Start::default(), Wishes::default()).unwrap();
        assert_eq!(media.uri(), "file:///media/a%20%22b%22%20%26%20c%27s%20100%25%C3%A9.mp4");
        assert_eq!((&*media.name(), &*media.stem()), ("a \"b\" & c's 100%é.mp4", "a \"b\" & c's 100%é"));
        let by_uri = Media::new(&media.uri(), &info(25.0), Start::default(), Wishes::default()).unwrap();
        assert_eq!(by_uri.path, Path::new(odd));
        let not_utf8 = Media::new("file:///x/%FF.mp4", &info(25.0), Start::default(), Wishes::default()).unwrap();
        assert_eq!((not_utf8.uri().as_str(), &*not_utf8.stem()), ("file:///x/%FF.mp4", "\u{fffd}"));
    }
}
