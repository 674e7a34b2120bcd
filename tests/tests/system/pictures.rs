//! Pictures of answers and jobs: what `vidi ask --timeline`, `--contact-sheet` and `vidi trace` draw, held against the video and
//! the truth about it.

mod frames;
mod pixels;
mod refused;
mod svg;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use demo_video::RATE;
use demo_video::truth::{Answer, Truth};
use pixels::{Colour, NEAR, Pixels, distance, means};
use serde_json::Value;
use svg::{Axis, Element, elements, of};
use tests::harness::{Rig, Setup};
use tests::media::ffmpeg;

/// A question that no file may take for anything else than a text.
const HOSTILE: &str = "<script>&\"'</title>]]> \u{1b}[31m";
/// A stage's start is known from its reports, which may be heard so much later, seconds.
const LATE_S: f64 = 0.1;
/// The answer's times are known to a hundredth of 20 s.
const RESOLUTION_S: f64 = 0.2;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Pipeline, a made video, and what is true of it.
struct Studio {
    rig: Rig,
    video: PathBuf,
    truth: Truth,
    /// Mean colours of the video's frames.
    frames: Vec<Colour>,
}

impl Studio {
    async fn open() -> anyhow::Result<Self> {
        let rig = Rig::start(Setup { model: Some("demo".into()), keep_video: true, ..Setup::default() }).await?;
        let (video, truth) = rig.demo_video(1, 20)?;
        let frames = means(&video, rig.dir.path())?;
        Ok(Studio { rig, video, truth, frames })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.rig.dir.path().join(name)
    }

    /// Asks; the command must end with a status. Files of a name that begins with @ are in the test's directory.
    fn ask(&self, query: &str, args: &[&str], status: i32) -> anyhow::Result<Output> {
        let video = self.video.to_string_lossy();
        let here = |arg: &&str| match arg.strip_prefix('@') {
            Some(name) => self.file(name).to_string_lossy().into_owned(),
            None => (*arg).to_owned(),
        };
        let args: Vec<String> = args.iter().map(here).collect();
        let command: Vec<&str> = ["ask", &video, query].into_iter().chain(args.iter().map(String::as_str)).collect();
        let output = self.rig.run(&command)?;
        ensure!(output.status.code() == Some(status), "{args:?}: {}: {}", output.status, said(&output));
        Ok(output)
    }

