//! What ffmpeg reads of a file, and comparison with it.

use std::path::Path;

use protocol::plan::{FRAME_BYTES, MediaInfo};
use stage_decode::picture::Picture;
use stage_decode::resize::Resizer;

use super::{Kept, psnr, run, snr, words};

/// dB that the same picture, or the same sound, must reach.
pub const SAME: f64 = 40.0;

/// Values that ffprobe prints.
pub fn ffprobe(path: &Path, arguments: &str) -> Vec<String> {
    let mut all = words("-v error -of csv=p=0");
    all.extend(words(arguments));
    all.push(path.to_str().unwrap().to_owned());
    let text = String::from_utf8(run("ffprobe", &all)).unwrap();
    text.lines().flat_map(|l| l.split(',')).map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect()
}

/// How many threads GStreamer lets a decoder of ffmpeg's take.
pub fn decoder_threads() -> String {
    String::from_utf8(run("getconf", &words("_NPROCESSORS_ONLN"))).unwrap().trim().to_owned()
}

/// Pictures that ffmpeg gives for every `step`-th frame, through further filters (`,hflip`), scaled.
pub fn reference_frames(path: &Path, info: &MediaInfo, step: u64, filters: &str) -> Vec<Vec<u8>> {
    selected_frames(path, info, &format!("not(mod(n,{step}))"), ["", filters])
}

/// Pictures that ffmpeg selects, with options that choose how it reads the file (`-c:v libaom-av1`) and further filters.
fn selected_frames(path: &Path, info: &MediaInfo, select: &str, [options, filters]: [&str; 2]) -> Vec<Vec<u8>> {
    let mut all = words(&format!("-v error {options} -i"));
    all.push(path.to_str().unwrap().to_owned());
    all.push("-vf".to_owned());
    all.push(format!("select='{select}'{filters}"));
    all.extend(words("-vsync passthrough -f rawvideo -pix_fmt rgb24 -"));
    let raw = run("ffmpeg", &all);
    let (width, height) = (info.width as usize, info.height as usize);
    assert_eq!(raw.len() % (width * height * 3), 0, "ffmpeg shows another size than {width} x {height}");
    let mut resizer = Resizer::default();
    let scaled = |rgb: &[u8]| {
        let mut out = vec![0; FRAME_BYTES];
        resizer.resize(&Picture::from_rgb(width, height, rgb), &mut out);
        out
    };
    raw.chunks_exact(width * height * 3).map(scaled).collect()
}

/// Checks that frames are every `step`-th one that ffmpeg gives, each nearer to it than to the one after it.
pub fn check_stepped(name: &str, ours: &[&[u8]], path: &Path, info: &MediaInfo, step: u64) {
    check_stepped_by(["", ""], name, ours, path, info, step);
}

/// The same, with options that choose how ffmpeg reads the file and further filters.
pub fn check_stepped_by(by: [&str; 2], name: &str, ours: &[&[u8]], path: &Path, info: &MediaInfo, step: u64) {
    // In one run: those and the ones after them.
    let mut theirs = selected_frames(path, info, &format!("gt(not(mod(n,{step}))+not(mod(n-1,{step})),0)"), by);
    if step == 1 {
        return check_pictures(name, ours, &theirs, &theirs[1..]);
    }
    let mut place = 0..;
    let after: Vec<_> = theirs.extract_if(.., |_| place.next().is_some_and(|n: usize| n % 2 == 1)).collect();
    check_pictures(name, ours, &theirs, &after);
}

/// Sound that ffmpeg gives for what `map` selects (`-map 0:a:1`; all for nothing).
pub fn reference_sound(path: &Path, map: &str) -> Vec<i16> {
    reference_sound_by("", path, map)
}

/// The same, with options that choose how ffmpeg reads the file (`-fflags +noparse`).
pub fn reference_sound_by(options: &str, path: &Path, map: &str) -> Vec<i16> {
    let mut all = words(&format!("-v error {options} -i"));
    all.push(path.to_str().unwrap().to_owned());
    all.extend(words(map));
    all.extend(words("-f s16le -ac 1 -acodec pcm_s16le -ar 16000 -"));
    run("ffmpeg", &all).as_chunks::<2>().0.iter().map(|b| i16::from_le_bytes(*b)).collect()
}

/// Checks that the numbers of the frames and the duration are ffprobe's.
pub fn check_figures(path: &Path, info: &MediaInfo) {
    let told = ffprobe(path, "-count_frames -select_streams v:0 -show_entries stream=nb_read_frames:format=duration");
    // Of a transport stream the frames are there twice: of its programme, too.
    let (frames, duration) = (&told[0], &told[told.len() - 1]);
    assert_eq!(info.frames.to_string(), *frames, "frames of {}", path.display());
    check_duration(path, info, duration.parse().unwrap());
}

