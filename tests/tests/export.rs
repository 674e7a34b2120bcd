//! Files of answers: what `vidi ask --export` writes is read back by programs that are not ours, and clips are compared with
//! the video picture by picture.

#![allow(clippy::print_stdout, reason = "a test: what it skips is shown")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use deploy::demo_video::truth::Answer;
use deploy::export::media::{Media, Wishes};
use deploy::export::start::Start;
use deploy::export::{Cut, Export, clips, ffmpeg as commands};
use protocol::event::TimeRange;
use protocol::plan::MediaInfo;
use serde_json::Value;
use tests::harness::{Rig, Setup, ffmpeg, root, video, vidi};

/// Frame rates of the videos, as ffmpeg takes them.
const RATES: [&str; 3] = ["25", "30000/1001", "60000/1001"];
/// Width and height at which pictures are compared.
const SMALL: [usize; 2] = [160, 90];

/// Frames a second that a fraction stands for.
fn per_second(rate: &str) -> anyhow::Result<f64> {
    let (n, d) = rate.split_once('/').unwrap_or((rate, "1"));
    Ok(n.parse::<f64>()? / d.parse::<f64>()?)
}

/// Runs the readers of readers.py over the files of an answer.
fn read_back(rate: &str, answer: &Path, files: &[PathBuf]) -> anyhow::Result<()> {
    let installed = root().join(".vidi/readers/bin/python");
    let python = if installed.is_file() { installed } else { PathBuf::from("python3") };
    let script = root().join("tests/tests/export/readers.py");
    let output = match Command::new(&python).arg(script).arg(rate).arg(answer).args(files).output() {
        Ok(output) => output,
        Err(e) => {
            println!("skipped: {} cannot be started: {e}", python.display());
            return Ok(());
        }
    };
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    ensure!(output.status.success(), "{rate}: {said}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(said.lines().count() == files.len(), "not every file was looked at: {said}");
    Ok(())
}

/// All pictures of what ffmpeg takes for an input, small and grey.
fn pictures(input: &str, dir: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let raw = dir.join("pictures.raw");
    let [width, height] = SMALL;
    ffmpeg(&format!("{input} -map 0:v:0 -vf scale={width}:{height},format=gray -vsync passthrough -f rawvideo"), &raw)?;
    Ok(std::fs::read(&raw)?.chunks_exact(width * height).map(<[u8]>::to_vec).collect())
}

fn distance(a: &[u8], b: &[u8]) -> u64 {
    a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum()
}

/// Number of the picture that is most like another one.
fn most_like(all: &[Vec<u8>], one: &[u8]) -> u64 {
    let nearest = all.iter().enumerate().min_by_key(|(_, picture)| distance(picture, one));
    nearest.map_or(0, |(number, _)| number as u64)
}

/// Frames of a range, from the answer itself.
fn span(range: &Value, rate: f64) -> anyhow::Result<[usize; 2]> {
    let frame = |key: &str| Some((range[key].as_f64()? * rate).round() as usize);
    Ok([frame("start_s").context("start_s")?, frame("end_s").context("end_s")?])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_export_of_vidi_ask_is_read_back_frame_by_frame_by_other_programs() -> anyhow::Result<()> {
    let rig = Rig::start(Setup { model: Some("demo".into()), keep_video: true, ..Setup::default() }).await?;
    let (made, truth) = rig.demo_video(1, 40)?;
    let several = |answer: &Answer| matches!(answer, Answer::Ranges(ranges) if ranges.len() > 1);
    let question = truth.questions.iter().find(|q| q.task == "retrieval" && several(&q.answer));
    let query = &question.context("no question with several ranges")?.query;
    for rate in RATES {
        let dir = rig.dir.path().join(rate.replace('/', "-"));
        std::fs::create_dir(&dir)?;
        // Of key frames alone, for which ffmpeg's list is exact too.
        let clip = rig.media().join(format!("it's {}.mp4", rate.replace('/', "-")).replace(' ', "_"));
        let x264 = "-c:v libx264 -preset ultrafast -crf 20 -g 1 -pix_fmt yuv420p -c:a copy";
        ffmpeg(&format!("-i {} -vf fps={rate} {x264}", made.display()), &clip)?;
        let exported = exported(&rig, &clip, query, &dir, rate)?;
        read_back(rate, &dir.join("answer.json"), &exported)?;

        let answer: Value = serde_json::from_slice(&std::fs::read(dir.join("answer.json"))?)?;
        let ranges = answer["ranges"].as_array().context("ranges")?;
        ensure!(ranges.len() > 1, "one range proves little: {answer}");
        let spans = ranges.iter().map(|range| span(range, per_second(rate)?)).collect::<anyhow::Result<Vec<_>>>()?;
        chapters_are_read_by_ffprobe(&dir.join("ranges.ffmetadata"), &answer)?;

        let all = pictures(&format!("-i {}", clip.display()), &dir)?;
        let listed = pictures(&format!("-f concat -safe 0 -i {}", dir.join("ranges.ffconcat").display()), &dir)?;
        let of_ranges = |shift: usize| -> Vec<Vec<u8>> {
            spans.iter().flat_map(|[start, end]| all[start + shift..end + shift].to_vec()).collect()
        };
        ensure!(of_ranges(0) != of_ranges(1), "{rate}: a shift by one frame would not show");
        ensure!(listed == of_ranges(0), "{rate}: {} pictures of ffconcat are not those of {spans:?}", listed.len());
        for (at, [start, end]) in spans.iter().enumerate() {
            let name = format!("{}-{:02}.mp4", clip.file_stem().context("stem")?.to_string_lossy(), at + 1);
            let cut = pictures(&format!("-i {}", dir.join("clips").join(&name).display()), &dir)?;
            ensure!(cut.len() == end - start, "{rate}: {name} has {} frames, not {start}..{end}", cut.len());
        }
    }
    Ok(())
}

/// Asks for every format; the files that readers.py reads. The answer goes to answer.json.
fn exported(rig: &Rig, clip: &Path, query: &str, dir: &Path, rate: &str) -> anyhow::Result<Vec<PathBuf>> {
    let ask = |args: &[&str]| -> anyhow::Result<Value> {
        let clip = clip.to_string_lossy();
        let output = rig.run(&[&["ask", &clip, query, "--json", "--quiet"][..], args].concat())?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let read = ["otio", "edl", "fcpxml", "vtt", "srt", "csv", "json"].map(|ending| path(&format!("ranges.{ending}")));
    let other = ["ffmetadata", "ffconcat", "sh"].map(|ending| path(&format!("ranges.{ending}")));
    let (clips, markers) = (path("clips"), path("markers.edl"));
    let mut args: Vec<&str> = read.iter().chain(&other).flat_map(|file| ["--export", file]).collect();
    args.extend(["--clips", &clips]);
    let mut answer = ask(&args)?;
    answer["query"] = query.into();
    std::fs::write(dir.join("answer.json"), answer.to_string())?;

    let mut args = vec!["--export", &markers, "--edl-markers"];
    let (drop, table) = (path("drop.edl"), path("drop.csv"));
    let mut files: Vec<PathBuf> = read.iter().chain([&markers]).map(PathBuf::from).collect();
    if rate.contains('/') {
        args.push("--drop-frame");
        ask(&["--export", &drop, "--export", &table, "--drop-frame"])?;
        ensure!(std::fs::read_to_string(&drop)?.contains("FCM: DROP FRAME"));
        files.extend([PathBuf::from(drop), PathBuf::from(table)]);
    }
    ask(&args)?;
    Ok(files)
}

/// Checks ffprobe's reading of a metadata file: times as they are known, and titles.
fn chapters_are_read_by_ffprobe(file: &Path, answer: &Value) -> anyhow::Result<()> {
    let args = ["-v", "error", "-f", "ffmetadata", "-show_chapters", "-of", "json"];
    let output = Command::new("ffprobe").args(args).arg(file).output()?;
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let chapters = told["chapters"].as_array().context("chapters")?;
    let ranges = answer["ranges"].as_array().context("ranges")?;
    ensure!(chapters.len() == ranges.len(), "{told}");
    let resolution_s = answer["plan"]["duration_s"].as_f64().context("duration_s")? / 100.0;
    for (chapter, range) in chapters.iter().zip(ranges) {
        for (told, due) in [("start_time", "start_s"), ("end_time", "end_s")] {
            let second: f64 = chapter[told].as_str().context("a time")?.parse()?;
            let due = range[due].as_f64().context("a time")?;
            ensure!((second - due).abs() < resolution_s / 2.0, "{chapter}: {due} was due");
        }
        ensure!(chapter["tags"]["title"] == answer["query"], "{chapter}");
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
        let x264 = format!("-c:v libx264 -preset veryfast -bf 2 -g 48 -pix_fmt {format} -c:a aac -shortest");
        let source = format!("-f lavfi -i testsrc2=size={size}:rate={rate}:duration=6 -f lavfi -i sine=duration=6");
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
            has_audio: true,
            audio_samples: 96_000,
            container: ending.to_owned(),
            codecs: Vec::new(),
            content_id: String::new(),
        };
        let start = Start::of(&file).await;
        let media = Media::new(&file.to_string_lossy(), &info, start, Wishes::default()).map_err(anyhow::Error::msg)?;
        let ranges =
            [(0.0, 1.0), (1.48, 3.02), (4.5, 9.0)].map(|(start_s, end_s)| TimeRange { start_s, end_s, title: None });
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
            sample.holds(range, &by_script, dir.path()).with_context(|| format!("script, {what}"))?;
        }
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
    export.media.path = "/gone.mp4".to_owned();
    let error = clips::cut(&export, &clips).await.err().context("a clip of no file")?;
    ensure!(error.contains("clip 1 of 3") && error.contains("No such file"), "{error}");
    Ok(())
}

#[test]
fn what_cannot_become_a_file_is_told_before_anything_is_asked() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let clip = dir.path().join("clip.mp4");
    video(&clip, 2)?;
    let clip = clip.to_string_lossy().into_owned();
    let inside = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (unknown, nowhere, table) = (inside("x.mp4"), inside("gone/x.edl"), inside("x.csv"));
    let ask = |args: &[&str], path: Option<&str>, says: &str| -> anyhow::Result<()> {
        let mut command = Command::new(vidi()?);
        // Nobody answers there: what is told before that needs no broker.
        command.args(["ask", &clip, "a dog", "--set", "bus.url=nats://127.0.0.1:9"]).args(args);
        command.env("VIDI_STATE", dir.path()).stdin(Stdio::null());
        if let Some(path) = path {
            command.env("PATH", path);
        }
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2) && said.contains(says), "{args:?}: {}: {said}", output.status);
        Ok(())
    };
    ask(&["--export", &unknown], None, ".otio, .edl")?;
    ask(&["--export", &nowhere], None, "make it first")?;
    ask(&["--export", &table, "--edl-markers"], None, "no --export is one")?;
    ask(&["--export", &table, "--start-tc", "1:2:3"], None, "HH:MM:SS:FF")?;
    ask(&["--drop-frame"], None, "--export")?;
    ask(&["--clips", &inside("clips")], Some(""), "install it")
}
