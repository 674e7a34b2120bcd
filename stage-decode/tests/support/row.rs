//! A row of the table of containers and codecs: the files that are made of it, and what they are compared with.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use protocol::plan::MediaInfo;
use tempfile::tempdir;

use super::support::boxes::{Mp4, project};
use super::support::reference::{
    check_figures, check_numbers, check_packets, check_pictures, check_samples, check_unmarked, check_whole_frames,
    ffprobe, packets_s, reference_frames_by, reference_sound,
};
use super::support::{Kept, decode_at, make, picture, sound, words};

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

/// Samples of the longest packet that is cut (1,536 of AC-3 at 44,100 Hz), at 16 kHz.
const PACKET: usize = 558;
/// Samples of the last block of Windows Media Audio (2,048 at 44,100 Hz), at 16 kHz, which GStreamer does not ask its decoder for.
const BLOCK: usize = 743;
/// Samples at 16 kHz around the last packet of AC-3 before the second part of an edit list, which are **not compared**: ffmpeg has the packet
/// before that part there. It seems to give each packet the mark of the one after it, that it is left out or not; its source was not read.
const SEAM: Range<usize> = 23_690..24_320;
/// Seconds of a picture of MPEG.
const PICTURE_S: f64 = 0.04;
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

    /// How many frames there are, and how long the file lasts.
    fn check_figures(&self, path: &Path, info: &MediaInfo, name: &str) {
        if matches!(self.container, Sound(..)) {
            let says = |what: &str| ffprobe(path, &format!("-show_entries format={what}"))[0].parse::<f64>();
            let duration = match self.container {
                // Of Opus in Ogg ffprobe says where it ends, and not how long it is; of FLAC that is cut nothing.
                Sound("Ogg", "ogg") if self.audio.contains("libopus") => {
                    says("duration").unwrap() - says("start_time").unwrap()
                }
                // FLAC in Ogg that begins late begins at 0 in ffprobe, and ends as late as it would: it lasts no longer for that.
                Sound("Ogg", "oga") if path == self.path("varying") => packets_s(path, "pts_time") - LATE_S,
                Sound("Ogg", "oga") => packets_s(path, "pts_time"),
                _ => says("duration").unwrap(),
            };
            // Where the header says how long the whole was, ffprobe believes it.
            let near = (info.duration_s - duration).abs() < 0.1;
            assert!(near || self.is_cut(path), "{name}: {} s, ffprobe says {duration}", info.duration_s);
            return;
        }
        let is_flac = self.audio.contains("flac");
        match self.container {
            // Of its last picture, which was to be shown later, ffprobe knows no time where the stream is cut.
            ProgramStream if self.is_cut(path) => {
                let known = packets_s(path, "pts_time");
                let is_longer = info.duration_s - known > PICTURE_S / 2.0;
                check_numbers(path, info, if is_longer { known + PICTURE_S } else { known });
            }
            TransportStream | ProgramStream | WindowsMedia => check_packets(path, info, "pts_time"),
            // Of FLAC in Ogg that is cut ffprobe tells no duration.
            Ogg if is_flac => check_packets(path, info, "pts_time"),
            Avi => check_packets(path, info, "dts_time"),
            IsoMp4 | Mov if self.is_cut(path) => check_whole_frames(path, info, whole_pictures(path)),
            _ if self.is_marked(path) => check_unmarked(path, info),
            _ => check_figures(path, info),
        }
    }

    /// Every picture, beside that of `reference` through `filters`.
    fn check_pictures(&self, path: &Path, reference: &Path, filters: &str, info: &MediaInfo, kept: &Kept, name: &str) {
        if matches!(self.container, Sound(..)) {
            return;
        }
        let options = match self.is_marked(path) {
            true => "-c:v libaom-av1",
            // Whether it turns them is a matter of ffmpeg's version, where it is not mp4.
            false if !filters.is_empty() => "-noautorotate",
            false => "",
        };
        let step = kept.batches[0].plan.image.as_ref().unwrap().frame_step;
        let frames = |first| reference_frames_by(options, reference, info, step, first, filters);
        let [mut theirs, after] = [0, 1].map(frames);
        if self.is_cut(path) && self.container.has_index() {
            theirs.truncate(whole_pictures(path));
        }
        check_pictures(name, &kept.frames(0), &theirs, &after);
    }

    /// Every sample.
    fn check_sound(&self, path: &Path, kept: &Kept, name: &str) {
        let (ours, mut theirs) = (kept.pcm(), reference_sound(path, ""));
        if self.audio.contains("wmav2") {
            theirs.truncate(theirs.len() - BLOCK);
        }
        // ffmpeg makes something of a packet of which a part is missing.
        if self.is_cut(path) && (1..=PACKET).contains(&theirs.len().saturating_sub(ours.len())) {
            theirs.truncate(ours.len());
        }
        if self.audio.contains("ac3") && path == self.path("edited") {
            assert_eq!(ours.len(), theirs.len(), "{name}");
            theirs[SEAM].copy_from_slice(&ours[SEAM]);
        }
        check_samples(name, &ours, &theirs);
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
    fn cut(&self) {
        let index_first = if self.container.has_index() { "-movflags faststart" } else { "" };
        let path = self.make("cut", "", 0.0, index_first);
        let bytes = std::fs::read(&path).unwrap();
        let mut left = bytes.len() * 7 / 10;
        if self.container == WindowsMedia {
            // Of a data packet that is cut ffmpeg reads what there is, and GStreamer nothing: nothing of one is left here.
            left = data_packets(&path).into_iter().rfind(|at| *at <= left).expect("several data packets");
        }
        std::fs::write(&path, &bytes[..left]).unwrap();
        self.check(&path, &path, "");
    }
}

/// Positions of the data packets of a file.
fn data_packets(path: &Path) -> Vec<usize> {
    ffprobe(path, "-show_entries packet=pos").iter().filter_map(|at| at.parse().ok()).collect()
}

/// Pictures of a file with an index that are there as a whole: all but the last if it ends where the file does, since the cut goes
/// through it. That one is left out here; ffmpeg shows it if its decoder makes something of the rest.
fn whole_pictures(path: &Path) -> usize {
    let places = ffprobe(path, "-select_streams v:0 -show_entries packet=pos,size");
    let places = places.as_chunks::<2>().0;
    let [size, at] = places.last().expect("a picture").each_ref().map(|number| number.parse::<u64>().unwrap());
    places.len() - usize::from(at + size == path.metadata().unwrap().len())
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
