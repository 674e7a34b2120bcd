//! A row of the table of containers and codecs: the files that are made of it, and what they are compared with.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use protocol::plan::MediaInfo;
use tempfile::tempdir;

mod lengths;
mod packets;

use crate::support::boxes::{Mp4, project};
use crate::support::reference::{check_samples, check_stepped_by, decoder_threads, ffprobe, reference_sound_by};
use crate::support::{Kept, decode_at, make, picture, sound, words};

/// What is made of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    Mp4,
    Mov,
    Matroska,
    WebM,
    TransportStream,
    ProgramStream,
    Avi,
    Flv,
    WindowsMedia,
    Ogg,
    /// Sound alone: what it is called, and the ending of its name.
    Sound(&'static str, &'static str),
}

use Container::{
    Avi, Flv, Matroska, Mov, Mp4 as IsoMp4, Ogg, ProgramStream, Sound, TransportStream, WebM, WindowsMedia,
};

impl Container {
    /// What it is called in deploy/README.md.
    pub fn name(self) -> &'static str {
        match self {
            IsoMp4 => "MP4",
            Mov => "MOV",
            Matroska => "Matroska",
            WebM => "WebM",
            TransportStream => "MPEG transport stream",
            ProgramStream => "MPEG program stream",
            Avi => "AVI",
            Flv => "FLV",
            WindowsMedia => "Windows Media",
            Ogg => "Ogg",
            Sound(..) => "sound alone",
        }
    }

    fn ending(self) -> &'static str {
        match self {
            IsoMp4 => "mp4",
            Mov => "mov",
            Matroska => "mkv",
            WebM => "webm",
            TransportStream => "ts",
            ProgramStream => "mpg",
            Avi => "avi",
            Flv => "flv",
            WindowsMedia => "wmv",
            Ogg => "ogv",
            Sound(_, ending) => ending,
        }
    }

    fn has_index(self) -> bool {
        matches!(self, IsoMp4 | Mov | Sound(_, "m4a"))
    }
}

/// Seconds by which a sound begins late.
const LATE_S: f64 = 0.7;
/// Length of a film, in seconds.
const LENGTH_S: f64 = 4.0;

