//! Files of answers: what `vidi ask --export` writes is read back by programs that are not ours.

pub mod pictures;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use demo_video::truth::Answer;
use pictures::{per_second, pictures};
use serde_json::Value;
use tests::harness::{Rig, Setup, root, vidi};
use tests::media::{ffmpeg, video};

/// Frame rates of the videos, as ffmpeg takes them.
const RATES: [&str; 3] = ["25", "30000/1001", "60000/1001"];

/// Runs the readers of readers.py over the files of an answer.
fn read_back(rate: &str, answer: &Path, files: &[PathBuf]) -> anyhow::Result<()> {
    let python = root().join(".vidi/readers/bin/python");
    ensure!(python.is_file(), "{} is not there: run deploy/setup.sh test", python.display());
    let script = root().join("tests/tests/system/export/readers.py");
    let output = Command::new(&python).arg(script).arg(rate).arg(answer).args(files).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{rate}: {said}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(said.lines().count() == files.len(), "not every file was looked at: {said}");
    Ok(())
}

/// Frames of a range, from the answer itself.
fn span(range: &Value, rate: f64) -> anyhow::Result<[usize; 2]> {
    let frame = |key: &str| Some((range[key].as_f64()? * rate).round() as usize);
    Ok([frame("start_s").context("start_s")?, frame("end_s").context("end_s")?])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_export_of_vidi_ask_is_read_back_frame_by_frame_by_other_programs() -> anyhow::Result<()> {
    let rig = Rig::start(Setup { model: Some("demo".into()), keep_video: true, ..Setup::default() }).await?;
    let (made, truth) = rig.demo_video(1, 20)?;
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
        if rate == RATES[0] {
            troubles(&rig, &clip, query, &dir)?;
        }

        let answer: Value = serde_json::from_slice(&std::fs::read(dir.join("answer.json"))?)?;
        let ranges = answer["ranges"].as_array().context("ranges")?;
        ensure!(ranges.len() > 1, "one range proves little: {answer}");
        let spans = ranges.iter().map(|range| span(range, per_second(rate)?)).collect::<anyhow::Result<Vec<_>>>()?;
        let chapters = chapters_by_ffprobe(&dir.join("ranges.ffmetadata"))?;
        ensure!(chapters.len() == ranges.len(), "{chapters:?}");
        for ((start_s, end_s, title), range) in chapters.iter().zip(ranges) {
            // Known to 0.2 s, and so told in tenths.
            let is_near = |told: f64, due: &Value| due.as_f64().is_some_and(|due| (told - due).abs() < 0.051);
            let same = is_near(*start_s, &range["start_s"]) && is_near(*end_s, &range["end_s"]) && title == query;
            ensure!(same, "{chapters:?}: {ranges:?}");
        }

        let all = pictures(&format!("-i {}", clip.display()), &dir)?;
        let listed = pictures(&format!("-f concat -safe 0 -i {}", dir.join("ranges.ffconcat").display()), &dir)?;
        let of_ranges = |shift: usize| -> Vec<Vec<u8>> {
            spans.iter().flat_map(|[start, end]| all[start + shift..(end + shift).min(all.len())].to_vec()).collect()
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
    let named = format!("edl-markers:{markers}");
    args.extend(["--export", &named, "--clips", &clips]);
    let mut answer = ask(&args)?;
    answer["query"] = query.into();
    let ranges = answer["ranges"].as_array_mut().context("ranges")?;
    ranges.sort_by(|a, b| a["start_s"].as_f64().partial_cmp(&b["start_s"].as_f64()).expect("times are numbers"));
    std::fs::write(dir.join("answer.json"), answer.to_string())?;

    let mut files: Vec<PathBuf> = read.iter().chain([&markers]).map(PathBuf::from).collect();
    if rate.contains('/') {
        let (drop, table) = (path("drop.edl"), path("drop.csv"));
        ask(&["--export", &drop, "--export", &table, "--drop-frame"])?;
        ensure!(std::fs::read_to_string(&drop)?.contains("FCM: DROP FRAME"));
        files.extend([PathBuf::from(drop), PathBuf::from(table)]);
    }
    Ok(files)
}

/// Checks that what this video cannot be exported as is refused before the question is asked, and that a file that cannot be
/// written keeps no other from it.
fn troubles(rig: &Rig, clip: &Path, query: &str, dir: &Path) -> anyhow::Result<()> {
    let clip = clip.to_string_lossy();
    let (chapters, table) = (dir.join("chapters.txt"), dir.join("again.csv"));
    let (to_chapters, to_table) = (chapters.to_string_lossy(), table.to_string_lossy());
    let ask = |args: &[&str], code: i32, says: &str| -> anyhow::Result<()> {
        let output = rig.run(&[&["ask", &clip, query, "--export", &to_table], args].concat())?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(code) && said.contains(says), "{args:?}: {}: {said}", output.status);
        ensure!((code == 1) == table.exists() && (code == 1) != output.stdout.is_empty(), "{args:?}: {said}");
        Ok(())
    };
    ask(&["--export", &to_chapters], 2, "chapters.txt: YouTube shows chapters")?;
    ask(&["--drop-frame"], 2, "no drop-frame time codes at 25 frames a second")?;
    ask(&["--start-tc", "01:00:00:25"], 2, "a second has 25 frames")?;
    let markers = dir.join("again.edl");
    let to_markers = markers.to_string_lossy();
    let args = ["--export", "csv:/dev/full", "--export", &to_markers, "--edl-markers"];
    ask(&args, 1, "/dev/full: No space left")?;
    ensure!(std::fs::read_to_string(&markers)?.contains("|C:ResolveColorBlue"));
    ensure!(std::fs::read_to_string(&table)?.lines().count() > 2 && !chapters.exists());
    Ok(())
}

/// Chapters of a metadata file as ffprobe reads it: start and end in seconds, title.
fn chapters_by_ffprobe(file: &Path) -> anyhow::Result<Vec<(f64, f64, String)>> {
    let args = ["-v", "error", "-f", "ffmetadata", "-show_chapters", "-of", "json"];
    let output = Command::new("ffprobe").args(args).arg(file).output()?;
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let chapters = told["chapters"].as_array().context("chapters")?;
    let text = |value: &Value| Some(value.as_str()?.to_owned());
    let chapter = |chapter: &Value| {
        let times = [text(&chapter["start_time"]), text(&chapter["end_time"])];
        let [Some(start), Some(end)] = times else { anyhow::bail!("{chapter}") };
        Ok((start.parse()?, end.parse()?, text(&chapter["tags"]["title"]).context("a title")?))
    };
    chapters.iter().map(chapter).collect()
}

#[test]
fn the_golden_files_say_to_other_programs_what_they_are_written_from() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let odd = "x = 1; #2 <b> \\ | \"q\", a --> b, é";
    let ranges = serde_json::json!([
        { "start_s": 70.5, "end_s": 95.2, "title": "two lines" },
        { "start_s": 600.0, "end_s": 612.3 },
        { "start_s": 3601.1, "end_s": 3620.0, "title": odd },
    ]);
    let answer = serde_json::json!({ "query": "a red box, or so", "resolution_s": 0.366, "ranges": ranges });
    let file = dir.path().join("answer.json");
    std::fs::write(&file, answer.to_string())?;
    let golden = root().join("deploy/src/export/golden");
    let [ntsc, twice] = [RATES[1], RATES[2]];
    for (case, rate) in [("25", "25"), ("29.97", ntsc), ("59.94", twice), ("29.97-drop", ntsc), ("59.94-drop", twice)] {
        let mut endings = vec!["edl", "edl-markers", "fcpxml", "csv", "json"];
        if !case.ends_with("drop") {
            endings.extend(["otio", "vtt", "srt", "youtube"]);
            let chapters = chapters_by_ffprobe(&golden.join(format!("{case}.ffmetadata")))?;
            ensure!(chapters[0] == (70.5, 95.2, "two lines".to_owned()), "{chapters:?}");
            ensure!(chapters.len() == 3 && chapters[2] == (3601.1, 3620.0, odd.to_owned()), "{chapters:?}");
        }
        let files: Vec<PathBuf> = endings.iter().map(|ending| golden.join(format!("{case}.{ending}"))).collect();
        read_back(rate, &file, &files)?;
    }
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
    ask(&["--export", &inside("csv"), "--format", "csv", "--export", &inside("csv")], None, "2 exports go to 1 files")?;
    ask(&["--export", &format!("csv:{clip}")], None, "the video itself")?;
    ask(&["--export", &format!("csv:{}", dir.path().display())], None, "name a file")?;
    ask(&["--export", "csv:"], None, "name a file")?;
    ask(&["--export", &nowhere], None, "make it first")?;
    ask(&["--export", &table, "--edl-markers"], None, "no --export is one")?;
    ask(&["--export", &table, "--start-tc", "1:2:3"], None, "HH:MM:SS:FF")?;
    ask(&["--drop-frame"], None, "--export")?;
    ask(&["--clips", &clip], None, "name a directory")?;
    ask(&["--clips", &inside("clips")], Some(""), "install it")
}
