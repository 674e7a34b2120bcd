//! A row of the table of containers and codecs: the files that are made of it, and what they are compared with.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tempfile::tempdir;

use super::support::boxes::{Mp4, project};
use super::support::reference::{
    check_figures, check_packets, check_pictures, check_samples, check_unmarked, ffprobe, reference_frames_by,
    reference_sound,
};
use super::support::{decode_at, make, picture, sound, words};

/// What is made of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    Mp4,
    Mov,
    Matroska,
    WebM,
    TransportStream,
    Avi,
    /// Sound alone: what it is called, and the ending of its name.
    Sound(&'static str, &'static str),
}

use Container::{Avi, Matroska, Mov, Mp4 as IsoMp4, Sound, TransportStream, WebM};

impl Container {
    /// What it is called in deploy/README.md.
    pub fn name(self) -> &'static str {
        match self {
            IsoMp4 => "MP4",
            Mov => "MOV",
            Matroska => "Matroska",
            WebM => "WebM",
            TransportStream => "MPEG transport stream",
            Avi => "AVI",
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
            Avi => "avi",
            Sound(_, ending) => ending,
        }
    }

    fn has_index(self) -> bool {
        matches!(self, IsoMp4 | Mov | Sound(_, "m4a"))
    }
}

/// Samples of the longest packet (1,152 at 44,100 Hz), at 16 kHz.
const PACKET: usize = 418;
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
        // MPEG-2 has no rate of ten a second.
        let rate = if self.video.contains("mpeg2video") { "25" } else { "10" };
        make(&self.dir, &name, &[picture("96x64", rate, LENGTH_S), late], &line)
    }

    /// Checks every frame and sample of a file beside what ffmpeg gives of `reference` through `filters`.
    fn check(&self, path: &Path, reference: &Path, filters: &str) {
        let name = format!("{} of {} and {}", path.file_name().unwrap().display(), self.video, self.audio);
        let (info, kept) = decode_at(path, 10.0);
        let is_cut = path == self.path("cut");
        if matches!(self.container, Sound(..)) {
            let mut duration: f64 = ffprobe(path, "-show_entries format=duration")[0].parse().unwrap();
            if matches!(self.container, Sound("Ogg", _)) && self.audio.contains("libopus") {
                // Of Opus in Ogg ffprobe says where it ends, and not how long it is.
                let start: f64 = ffprobe(path, "-show_entries format=start_time")[0].parse().unwrap();
                duration -= start;
            }
            // Where the header says how long the whole was, ffprobe believes it.
            let near = (info.duration_s - duration).abs() < 0.1;
            assert!(near || is_cut, "{name}: {} s, ffprobe says {duration}", info.duration_s);
        } else {
            // Of the decoders of AV1 that ffmpeg 5.1 has, dav1d passes over the marks of what an edit list leaves out, and shows 38
            // pictures where libaom, and ffmpeg 9 with either, show 23: those whose packets are not marked.
            let is_marked = self.video.contains("av1") && path == self.path("edited");
            match self.container {
                TransportStream => check_packets(path, &info, "pts_time"),
                Avi => check_packets(path, &info, "dts_time"),
                _ if is_marked => check_unmarked(path, &info),
                _ => check_figures(path, &info),
            }
            let options = if is_marked { "-c:v libaom-av1" } else { "" };
            let step = kept.batches[0].plan.image.as_ref().unwrap().frame_step;
            let frames = |first| reference_frames_by(options, reference, &info, step, first, filters);
            let [theirs, after] = [0, 1].map(frames);
            check_pictures(&name, &kept.frames(0), &theirs, &after);
        }
        let (ours, mut theirs) = (kept.pcm(), reference_sound(path, ""));
        // ffmpeg makes something of a packet of which a part is missing.
        if is_cut && (1..=PACKET).contains(&theirs.len().saturating_sub(ours.len())) {
            theirs.truncate(ours.len());
        }
        check_samples(&name, &ours, &theirs);
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
                self.check(&path, whole, ",transpose=clock_flip");
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
        let path = self.make("varying", filter, 0.7, "");
        self.check(&path, &path, "");
    }

    /// The end is missing.
    fn cut(&self) {
        let index_first = if self.container.has_index() { "-movflags faststart" } else { "" };
        let path = self.make("cut", "", 0.0, index_first);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() * 7 / 10]).unwrap();
        self.check(&path, &path, "");
    }
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
            ("cut", &|| files.cut()),
        ];
        for (what, check) in parts {
            if catch_unwind(AssertUnwindSafe(check)).is_err() {
                differ.push(format!("{container:?} of {pictures} and {codec}: {what}"));
            }
        }
    }
    assert!(!rows.is_empty() && differ.is_empty(), "these differ from ffmpeg, as told above:\n{}", differ.join("\n"));
}
