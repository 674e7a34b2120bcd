//! The published figures from the published answers, to the last of their two decimals. Those answers are data of others, and no
//! part of the project: without them these tests say so and check nothing.

use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use serde_json::Value;
use tests::harness::root;

use super::{run, shown};

/// The published files, unpacked.
struct Published(tempfile::TempDir);

impl Published {
    /// None where they are not at hand.
    fn new() -> anyhow::Result<Option<Self>> {
        let data = std::env::var_os("VUE_DATA").map_or_else(|| root().join(".vidi/vue"), PathBuf::from);
        if !data.is_dir() {
            println!("skipped: no published answers in {} (VUE_DATA names another place)", data.display());
            return Ok(None);
        }
        let dir = tempfile::tempdir()?;
        for entry in std::fs::read_dir(data)? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".gz")) else { continue };
            let unpacked = Command::new("gzip").arg("-dc").arg(&path).output()?;
            ensure!(unpacked.status.success(), "gzip -dc {}: {}", path.display(), unpacked.status);
            std::fs::write(dir.path().join(name), unpacked.stdout)?;
        }
        Ok(Some(Published(dir)))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    /// `vidi eval score` of a file, and what it writes.
    fn score(&self, suite: &str, truth: &str, answers: &str, more: &[&str]) -> anyhow::Result<(Output, Value)> {
        let json = self.path("scores.out");
        let (truth, answers) = (self.path(truth), self.path(answers));
        let args = ["eval", "score", "--suite", suite, "--truth", &truth, "--pred", &answers, "--json", &json];
        let output = run(&[&args[..], more].concat())?;
        shown(&output)?;
        Ok((output, serde_json::from_slice(&std::fs::read(&json)?)?))
    }
}

/// The totals of a group, or of all queries.
fn totals<'a>(scores: &'a Value, group: &str) -> anyhow::Result<&'a Value> {
    let all = scores["totals"].as_array().context("no totals")?;
    all.iter().find(|totals| totals["group"] == group).with_context(|| format!("no group {group}"))
}

/// Checks figures in percent, which have two decimals.
fn check(scores: &Value, group: &str, queries: u64, figures: &[(&str, f64)]) -> anyhow::Result<()> {
    let totals = totals(scores, group)?;
    ensure!(totals["queries"] == queries, "{group}: {totals}");
    for (name, want) in figures {
        let got = totals["scores"][name].as_f64().with_context(|| format!("{group}: no {name}: {totals}"))?;
        ensure!(
            format!("{:.2}", 100.0 * got) == format!("{want:.2}"),
            "{group}, {name}: {} and not {want}",
            100.0 * got
        );
    }
    Ok(())
}

