//! Tests of `vidi bench`: the figures describe what was run.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, ensure};
use tests::harness::{checkpoint, root, vidi};
use tests::media::video;

fn bench(dir: &Path, args: &[&str]) -> anyhow::Result<Output> {
    Ok(Command::new(vidi()?)
        .env("VIDI_STATE", dir.join("state"))
        .arg("bench")
        .arg("--model")
        .arg(checkpoint("tied"))
        .arg("--json")
        .arg(dir.join("figures.json"))
        .arg("--plot")
        .arg(dir.join("figures.svg"))
        .args(args)
        .stdin(Stdio::null())
        .output()?)
}

/// Rows of a measurement, after a check of its plot.
fn rows(dir: &Path, output: &Output) -> anyhow::Result<Vec<serde_json::Value>> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("figures.json"))?)?;
    let rows = figures["rows"].as_array().context("no rows")?.clone();
    let picture = std::fs::read_to_string(dir.join("figures.svg"))?;
    ensure!(picture.matches("<circle").count() == rows.len(), "{picture}");
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        table.lines().filter(|l| l.trim_start().starts_with(|c: char| c.is_ascii_digit())).count() == rows.len(),
        "{table}"
    );
    Ok(rows)
}

fn number(row: &serde_json::Value, key: &str) -> anyhow::Result<f64> {
    row[key].as_f64().filter(|v| v.is_finite() && *v >= 0.0).with_context(|| format!("no {key} in {row}"))
}

/// Checks the busy shares of processes; a share above 1 is rounding of the time measured from outside.
fn busy(shares: &serde_json::Value, processes: usize) -> anyhow::Result<()> {
    let shares: Vec<f64> = serde_json::from_value(shares.clone())?;
    ensure!(shares.len() == processes && shares.iter().all(|s| (0.0..1.2).contains(s)), "{shares:?}");
    ensure!(shares.iter().sum::<f64>() > 0.0, "no process was busy");
    Ok(())
}

#[test]
fn a_stage_works_off_what_was_recorded_over_and_over() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let recording = root().join("tests/golden/recordings/v1-clip.vidirec");
    let recording = recording.to_str().context("a path that is no text")?;
    for stage in ["vision", "audio", "fuse"] {
        let args = ["--stage", stage, "--from", recording, "--messages", "10", "--replicas", "1,2"];
        let rows = rows(dir.path(), &bench(dir.path(), &args)?)?;
        ensure!(rows.len() == 2);
        for (row, replicas) in rows.iter().zip([1, 2]) {
            ensure!(row["replicas"] == replicas && row["messages"] == 10, "{row}");
            let (seconds, rate) = (number(row, "seconds")?, number(row, "messages_per_s")?);
            ensure!((seconds * rate - 10.0).abs() < 1e-6, "{row}");
            ensure!(number(row, "p50_ms")? <= number(row, "p99_ms")? && number(row, "p99_ms")? <= seconds * 1e3 + 50.0);
            ensure!(number(row, "bytes_per_s")? * seconds > 10.0 * 1000.0, "{row}");
            busy(&row["busy"], replicas)?;
        }
    }
    let nothing = bench(dir.path(), &["--stage", "vision", "--from", "/nowhere.vidirec"])?;
    ensure!(!nothing.status.success() && String::from_utf8_lossy(&nothing.stderr).contains("/nowhere.vidirec"));
    let decode = bench(dir.path(), &["--stage", "llm", "--messages", "1", "--replicas", "1"])?;
    ensure!(String::from_utf8_lossy(&decode.stderr).contains("--pipeline"), "{decode:?}");
    Ok(())
}

#[test]
fn whole_jobs_are_counted_with_their_frames_and_tokens_some_at_a_time() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let clip = dir.path().join("clip.mp4");
    video(&clip, 4)?;
    let clip = clip.to_str().context("a path that is no text")?;
    let much = ["--pipeline", clip, "--jobs", "3", "--concurrent", "1,3", "--max-new-tokens", "6"];
    let where_to = ["--place", "vision=cpu,cpu,audio=cpu", "--replicas", "fuse=2"];
    let args = [&much[..], &where_to].concat();
    let rows = rows(dir.path(), &bench(dir.path(), &args)?)?;
    ensure!(rows.len() == 2);
    for (row, concurrent) in rows.iter().zip([1, 3]) {
        ensure!(row["concurrent"] == concurrent && row["jobs"] == 3, "{row}");
        ensure!(row["cached"] == 0, "only whole jobs count: {row}");
        let seconds = number(row, "seconds")?;
        ensure!((number(row, "frames_per_s")? * seconds - 3.0 * 4.0).abs() < 1e-6, "{row}");
        ensure!(number(row, "media_tokens_per_s")? * seconds >= 3.0 * 4.0 * 196.0 - 1e-6, "{row}");
        let told = number(row, "answer_tokens_per_s")? * seconds;
        ensure!((3.0 - 1e-6..=18.0 + 1e-6).contains(&told), "{row}");
        ensure!(
            number(row, "p50_ms")? <= number(row, "p99_ms")? && number(row, "p99_ms")? <= seconds * 1e3 + 1.0,
            "{row}"
        );
        for (stage, processes) in [("decode", 1), ("vision", 2), ("audio", 1), ("fuse", 2), ("llm", 1)] {
            busy(&row["busy"][stage], processes)?;
        }
    }
    Ok(())
}

#[test]
fn jobs_on_a_kept_video_are_told_from_whole_ones() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let clip = dir.path().join("clip.mp4");
    video(&clip, 4)?;
    let clip = clip.to_str().context("a path that is no text")?;
    let args = ["--pipeline", clip, "--jobs", "2", "--concurrent", "1", "--max-new-tokens", "6", "--keep-video"];
    let rows = rows(dir.path(), &bench(dir.path(), &args)?)?;
    // The video is kept from the warm-up job.
    ensure!(rows.len() == 1 && rows[0]["cached"] == 2, "{rows:?}");
    Ok(())
}
