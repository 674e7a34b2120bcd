//! Clips of ranges, compared with the video that they are cut from, picture by picture.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::export::pictures::{per_second, pictures};
use anyhow::{Context, ensure};
use deploy::export::media::{Media, Wishes};
use deploy::export::start::Start;
use deploy::export::{Cut, Export, clips, ffmpeg as commands};
use protocol::event::TimeRange;
use protocol::plan::MediaInfo;
use tests::media::ffmpeg;

fn distance(a: &[u8], b: &[u8]) -> u64 {
    a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum()
}

/// Number of the picture that is most like another one.
fn most_like(all: &[Vec<u8>], one: &[u8]) -> u64 {
    let nearest = all.iter().enumerate().min_by_key(|(_, picture)| distance(picture, one));
    nearest.map_or(0, |(number, _)| number as u64)
}

/// Times of all packets of a clip by their tracks, each track's in order.
fn times(clip: &Path) -> anyhow::Result<Vec<(u32, i64)>> {
    let entries = ["-v", "error", "-show_entries", "packet=stream_index,pts", "-of", "csv=p=0"];
    let told = Command::new("ffprobe").args(entries).arg(clip).stdin(Stdio::null()).output()?;
    ensure!(told.status.success(), "ffprobe {}: {}", clip.display(), String::from_utf8_lossy(&told.stderr));
    let line = |line: &str| {
        let (track, time) = line.trim_end_matches(',').split_once(',').context("a track and a time")?;
        Ok((track.parse()?, time.parse()?))
    };
    let mut times = String::from_utf8(told.stdout)?
        .lines()
        .filter(|line| !line.is_empty())
        .map(line)
        .collect::<anyhow::Result<Vec<_>>>()?;
    times.sort_unstable();
    Ok(times)
}

/// Mean of the squared differences up to which two pictures are one that was encoded twice (40 dB).
const SAME: f64 = 6.5;

/// Checks that two clips show the same pictures, and all their packets at the same times. Their bytes may differ:
/// of 480 runs of one ffmpeg command on a busy machine (x264 0.164, pictures of 60000/1001 a second in the milliseconds of Matroska) two
/// differed by some bytes a frame, with the same packets at the same times.
fn are_the_same(one: &Path, other: &Path, dir: &Path) -> anyhow::Result<()> {
    let names = format!("{} and {}", one.display(), other.display());
    ensure!(times(one)? == times(other)?, "{names}: other times");
    let all = |clip: &Path| pictures(&format!("-i {}", clip.display()), dir);
    let (one, other) = (all(one)?, all(other)?);
    ensure!(one.len() == other.len() && !one.is_empty(), "{names}: {} and {} frames", one.len(), other.len());
    for (number, (a, b)) in one.iter().zip(&other).enumerate() {
        let off = distance(a, b) as f64 / a.len() as f64;
        ensure!(off < SAME, "{names}: picture {number} differs by {off:.1}");
    }
    Ok(())
}

/// Video whose every picture differs from all others, and an export of three ranges of it.
struct Sample {
    export: Export,
    pictures: Vec<Vec<u8>>,
}

impl Sample {
    async fn new(dir: &Path, rate: &str, ending: &str, size: &str, format: &str) -> anyhow::Result<Self> {
        let file = dir.join(format!("sample.{ending}"));
        let x264 = format!("-c:v libx264 -preset ultrafast -bf 2 -g 48 -pix_fmt {format} -c:a aac -shortest");
        let source = format!("-f lavfi -i testsrc2=size={size}:rate={rate}:duration=4 -f lavfi -i sine=duration=4");
        ffmpeg(&format!("{source} {x264}"), &file)?;
        let pictures = pictures(&format!("-i {}", file.display()), dir)?;
        let (width, height) = size.split_once('x').context("size")?;
        let info = MediaInfo {
            v: 1,
            duration_s: pictures.len() as f64 / per_second(rate)?,
            frames: pictures.len() as u64,
            avg_fps: per_second(rate)?,
            width: width.parse()?,
            height: height.parse()?,
            rotation: 0,
            mirrored: false,
            has_audio: true,
            audio_samples: 64_000,
            container: if ending == "mkv" { "matroska" } else { ending }.to_owned(),
            codecs: Vec::new(),
            content_id: String::new(),
            notes: Vec::new(),
        };
        let start = Start::of(&file).await;
        let media = Media::new(&file.to_string_lossy(), &info, start, Wishes::default()).map_err(anyhow::Error::msg)?;
        let ranges =
            [(0.0, 1.0), (1.48, 3.02), (3.1, 9.0)].map(|(start_s, end_s)| TimeRange { start_s, end_s, title: None });
        Ok(Sample { export: Export::new(media, "a question", &ranges, 0.06), pictures })
    }