fn retrieval([precision, recall, iou]: [f64; 3]) -> [(&'static str, f64); 3] {
    [("precision", precision), ("recall", recall), ("IoU", iou)]
}

#[test]
fn temporal_retrieval_is_scored_as_its_authors_score_it() -> anyhow::Result<()> {
    let Some(published) = Published::new()? else { return Ok(()) };
    let v2 = "VUE-TRv2_ground_truth.json";
    for (answers, figures, over) in [
        ("results_Vidi2.5.json", [59.78, 71.09, 49.62], 1600),
        ("results_GPT-5.json", [29.64, 26.63, 17.15], 1480),
        ("results_Vidi2.json", [62.45, 64.93, 48.75], 1600),
    ] {
        let (output, scores) = published.score("tr-v2", v2, answers, &[])?;
        check(&scores, "all", 1600, &retrieval(figures)).context(answers)?;
        ensure!(totals(&scores, "all")?["over"]["precision"] == over, "{answers}: {}", totals(&scores, "all")?);
        let said = shown(&output)?.contains("precision is over 1480 of 1600 queries");
        ensure!(said == (over == 1480), "{answers}: {}", shown(&output)?);
    }
    let (output, scores) = published.score("tr-v2", v2, "results_Vidi2.json", &[])?;
    for (group, queries, figures) in [
        ("ultra-short", 134, [69.76, 82.48, 59.09]),
        ("short", 390, [65.38, 66.05, 49.01]),
        ("medium", 430, [63.42, 67.91, 51.05]),
        ("long", 426, [60.54, 62.56, 48.15]),
        ("ultra-long", 220, [54.55, 50.98, 38.65]),
        ("keyword", 431, [63.21, 63.72, 47.73]),
        ("phrase", 574, [63.80, 67.06, 50.11]),
        ("sentence", 595, [60.59, 63.75, 48.17]),
        ("vision", 727, [63.12, 66.94, 51.04]),
        ("audio", 287, [57.51, 67.09, 46.90]),
        ("vision+audio", 586, [64.03, 61.38, 46.81]),
    ] {
        check(&scores, group, queries, &retrieval(figures))?;
    }
    // The groups in the table, in their order.
    let table = shown(&output)?;
    let places = ["ultra-short", "short ", "medium", "long ", "ultra-long", "keyword"]
        .map(|name| table.find(&format!("  {name}")));
    ensure!(places.is_sorted() && places[0].is_some(), "{table}");

    let v1 = published.score("tr", "VUE-TR_ground_truth.json", "results_Vidi.json", &[])?;
    check(&v1.1, "all", 1598, &retrieval([48.96, 52.51, 35.43]))?;
    ensure!(shown(&v1.0)?.lines().any(|line| line.starts_with("all ") && line.ends_with("35.4")), "{}", shown(&v1.0)?);
    Ok(())
}

#[test]
fn answers_to_another_version_are_refused_by_name() -> anyhow::Result<()> {
    let Some(published) = Published::new()? else { return Ok(()) };
    let (truth, answers) = (published.path("VUE-TRv2_ground_truth.json"), published.path("results_Vidi.json"));
    let output = run(&["eval", "score", "--truth", &truth, "--pred", &answers])?;
    ensure!(output.status.code() == Some(2), "{}", output.status);
    ensure!(
        super::said(&output).contains("2 queries of the truth have no answer in it: 1598, 1599"),
        "{}",
        super::said(&output)
    );
    Ok(())
}

#[test]
fn spatio_temporal_grounding_is_scored_as_its_authors_score_it() -> anyhow::Result<()> {
    let Some(published) = Published::new()? else { return Ok(()) };
    let (queries, lengths) = (published.path("stg_truth_query.csv"), published.path("stg_truth_video.csv"));
    let tables = ["--queries", &queries, "--lengths", &lengths];
    for (answers, figures) in [
        ("stg_vidi2_tubes.csv", [73.00, 59.80, 53.19, 44.56, 36.32, 32.57, 60.30]),
        ("stg_gpt-5_tubes.csv", [38.29, 19.53, 16.40, 13.01, 6.50, 5.47, 33.64]),
    ] {
        let names = ["t_P", "t_R", "t_IoU", "v_P", "v_R", "v_IoU", "v_IoU_Int"];
        let figures: Vec<(&str, f64)> = names.into_iter().zip(figures).collect();
        for more in [&tables[..], &[]] {
            let (_, scores) = published.score("stg", "stg_truth_tubes.csv", answers, more)?;
            check(&scores, "all", 1600, &figures).context(answers)?;
            let groups = scores["totals"].as_array().context("no totals")?.len();
            ensure!(groups == if more.is_empty() { 7 } else { 10 }, "{groups} groups: {}", scores["totals"]);
        }
    }
    Ok(())
}

#[test]
fn multiple_choice_is_scored_as_its_authors_score_it() -> anyhow::Result<()> {
    let Some(published) = Published::new()? else { return Ok(()) };
    let file = "plot_reasoning_vidi2.5_think.json";
    let (_, scores) = published.score("plot", file, file, &[])?;
    for (group, right, queries) in [
        ("all", 781_u32, 1214_u32),
        ("Speech, Audio, and Sound Effect Reasoning", 195, 262),
        ("Social Cognition and Knowledge Integration", 199, 317),
        ("Perception and Understanding", 159, 240),
        ("Narrative and Structural Understanding", 128, 232),
        ("Professional Filming and Editing Techniques", 100, 163),
    ] {
        let accuracy = totals(&scores, group)?["scores"]["accuracy"].as_f64().context("no accuracy")?;
        ensure!(
            (accuracy * f64::from(queries) - f64::from(right)).abs() < 1e-9,
            "{group}: {accuracy}, {right} are right"
        );
        check(&scores, group, queries.into(), &[])?;
    }
    check(&scores, "all", 1214, &[("accuracy", 64.33)])
}