    /// Checks that an area of a picture looks like a frame.
    fn looks_like(&self, frame: usize, picture: &Pixels, area: [usize; 4]) -> anyhow::Result<()> {
        let (found, due) = (picture.mean(area), self.frames[frame]);
        ensure!(distance(found, due) < NEAR, "frame {frame} is {due:?}, {area:?} of the picture {found:?}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pictures_of_an_answer_show_its_ranges_and_the_frames_of_the_video() -> anyhow::Result<()> {
    let studio = Studio::open().await?;
    let several = |answer: &&Answer| matches!(answer, Answer::Ranges(ranges) if ranges.len() > 1);
    let question = studio.truth.questions.iter().find(|q| q.task == "retrieval" && several(&&q.answer));
    let question = question.context("no question with several ranges")?;
    let args = ["--json", "--job", "drawn", "--timeline", "@line.svg", "--contact-sheet", "@sheet.jpg"];
    let output = studio.ask(&question.query, &args, 0)?;
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    let ranges = ranges(&answer)?;
    ensure!(said(&output).contains("time line: ") && said(&output).contains("2 of 2 ranges"), "{}", said(&output));

    let line = elements(&studio.file("line.svg"))?;
    time_line(&studio, &line, &question.query, &ranges, &question.answer)?;
    contact_sheet(&studio, "sheet.jpg", &ranges)?;
    let args = ["--job", "again", "--timeline", "@line.png", "--contact-sheet", "@one.jpeg", "--sheet-rows", "1"];
    let output = studio.ask(&question.query, &args, 0)?;
    ensure!(said(&output).contains("1 of 2 ranges; --sheet-rows"), "{}", said(&output));
    in_pixels(&studio, &line)?;
    contact_sheet(&studio, "one.jpeg", &ranges[..1])?;

    without_ranges(&studio)?;
    troubles(&studio, &question.query)?;
    traces(&studio)
}

/// Starts and ends of an answer, seconds.
fn ranges(answer: &Value) -> anyhow::Result<Vec<[f64; 2]>> {
    let time = |range: &Value, key: &str| range[key].as_f64().context("a time");
    let ranges = answer["ranges"].as_array().context("ranges")?;
    ranges.iter().map(|range| Ok([time(range, "start_s")?, time(range, "end_s")?])).collect()
}

/// Checks a time line against the answer and the truth: bars, labels, and thumbnails.
fn time_line(
    studio: &Studio,
    line: &[Element],
    query: &str,
    ranges: &[[f64; 2]],
    truth: &Answer,
) -> anyhow::Result<()> {
    let Answer::Ranges(truth) = truth else { anyhow::bail!("{truth:?}") };
    let (axis, bars) = (Axis::of(line)?, of(line, "rect", "bar"));
    ensure!(bars.len() == ranges.len() && truth.len() == ranges.len(), "{ranges:?}: {bars:?}");
    for ((bar, range), due) in bars.iter().zip(ranges).zip(truth) {
        let [x, _, width, _] = bar.area()?;
        let [start, end] = range.map(|seconds| axis.x(seconds));
        ensure!((x - start).abs() < 1.0 && (x + width - end).abs() < 1.0, "{bar:?}: {range:?}");
        let apart = (axis.seconds(x) - due[0]).abs().max((axis.seconds(x + width) - due[1]).abs());
        ensure!(apart <= RESOLUTION_S + 1.0 / (axis.x(1.0) - axis.x(0.0)), "{bar:?}: {due:?}");
        // Tenths of a second are known, and no more.
        let label = range.map(|s| format!("0:{:04.1}", s)).join("–");
        ensure!(bar.hint == label && line.iter().any(|e| e.tag == "text" && e.text == label), "{bar:?}: {label}");
    }
    ensure!(bars[0].number("y")? == bars[1].number("y")?, "ranges that do not overlap share a row: {bars:?}");
    let texts: Vec<&str> = of(line, "text", "ink").iter().map(|e| e.text.as_str()).collect();
    ensure!(texts[0] == query && line[0].hint == query, "{texts:?}");

    let thumbnails = of(line, "image", "");
    ensure!(thumbnails.len() >= 6, "{}", thumbnails.len());
    for thumbnail in thumbnails {
        let frame = thumbnail.number("data-frame")?;
        let [x, _, width, _] = thumbnail.area()?;
        let middle = axis.seconds(x + width / 2.0);
        ensure!((frame / f64::from(RATE) - middle).abs() <= 0.5 / f64::from(RATE) + 1e-3, "{frame} at {middle} s");
        let picture = embedded(studio, thumbnail)?;
        studio.looks_like(frame as usize, &picture, [0, 0, picture.width, picture.height])?;
    }
    Ok(())
}

/// The picture in an element, which is a JPEG.
fn embedded(studio: &Studio, image: &Element) -> anyhow::Result<Pixels> {
    let data = image.attribute("href")?.split_once(',').context("data")?.1;
    let (coded, file) = (studio.file("thumbnail.txt"), studio.file("thumbnail.jpg"));
    std::fs::write(&coded, data)?;
    let decoded = Command::new("base64").arg("-d").arg(&coded).output()?;
    ensure!(decoded.status.success() && decoded.stdout.starts_with(&[0xff, 0xd8, 0xff]), "no JPEG");
    std::fs::write(&file, decoded.stdout)?;
    Pixels::of(&format!("-i {}", file.display()), studio.rig.dir.path())
}

/// Checks that the PNG of a time line is its SVG: bars, background, thumbnails, and a text where the question stands.
fn in_pixels(studio: &Studio, line: &[Element]) -> anyhow::Result<()> {
    let png = std::fs::read(studio.file("line.png"))?;
    ensure!(png.starts_with(b"\x89PNG\r\n\x1a\n"), "no PNG");
    let picture = Pixels::of(&format!("-i {}", studio.file("line.png").display()), studio.rig.dir.path())?;
    ensure!([picture.width as f64, picture.height as f64] == [line[0].number("width")?, line[0].number("height")?]);
    for bar in of(line, "rect", "bar") {
        let [x, y, width, height] = bar.area()?;
        let row = (y + height / 2.0) as usize;
        let pixel = |x: f64| picture.at(x as usize, row);
        ensure!(pixel(x + 2.0) == [0x09, 0x69, 0xda] && pixel(x + width - 2.0) == [0x09, 0x69, 0xda], "{bar:?}");
        ensure!(pixel(x - 3.0) == [255; 3] && pixel(x + width + 2.0) == [255; 3], "{bar:?}");
    }
    for image in of(line, "image", "") {
        let area = image.area()?.map(|side| side as usize);
        let inside = [area[0] + 2, area[1] + 2, area[2] - 4, area[3] - 4];
        studio.looks_like(image.number("data-frame")? as usize, &picture, inside)?;
    }
    let title = of(line, "text", "ink")[0];
    let (x, y) = (title.number("x")? as usize, title.number("y")? as usize);
    let is_dark = |x: usize, y: usize| picture.at(x, y).iter().all(|&value| value < 100);
    let drawn = (y - 14..y).flat_map(|y| (x..x + 60).map(move |x| (x, y))).filter(|&(x, y)| is_dark(x, y)).count();
    ensure!(drawn > 60, "the question has {drawn} dark pixels");
    Ok(())
}

/// Checks that a contact sheet has three tiles for each range: its first, its middle and its last frame.
fn contact_sheet(studio: &Studio, name: &str, ranges: &[[f64; 2]]) -> anyhow::Result<()> {
    let sheet = Pixels::of(&format!("-i {}", studio.file(name).display()), studio.rig.dir.path())?;
    let tiles = sheet.tiles();
    ensure!(tiles.len() == ranges.len(), "{name}: {tiles:?}");
    let [width, height] = studio.truth.size.map(|side| side as f64);
    let shape = width / height;
    for (tiles, range) in tiles.iter().zip(ranges) {
        let [start, end] = range.map(|s| (s * f64::from(RATE)).round() as usize);
        let due = [start, start + (end - 1 - start) / 2, end - 1];
        ensure!(tiles.len() == due.len(), "{name}: {tiles:?}");
        for (&[x, y, width, height], frame) in tiles.iter().zip(due) {
            ensure!((width as f64 / height as f64 - shape).abs() < 0.05, "{width} x {height}");
            studio.looks_like(frame, &sheet, [x + 2, y + 2, width - 4, height - 4])?;
        }
    }
    Ok(())
}

/// Checks the pictures of an answer without ranges, to a question that is hostile.
fn without_ranges(studio: &Studio) -> anyhow::Result<()> {
    let args = ["--task", "qa", "--max-new-tokens", "2", "--timeline", "@none.svg", "--contact-sheet", "@none.jpg"];
    let output = studio.ask(HOSTILE, &args, 0)?;
    ensure!(
        said(&output).contains("the answer has no ranges") && said(&output).contains("0 of 0"),
        "{}",
        said(&output)
    );
    let line = elements(&studio.file("none.svg"))?;
    let clean = HOSTILE.replace('\u{1b}', " ").split_whitespace().collect::<Vec<_>>().join(" ");
    ensure!(line[0].hint == clean && of(&line, "text", "ink")[0].text == clean, "{}", line[0].hint);
    ensure!(of(&line, "rect", "bar").is_empty() && line.iter().any(|e| e.text == "The answer has no ranges."));
    let sheet = Pixels::of(&format!("-i {}", studio.file("none.jpg").display()), studio.rig.dir.path())?;
    ensure!(sheet.tiles().is_empty() && sheet.height < 200, "{:?}", sheet.tiles());
    Ok(())
}

/// Checks that what cannot be written keeps neither the answer nor other files back, and that sound has no contact sheet.
fn troubles(studio: &Studio, query: &str) -> anyhow::Result<()> {
    std::os::unix::fs::symlink("/dev/full", studio.file("full.svg"))?;
    let args = ["--timeline", "@full.svg", "--export", "@left.csv", "--contact-sheet", "@left.jpg"];
    let output = studio.ask(query, &args, 1)?;
    ensure!(said(&output).contains("full.svg: No space left") && !output.stdout.is_empty(), "{}", said(&output));
    ensure!(studio.file("left.csv").is_file() && studio.file("left.jpg").is_file(), "{}", said(&output));

    let sound = studio.rig.media().join("sound.m4a");
    ffmpeg("-f lavfi -i sine=duration=3", &sound)?;
    let (sound, sheet) =
        (sound.to_string_lossy().into_owned(), studio.file("sound.jpg").to_string_lossy().into_owned());
    let output = studio.rig.run(&["ask", &sound, "a beep", "--contact-sheet", &sheet])?;
    let refused =
        output.status.code() == Some(2) && output.stdout.is_empty() && said(&output).contains("sound.m4a has none");
    ensure!(refused, "{}: {}", output.status, said(&output));
    Ok(())
}

/// Checks the traces of the two jobs that were asked: the first with all stages, the second of a video that was known.
fn traces(studio: &Studio) -> anyhow::Result<()> {
    let trace = |args: &[&str]| studio.rig.run(&[&["trace"], args].concat());
    let rows = rows(&trace(&["drawn"])?)?;
    let names: Vec<&str> = rows.iter().map(|(name, ..)| name.as_str()).collect();
    ensure!(names == ["queue", "probe", "decode", "vision", "audio", "fuse", "llm", "answer", "total"], "{rows:?}");
    let total_s = rows[8].2;
    ensure!(rows.iter().all(|(_, from, to)| 0.0 <= *from && from <= to && *to <= total_s), "{rows:?}");
    // The owner takes the job behind the queue; nothing is decoded before the plan, and nothing encoded before that.
    let [queue, probe, decode, vision, fuse, llm, answer] = [0, 1, 2, 3, 5, 6, 7].map(|at| &rows[at]);
    ensure!(queue.2 == llm.1 && probe.1 == llm.1 && answer.2 == llm.2, "{rows:?}");
    let starts = [probe.2, decode.1, vision.1, fuse.1, answer.1];
    ensure!(starts.windows(2).all(|pair| pair[0] <= pair[1] + LATE_S), "{rows:?}");

    let file = studio.file("trace.svg").to_string_lossy().into_owned();
    let output = trace(&["drawn", "--svg", &file])?;
    ensure!(output.status.success() && output.stdout.is_empty(), "{}", said(&output));
    let gantt = elements(Path::new(&file))?;
    ensure!(gantt.iter().any(|e| e.tag == "text" && e.text == format!("total {total_s:.3} s")), "{gantt:?}");
    let axis = Axis::of(&gantt)?;
    for (name, from, to) in &rows[..8] {
        let is_it = |e: &&Element| e.tag == "rect" && e.hint.starts_with(&format!("{name}: "));
        let bar = gantt.iter().find(is_it).with_context(|| format!("no bar of {name}"))?;
        let [x, _, width, _] = bar.area()?;
        let right = axis.x(*to).max(x + 1.5);
        ensure!((x - axis.x(*from)).abs() < 1.0 && (x + width - right).abs() < 1.0, "{bar:?}: {from} {to}");
    }

    let known = String::from_utf8(trace(&["again"])?.stdout)?;
    ensure!(known.contains("the video was known") && !known.contains("vision"), "{known}");
    let gone = trace(&["never"])?;
    ensure!(gone.status.code() == Some(1) && said(&gone).contains("no events of never"), "{}", said(&gone));
    Ok(())
}

/// Names, starts and ends of a trace's parts, and of the whole.
fn rows(output: &Output) -> anyhow::Result<Vec<(String, f64, f64)>> {
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let (_, total) = lines.next().and_then(|line| line.split_once("total ")).with_context(|| said(output))?;
    let mut rows = Vec::new();
    for line in lines.skip(1).filter(|line| line.ends_with('|')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        rows.push((words[0].to_owned(), words[1].parse()?, words[2].parse()?));
    }
    rows.push(("total".to_owned(), 0.0, total.trim_end_matches(" s").parse()?));
    Ok(rows)
}