/// Checks that the number of the frames is ffprobe's, and the duration what its packets span by their `clock`: of a transport stream
/// ffprobe guesses how long the last packet of sound is, and of AVI it believes the header.
pub fn check_packets(path: &Path, info: &MediaInfo, clock: &str) {
    check_numbers(path, info, packets_s(path, clock));
}

/// Seconds that packets span by their `clock`; one that does not say how long it lasts ends where it begins.
pub fn packets_s(path: &Path, clock: &str) -> f64 {
    let spans = ffprobe(path, &format!("-show_entries packet={clock},duration_time"));
    let spans = spans.as_chunks::<2>().0.iter().filter_map(|[at, length]| {
        let (at, length) = (at.parse::<f64>().ok()?, length.parse::<f64>().unwrap_or(0.0));
        Some([at, at + length])
    });
    let [start, end] = spans.reduce(|all, span| [all[0].min(span[0]), all[1].max(span[1])]).expect("packets");
    end - start
}

/// Checks that the number of the frames is that of the packets which ffprobe does not mark as left out, and the duration ffprobe's.
pub fn check_unmarked(path: &Path, info: &MediaInfo) {
    let marks = ffprobe(path, "-select_streams v:0 -show_entries packet=flags");
    let shown = marks.iter().filter(|marks| !marks.contains('D')).count();
    assert_eq!(info.frames, shown as u64, "frames of {}", path.display());
    check_duration(path, info, ffprobe(path, "-show_entries format=duration")[0].parse().unwrap());
}

/// Checks that the number of the frames is ffprobe's, and the duration that one.
pub fn check_numbers(path: &Path, info: &MediaInfo, duration: f64) {
    let shown = ffprobe(path, "-count_frames -select_streams v:0 -show_entries stream=nb_read_frames");
    assert_eq!(info.frames.to_string(), shown[0], "frames of {}", path.display());
    check_duration(path, info, duration);
}

fn check_duration(path: &Path, info: &MediaInfo, duration: f64) {
    let near = (info.duration_s - duration).abs() < 2e-3;
    assert!(near, "{}: {} s, ffprobe says {duration}", path.display(), info.duration_s);
}

/// Checks that frames are those of a reference, each nearer to it than to the one after it.
pub fn check_pictures(name: &str, ours: &[&[u8]], theirs: &[Vec<u8>], after: &[Vec<u8>]) {
    assert_eq!(ours.len(), theirs.len(), "frames of {name}");
    for (i, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let same = psnr(ours, theirs);
        assert!(same > SAME, "frame {i} of {name}: {same:.1} dB");
        if let Some(after) = after.get(i) {
            assert!(psnr(ours, after) < same.min(SAME), "{name}: frame {i} cannot be told from the next");
        }
    }
}

/// Checks that a sound is a reference, to the sample.
pub fn check_samples(name: &str, ours: &[i16], theirs: &[i16]) {
    assert!(theirs.len() > 16_000 && theirs.iter().any(|&s| s.unsigned_abs() > 1_000), "a sound to compare with");
    assert!(ours.len().abs_diff(theirs.len()) <= 1, "{name}: {} samples, ffmpeg has {}", ours.len(), theirs.len());
    let same = snr(theirs, ours);
    assert!(same > SAME, "{name}: {same:.1} dB");
    assert!(snr(&theirs[1..], ours) < SAME, "{name}: a shift by one sample would not show");
}

/// Checks the sampled frames of a file.
pub fn check_frames(path: &Path, info: &MediaInfo, kept: &Kept) {
    check_figures(path, info);
    let step = kept.batches[0].plan.image.as_ref().unwrap().frame_step;
    let ours = kept.frames(0);
    assert!(ours.len() >= 3, "{} frames prove little", ours.len());
    check_stepped(&path.display().to_string(), &ours, path, info, step);
}

/// Checks the sound of a file.
pub fn check_sound(path: &Path, kept: &Kept) {
    let ours = kept.pcm();
    check_samples(&path.display().to_string(), &ours, &reference_sound(path, ""));
    let plan = kept.windows[0].plan.audio.as_ref().unwrap();
    assert_eq!(plan.samples, ours.len() as u64, "the plan is exact");
}

/// Checks every frame of a file.
pub fn check_every_frame(path: &Path, info: &MediaInfo, kept: &Kept) {
    check_figures(path, info);
    check_stepped(&path.display().to_string(), &kept.frames(0), path, info, 1);
}
