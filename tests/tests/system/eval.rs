//! Tests of `vidi eval`: the published figures of VUE-TR, VUE-TR-V2, VUE-STG and VUE-PLOT from the published answers, where
//! these are at hand; what it refuses and what it writes; and a benchmark of made videos, asked of the real pipeline, scored.
//!
//! In reading order: `published` (figures), `files` (made-up files), this file (asking).

#![allow(clippy::print_stdout, reason = "a test: it says why it was skipped")]

mod files;
mod published;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use demo_video::truth::Answer;
use runtime::process::Exit;
use serde_json::{Value, json};
use tests::harness::{Rig, Setup, signal, vidi};

/// An answer is written within this time.
const SOON: Duration = Duration::from_secs(120);

/// Runs a `vidi` command that needs no pipeline.
fn run(args: &[&str]) -> anyhow::Result<Output> {
    let state = tempfile::tempdir()?;
    Ok(Command::new(vidi()?).env("VIDI_STATE", state.path()).args(args).stdin(Stdio::null()).output()?)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn shown(output: &Output) -> anyhow::Result<String> {
    ensure!(output.status.success(), "{}: {}", output.status, said(output));
    Ok(String::from_utf8(output.stdout.clone())?)
}

/// Two made videos, one file that is no video, and queries about them and about a video that is not there.
struct Benchmark {
    rig: Rig,
    /// Queries about the made videos.
    askable: usize,
    truth: String,
    out: String,
    videos: String,
}

impl Benchmark {
    async fn new() -> anyhow::Result<Self> {
        let setup = Setup { model: Some("demo".into()), keep_video: true, ..Setup::default() };
        let rig = Rig::start(setup).await?;
        let mut queries = Vec::new();
        let mut query = |video: &str, words: &str, gt: Value| {
            queries.push(json!({
                "query_id": queries.len(), "video_id": video, "duration": 12.0, "query": words, "gt": gt,
                "task": "temporal_retrieval", "duration_category": "ultra-short",
            }));
        };
        let (_, first) = rig.demo_video(1, 12)?;
        let (_, second) = rig.demo_video(2, 12)?;
        let [mut first, mut second] = [("1", first), ("2", second)].map(|(video, truth)| {
            let asked = truth.questions.into_iter().filter_map(move |question| match question.answer {
                Answer::Ranges(ranges) => Some((video, question.query, json!(ranges))),
                Answer::Text(_) => None,
            });
            asked.collect::<Vec<_>>().into_iter()
        });
        // The videos by turns: they are asked one after the other all the same.
        let mut askable = 0;
        while first.len() + second.len() > 0 {
            for (video, words, gt) in [first.next(), second.next()].into_iter().flatten() {
                query(video, &words, gt);
                askable += 1;
            }
        }
        query("broken", "a circle", json!([[1.0, 2.0]]));
        query("not-here", "a circle", json!([[]]));
        std::fs::write(rig.media().join("broken.mp4"), "this is no video")?;
        let file = |name: &str| rig.dir.path().join(name).to_string_lossy().into_owned();
        let (truth, out, videos) = (file("truth.json"), file("answers.jsonl"), file("media"));
        std::fs::write(&truth, serde_json::to_string_pretty(&queries)?)?;
        Ok(Benchmark { rig, askable, truth, out, videos })
    }

    fn args(&self) -> [&str; 10] {
        let (truth, videos, out) = (self.truth.as_str(), self.videos.as_str(), self.out.as_str());
        ["eval", "run", "--truth", truth, "--videos", videos, "--out", out, "--max-new-tokens", "24"]
    }

    fn run(&self) -> anyhow::Result<Output> {
        self.rig.run(&self.args())
    }

    fn start(&self) -> anyhow::Result<Child> {
        let url = format!("bus.url={}", self.rig.broker.url());
        let mut command = Command::new(vidi()?);
        command.args(["--set", &url]).args(self.args());
        Ok(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    /// The lines that are written so far.
    fn lines(&self) -> anyhow::Result<Vec<Value>> {
        let text = std::fs::read_to_string(&self.out).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// Starts a run and sends it a signal once the file has `least` lines.
    async fn ended_by(&self, name: &str, least: usize) -> anyhow::Result<Output> {
        let running = self.start()?;
        let until = Instant::now() + SOON;
        while std::fs::read_to_string(&self.out).unwrap_or_default().lines().count() < least {
            ensure!(Instant::now() < until, "no {least} answers after {SOON:?}: {}", self.rig.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        signal(running.id(), name)?;
        Ok(running.wait_with_output()?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_benchmark_is_asked_video_by_video_and_goes_on_after_it_was_interrupted() -> anyhow::Result<()> {
    let benchmark = Benchmark::new().await?;
    ensure!(benchmark.askable >= 8, "only {} queries", benchmark.askable);

    let output = benchmark.ended_by("INT", 2).await?;
    let text = said(&output);
    ensure!(output.status.code() == Some(Exit::Cancelled as i32), "{}: {text}", output.status);
    ensure!(text.contains("the same command goes on"), "{text}");
    ensure!(text.contains("1 videos (1 queries) are not in") && text.contains("not-here"), "{text}");
    // How far it is, and how long the rest will take.
    let first = format!("1/{}: 00:0", benchmark.askable + 1);
    ensure!(text.lines().any(|line| line.starts_with(&first) && line.contains(" left, 1 \"")), "{text}");
    let mut starts = vec![0, benchmark.lines()?.len()];
    ensure!((2..benchmark.askable - 2).contains(&starts[1]), "{} lines", starts[1]);

    let output = benchmark.ended_by("KILL", starts[1] + 2).await?;
    ensure!(output.status.code().is_none(), "ended before it was killed: {}", said(&output));
    let before = benchmark.lines()?;
    starts.push(before.len());
    ensure!(before.len() < benchmark.askable, "{} lines", before.len());
    check_refused(&benchmark)?;
    // It was killed within a line.
    OpenOptions::new().append(true).open(&benchmark.out)?.write_all(b"{\"query_id\":1,\"video_id\":\"1\",\"du")?;

    let output = benchmark.run()?;
    let text = said(&output);
    ensure!(output.status.code() == Some(Exit::JobFailed as i32), "{}: {text}", output.status);
    ensure!(text.contains("its last line was cut off"), "{text}");
    let left = benchmark.askable - before.len() + 1;
    ensure!(text.contains(&format!("{} answered before, {left} to ask", before.len())), "{text}");
    ensure!(text.contains("failed: unsupported_media: "), "{text}");
    let summary = String::from_utf8_lossy(&output.stdout).into_owned();
    let of = benchmark.askable + 2;
    let want = format!("{} of {of} queries are answered by demo-model (", benchmark.askable);
    ensure!(summary.contains(&want) && summary.contains("1 failed, 1 have no video"), "{summary}");

    let lines = benchmark.lines()?;
    ensure!(lines[..before.len()] == before[..], "what was answered is another answer now");
    ensure!(lines.len() == benchmark.askable + 1, "{} lines", lines.len());
    check_lines(&lines, &starts)?;
    check_scores(&benchmark)?;

    // Whatever failed is asked again, and nothing else.
    let again = benchmark.run()?;
    ensure!(again.status.code() == Some(Exit::JobFailed as i32), "{}", said(&again));
    ensure!(benchmark.lines()?.len() == lines.len() + 1, "{:?}", benchmark.lines()?);
    Ok(())
}

/// Checks that what would be no run that goes on is refused before anything is asked, and the file stays as it is.
fn check_refused(benchmark: &Benchmark) -> anyhow::Result<()> {
    let before = std::fs::read(&benchmark.out)?;
    let args = benchmark.args();
    let other = |at: usize, value: &str| {
        let mut args = args;
        args[at] = value;
        benchmark.rig.run(&args)
    };
    let other_truth = Path::new(&benchmark.truth).with_extension("other");
    std::fs::write(
        &other_truth,
        std::fs::read_to_string(&benchmark.truth)?.replace("\"video_id\": \"1\"", "\"video_id\": \"7\""),
    )?;
    for (output, what) in [
        (other(9, "25")?, "line 1: asked with --fps 1 --max-new-tokens 24, and now it is --fps 1 --max-new-tokens 25"),
        (other(3, &other_truth.to_string_lossy())?, "line 1: the truth has no query 0"),
        (other(5, "no/such/directory")?, "cannot read no/such/directory"),
    ] {
        ensure!(output.status.code() == Some(Exit::Usage as i32), "{what}: {}: {}", output.status, said(&output));
        ensure!(said(&output).contains(what), "not {what:?}: {}", said(&output));
        ensure!(std::fs::read(&benchmark.out)? == before, "{what}: the file is another one");
    }
    Ok(())
}

/// Checks that each query has one line, with its answer or its error, and that each run decoded a video once at most. Runs begin
/// at the lines `starts`.
fn check_lines(lines: &[Value], starts: &[usize]) -> anyhow::Result<()> {
    let mut decoded: BTreeMap<(usize, String), usize> = BTreeMap::new();
    let mut ids: Vec<i64> = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        ids.push(line["query_id"].as_i64().with_context(|| line.to_string())?);
        let video = line["video_id"].as_str().context("no video")?.to_owned();
        ensure!(line["task"] == "temporal_retrieval" && line["duration"] == 12.0, "{line}");
        ensure!(line["fps"] == 1.0 && line["max_new_tokens"] == 24, "{line}");
        if video == "broken" {
            ensure!(line["answer"].is_null() && line["error"]["kind"] == "unsupported_media", "{line}");
            continue;
        }
        ensure!(line["answer"].is_array() && line["error"].is_null() && line["text"].is_string(), "{line}");
        ensure!(line["seconds"].as_f64().is_some_and(|s| s > 0.0) && line["model"]["name"] == "demo-model", "{line}");
        if line["cached"] == false {
            let run = starts.iter().filter(|&&start| start <= at).count();
            *decoded.entry((run, video)).or_default() += 1;
        }
    }
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() == lines.len(), "a query has two lines: {lines:?}");
    ensure!(decoded.values().all(|&times| times == 1), "videos were decoded again in one run: {decoded:?}");
    let order: Vec<&Value> = lines.iter().map(|line| &line["video_id"]).collect();
    let changes = order.windows(2).filter(|pair| pair[0] != pair[1]).count();
    ensure!(changes == 2, "the videos were asked by turns: {order:?}");
    Ok(())
}

/// Checks that the answers of the run are scored, and are as good as the demo model is.
fn check_scores(benchmark: &Benchmark) -> anyhow::Result<()> {
    let scores = |args: &[&str]| {
        run(&[&["eval", "score", "--truth", &benchmark.truth, "--pred", &benchmark.out][..], args].concat())
    };
    let refused = scores(&[])?;
    ensure!(refused.status.code() == Some(Exit::Usage as i32), "{}", said(&refused));
    ensure!(said(&refused).contains("2 queries of the truth have no answer in it"), "{}", said(&refused));

    let file = Path::new(&benchmark.out).with_extension("scores");
    let table = shown(&scores(&["--partial", "--json", &file.to_string_lossy()])?)?;
    ensure!(table.contains(&format!("2 of {} queries have no answer", benchmark.askable + 2)), "{table}");
    let scores: Value = serde_json::from_slice(&std::fs::read(file)?)?;
    let iou = scores["totals"][0]["scores"]["IoU"].as_f64().context("no IoU")?;
    // Answers are widened to whole seconds, and the truth is not: 0.85 where this was written.
    ensure!(iou > 0.8, "IoU {iou}: {table}");
    Ok(())
}