/// Files that are made of a row.
struct Files {
    dir: PathBuf,
    container: Container,
    video: &'static str,
    audio: &'static str,
}

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.{}", self.container.ending()))
    }

    /// Makes a film, or a sound alone, with further options.
    fn make(&self, name: &str, filter: &str, late_s: f64, options: &str) -> PathBuf {
        let rate = if self.audio.contains("libopus") { 48_000 } else { 44_100 };
        let late = [words(&format!("-itsoffset {late_s}")), sound(rate, LENGTH_S)].concat();
        let name = format!("{name}.{}", self.container.ending());
        if matches!(self.container, Sound(..)) {
            return make(&self.dir, &name, &[late], &format!("{} {options}", self.audio));
        }
        // Of several films the colours are the same: what this measures is which picture is shown, and when.
        let line = format!("-map 0 -map 1 {} {filter} {} {options}", self.video, self.audio);
        // MPEG-1 and MPEG-2 have no rate of ten a second.
        let rate =
            if ["mpeg1video", "mpeg2video"].iter().any(|codec| self.video.contains(codec)) { "25" } else { "10" };
        make(&self.dir, &name, &[picture("96x64", rate, LENGTH_S), late], &line)
    }

    /// Checks every frame and sample of a file beside what ffmpeg gives of `reference` through `filters`.
    fn check(&self, path: &Path, reference: &Path, filters: &str) {
        let name = format!("{} of {} and {}", path.file_name().unwrap().display(), self.video, self.audio);
        let (info, kept) = decode_at(path, 10.0);
        // A sound that differs is told of beside pictures that do.
        all(&[
            &|| self.check_figures(path, &info, &name),
            &|| self.check_pictures(path, reference, filters, &info, &kept, &name),
            &|| self.check_sound(path, &kept, &name),
        ]);
    }

    fn is_cut(&self, path: &Path) -> bool {
        path == self.path("cut")
    }

    /// Of the decoders of AV1 that ffmpeg 5.1 has, dav1d passes over the marks of what an edit list leaves out, and shows 38 pictures
    /// where libaom, and ffmpeg 9 with either, show 23: those whose packets are not marked.
    fn is_marked(&self, path: &Path) -> bool {
        self.video.contains("av1") && path == self.path("edited")
    }

    /// Every picture, beside that of `reference` through `filters`.
    fn check_pictures(&self, path: &Path, reference: &Path, filters: &str, info: &MediaInfo, kept: &Kept, name: &str) {
        if matches!(self.container, Sound(..)) {
            return;
        }
        let options = match self.is_marked(path) {
            true => "-c:v libaom-av1".to_owned(),
            // What a decoder shows where a part of a picture is missing depends on how many threads decode.
            false if self.is_cut(path) => format!("-threads {}", decoder_threads()),
            // Whether it turns them is a matter of ffmpeg's version, where it is not mp4.
            false if !filters.is_empty() => "-noautorotate".to_owned(),
            false => String::new(),
        };
        let step = kept.batches[0].plan.image.as_ref().unwrap().frame_step;
        check_stepped_by([&options, filters], name, &kept.frames(0), reference, info, step);
    }

    /// Every sample.
    fn check_sound(&self, path: &Path, kept: &Kept, name: &str) {
        // ffmpeg's parser of AC-3 and E-AC-3 hands out a packet when the next one has come (`ff_aac_ac3_parse`), and `parse_packet` gives it the next
        // one's mark that an edit list leaves it out: before the list's second part another packet is heard than the list says. Without the parser
        // each packet has its own mark.
        let unparsed = self.audio.contains("ac3") && path == self.path("edited");
        let options = if unparsed { "-fflags +nofillin+noparse" } else { "" };
        check_samples(name, &kept.pcm(), &reference_sound_by(options, path, ""));
    }

    /// Turned and mirrored.
    fn turned(&self, whole: &Path) {
        let path = self.path("turned");
        match self.container {
            IsoMp4 | Mov => {
                Mp4::read(whole).display(0, [0, -1, -1, 0]).write(&path);
                // This ffmpeg turns mp4 by itself.
                self.check(&path, &path, "");
            }
            Matroska | WebM => {
                std::fs::copy(whole, &path).unwrap();
                project(&path, 180.0, -90.0);
                // Its colours made room: those of the whole are no measure.
                self.check(&path, &path, ",transpose=clock_flip");
            }
            _ => {}
        }
    }

    /// Cut in the middle, and what remains in another order.
    fn edited(&self, whole: &Path) {
        if !self.container.has_index() {
            return;
        }
        let path = self.path("edited");
        let mut file = Mp4::read(whole);
        let tracks = if matches!(self.container, Sound(..)) { 1 } else { 2 };
        for track in 0..tracks {
            let of = format!("-select_streams {track} -show_entries stream=time_base");
            let clock: f64 = ffprobe(whole, &of)[0].strip_prefix("1/").unwrap().parse().unwrap();
            let edits = [(2.0, 3.5), (0.4, 1.2)].map(|(from, to)| (to - from, (from * clock).round() as i32));
            file.edit(track, &edits, 2.3);
        }
        file.write(&path);
        self.check(&path, &path, "");
    }

    /// A rate that varies, and a sound that begins later than the picture.
    fn varying(&self) {
        let filter = "-vf select='not(between(n,7,12)+between(n,20,21)+eq(n,30))' -vsync vfr";
        let path = self.make("varying", filter, LATE_S, "");
        self.check(&path, &path, "");
    }

    /// The end is missing.
    fn cut(&self, whole: &Path) {
        // Without its index at the front nothing of a file that has one could be read.
        let uncut = match self.container.has_index() {
            true => self.make("uncut", "", 0.0, "-movflags faststart"),
            false => whole.to_owned(),
        };
        let bytes = std::fs::read(uncut).unwrap();
        let path = self.path("cut");
        // In several places where what is there of the last packet is given to the decoder, most where the demuxer is shown it otherwise than it is.
        let hundredths = match self.container {
            WindowsMedia | ProgramStream | Avi | Flv => &[45, 70, 95][..],
            Matroska | WebM | Ogg | Sound("M4A" | "Matroska" | "Ogg" | "FLAC" | "AIFF", _) => &[70],
            _ => &[45, 95],
        };
        for part in hundredths {
            std::fs::write(&path, &bytes[..bytes.len() * part / 100]).unwrap();
            self.check(&path, &path, "");
        }
    }
}

/// Makes all checks, and fails if one did: each has told of itself.
fn all(checks: &[&dyn Fn()]) {
    let fail = |check: &&&dyn Fn()| catch_unwind(AssertUnwindSafe(**check)).is_err();
    let differ = checks.iter().filter(fail).count();
    assert!(differ == 0, "{differ} of {} checks fail, as told above", checks.len());
}

/// Codec: its name, and how ffmpeg is told to write it.
pub type Codec = (&'static str, &'static str);

/// Row of the table: a container, pictures (none of a sound alone), and sound.
pub type Row = (Container, Codec, Codec);

/// Checks all that is made of some rows, and tells of every one that differs.
pub fn check_rows(rows: &[Row]) {
    let mut differ = Vec::new();
    for &(container, (pictures, video), (codec, audio)) in rows {
        let dir = tempdir().unwrap();
        let files = Files { dir: dir.path().to_owned(), container, video, audio };
        let colours =
            "-colorspace bt709 -color_primaries bt709 -color_trc bt709 -color_range tv -chroma_sample_location left";
        let whole = files.make("whole", "", 0.0, if matches!(container, Sound(..)) { "" } else { colours });
        let parts: [(&str, &dyn Fn()); 5] = [
            ("whole", &|| files.check(&whole, &whole, "")),
            ("turned", &|| files.turned(&whole)),
            ("edited", &|| files.edited(&whole)),
            ("varying", &|| files.varying()),
            ("cut", &|| files.cut(&whole)),
        ];
        for (what, check) in parts {
            if catch_unwind(AssertUnwindSafe(check)).is_err() {
                differ.push(format!("{container:?} of {pictures} and {codec}: {what}"));
            }
        }
    }
    assert!(!rows.is_empty() && differ.is_empty(), "these differ from ffmpeg, as told above:\n{}", differ.join("\n"));
}