    /// Checks that a clip has as many pictures as its range, and the range's first and last.
    fn holds(&self, cut: &Cut, file: &Path, dir: &Path) -> anyhow::Result<()> {
        let clip = pictures(&format!("-i {}", file.display()), dir)?;
        let due = cut.frames.end - cut.frames.start;
        ensure!(clip.len() as u64 == due, "{} has {} frames, due are {due}", file.display(), clip.len());
        let (first, last) = (clip.first().context("no picture")?, clip.last().context("no picture")?);
        let found = [most_like(&self.pictures, first), most_like(&self.pictures, last)];
        ensure!(found == [cut.frames.start, cut.frames.end - 1], "{}: {found:?}, not {:?}", file.display(), cut.frames);
        Ok(())
    }
}

#[tokio::test]
async fn clips_and_the_scripts_clips_begin_and_end_with_the_very_frames_of_their_ranges() -> anyhow::Result<()> {
    // Of a transport stream neither time stamp begins at 0; H.264 in 4:2:0 has no odd sides.
    for (rate, ending, size, format) in [
        ("25", "mp4", "320x180", "yuv420p"),
        ("30000/1001", "mp4", "320x180", "yuv420p"),
        ("60000/1001", "mkv", "320x180", "yuv420p"),
        ("30000/1001", "ts", "320x180", "yuv420p"),
        ("25", "mp4", "321x181", "yuv444p"),
    ] {
        let dir = tempfile::tempdir()?;
        let sample = Sample::new(dir.path(), rate, ending, size, format).await?;
        let export = &sample.export;
        ensure!(export.cuts.len() == 3 && export.cuts[2].frames.end == sample.pictures.len() as u64);
        ensure!(ending != "ts" || export.media.start.picture_s > 1.0, "{:?}", export.media.start);
        let what = format!("{ending} at {rate}, {size}");
        let cut = clips::cut(export, &dir.path().join("clips")).await.map_err(anyhow::Error::msg)?;
        ensure!(cut.files.len() == 3 && cut.uneven.is_empty(), "{what}: {cut:?}");

        let script = dir.path().join("cut.sh");
        std::fs::write(&script, commands::script(export))?;
        let status = Command::new("sh").arg(&script).current_dir(dir.path()).stdin(Stdio::null()).status()?;
        ensure!(status.success(), "{what}: the script ended with {status}");
        for (at, (range, file)) in export.cuts.iter().zip(&cut.files).enumerate() {
            sample.holds(range, file, dir.path()).with_context(|| what.clone())?;
            let by_script = dir.path().join(commands::clip_name(export, at + 1));
            are_the_same(&by_script, file, dir.path()).with_context(|| format!("{what}: the script's clip {at}"))?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_name_that_is_not_utf8_is_read_out_of_lists_and_scripts_by_ffmpeg() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut sample = Sample::new(dir.path(), "25", "mp4", "320x180", "yuv420p").await?;
    let listed = |export: &Export, name: &str| -> anyhow::Result<Vec<Vec<u8>>> {
        let list = dir.path().join(name);
        std::fs::write(&list, commands::ffconcat(export).map_err(anyhow::Error::msg)?)?;
        pictures(&format!("-f concat -safe 0 -i {}", list.display()), dir.path())
    };
    let plain = listed(&sample.export, "plain.ffconcat")?;
    let odd = dir.path().join(OsStr::from_bytes(b"it's \xff\xfe 'odd'.mp4"));
    std::fs::rename(&sample.export.media.path, &odd)?;
    sample.export.media.path = odd;
    ensure!(plain.len() > 50 && listed(&sample.export, "odd.ffconcat")? == plain, "another list than of a plain name");
    let script = dir.path().join("cut.sh");
    std::fs::write(&script, commands::script(&sample.export))?;
    let status = Command::new("sh").arg(&script).current_dir(dir.path()).stdin(Stdio::null()).status()?;
    ensure!(status.success(), "the script ended with {status}");
    for (at, range) in sample.export.cuts.iter().enumerate() {
        let clip = dir.path().join(format!("{at}.mp4"));
        std::fs::rename(dir.path().join(commands::clip_name(&sample.export, at + 1)), &clip)?;
        sample.holds(range, &clip, dir.path())?;
    }
    Ok(())
}

#[tokio::test]
async fn a_clip_that_fails_is_an_error_that_names_it_and_leaves_no_file() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut export = Sample::new(dir.path(), "25", "mp4", "320x180", "yuv420p").await?.export;
    // A range behind the end of the file, as of a file that was cut off meanwhile.
    export.cuts[1].frames = 5000..5010;
    let clips = dir.path().join("clips");
    let error = clips::cut(&export, &clips).await.err().context("a clip of nothing")?;
    ensure!(error.contains("clip 2 of 3") && error.contains("sample-02.mp4"), "{error}");
    ensure!(clips.join("sample-01.mp4").is_file() && !clips.join("sample-02.mp4").exists(), "{error}");
    export.media.path = "/gone.mp4".into();
    let error = clips::cut(&export, &clips).await.err().context("a clip of no file")?;
    ensure!(error.contains("clip 1 of 3") && error.contains("No such file"), "{error}");
    Ok(())
}
