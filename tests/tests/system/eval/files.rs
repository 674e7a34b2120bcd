//! Made-up files: what is refused and how, what is written, what two files of answers differ in.

use std::path::PathBuf;
use std::process::Output;

use anyhow::{Context, ensure};
use runtime::process::Exit;
use serde_json::Value;

use super::{run, said, shown};

/// Queries whose truths are nothing, one range and two.
const TRUTH: &str = r#"[
    {"query_id": 0, "video_id": "a", "duration": 30.0, "query": "nothing", "gt": [[]], "duration_category": "ultra-short"},
    {"query_id": 1, "video_id": "a", "duration": 30.0, "query": "once", "gt": [[10, 20]], "duration_category": "ultra-short"},
    {"id": 2, "video_id": "b", "duration": 90.0, "query": "twice", "gt": [[0, 10], [20, 30.1]], "duration_category": "short"}
]"#;
/// Answers to these that are right.
const RIGHT: &str = r#"{"query_id": 0, "answer": []}
{"query_id": 1, "answer": [[15, 20], [10, 15]]}
{"query_id": 2, "answer": [[0.5, 9.5], [20, 30.1]]}
"#;
/// Answers to these that are not, but for the last one, which is nearer: it is no whole second longer than the truth.
const WRONG: &str =
    r#"[{"id": 0, "answer": [[1, 2]]}, {"id": 1, "answer": [[20, 10]]}, {"id": 2, "answer": [[0, 10], [20, 30]]}]"#;

/// A directory of files.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> anyhow::Result<Self> {
        let files = Files(tempfile::tempdir()?);
        for (name, text) in [("truth", TRUTH), ("right", RIGHT), ("wrong", WRONG)] {
            files.write(name, text)?;
        }
        Ok(files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(self.path(name), text)?)
    }

    /// `vidi eval` with names of files in the place of words that begin with `@`.
    fn eval(&self, args: &str) -> anyhow::Result<Output> {
        let word =
            |word: &str| word.strip_prefix('@').map_or(word.to_owned(), |name| self.path(name).display().to_string());
        let words: Vec<String> = std::iter::once("eval").chain(args.split_whitespace()).map(word).collect();
        run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn json(&self, name: &str) -> anyhow::Result<Value> {
        let path = self.path(name);
        serde_json::from_slice(&std::fs::read(&path)?).with_context(|| path.display().to_string())
    }
}

fn refused(output: &Output, says: &[&str]) -> anyhow::Result<()> {
    ensure!(output.status.code() == Some(Exit::Usage as i32), "{}: {}", output.status, said(output));
    for says in says {
        ensure!(said(output).contains(says), "not {says:?}: {}", said(output));
    }
    ensure!(output.stdout.is_empty(), "a table in spite of that: {}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

#[test]
fn right_answers_score_everything_and_are_drawn() -> anyhow::Result<()> {
    let files = Files::new()?;
    let output = files.eval("score --truth @truth --pred @right --json @scores --plot @plot.svg")?;
    let table = shown(&output)?;
    let all = table.lines().find(|line| line.starts_with("all")).context("no totals")?;
    let cells: Vec<&str> = all.split_whitespace().collect();
    ensure!(cells[..2] == ["all", "3"] && cells[3] == "100.00", "{table}");
    ensure!(table.contains("duration_category\n  ultra-short"), "{table}");
    ensure!(table.contains("recall is over 2 of 3 queries"), "{table}");
    let scores = files.json("scores")?;
    ensure!(
        scores["queries"][0]["scores"] == serde_json::json!({ "precision": 1.0, "recall": null, "IoU": 1.0 }),
        "{scores}"
    );
    ensure!(
        scores["curves"]["IoU"].as_array().is_some_and(|curve| curve.len() == 101 && curve[100] == 0.0),
        "{scores}"
    );
    ensure!(scores["curves"]["recall"][100] == 1.0 && scores["thresholds"][100] == 1.0, "{scores}");
    let picture = std::fs::read_to_string(files.path("plot.svg"))?;
    ensure!(picture.starts_with("<svg") && picture.matches("<polyline").count() == 3, "{picture}");
    ensure!(picture.contains(">recall 100.00</text>"), "{picture}");
    Ok(())
}

#[test]
fn answers_that_are_missing_unknown_or_double_are_named() -> anyhow::Result<()> {
    let files = Files::new()?;
    files.write(
        "odd",
        "{\"query_id\": 1, \"answer\": [[10, 20]]}\n{\"query_id\": 77, \"answer\": []}\n{\"query_id\": 2}\n",
    )?;
    let output = files.eval("score --truth @truth --pred @odd")?;
    refused(
        &output,
        &["2 queries of the truth have no answer in it: 0, 2", "1 answers are to queries", ": 77", "--partial"],
    )?;
    let table = shown(&files.eval("score --truth @truth --pred @odd --partial")?)?;
    ensure!(table.contains("2 of 3 queries have no answer: 0, 2") && table.contains("unknown queries: 77"), "{table}");
    ensure!(table.contains("1 lines have no answer: asking failed"), "{table}");
    ensure!(table.lines().any(|line| line.split_whitespace().take(2).eq(["all", "1"])), "{table}");

    files.write("double", &RIGHT.replace("\"query_id\": 2", "\"query_id\": \"1\""))?;
    refused(&files.eval("score --truth @truth --pred @double --partial")?, &["1 queries more than once: 1"])?;
    files.write("twice", &TRUTH.replace("\"id\": 2", "\"id\": 0"))?;
    refused(&files.eval("score --truth @twice --pred @right")?, &["twice", "1 queries more than once: 0"])
}

#[test]
fn files_and_options_that_cannot_be_used_are_refused_with_what_to_do() -> anyhow::Result<()> {
    let files = Files::new()?;
    refused(&files.eval("score --truth @gone --pred @right")?, &["cannot read", "gone"])?;
    files.write("cut", "[{\"query_id\": 0,\n \"answer\"")?;
    refused(&files.eval("score --truth @truth --pred @cut")?, &["cannot use", "cut", "line 2"])?;
    std::fs::write(files.path("packed"), [0x1f, 0x8b, 8, 0, 0])?;
    refused(&files.eval("score --truth @packed --pred @right")?, &["gzip -d"])?;
    files.write("empty", "[]")?;
    refused(&files.eval("score --truth @empty --pred @empty")?, &["no query of VUE-TR-V2", "--suite"])?;
    refused(&files.eval("score --truth @truth --pred @right --lengths @empty")?, &["--suite stg"])?;
    refused(&files.eval("score --truth @truth --pred @right --suite best")?, &["tr-v2", "stg", "plot"])?;
    files.write("boxes", "query_id,time_ms,x0,y0,x1,y1\na,1000,0,0,1,1\n")?;
    refused(&files.eval("score --truth @boxes --pred @boxes --suite stg --plot @plot.svg")?, &["--plot", "VUE-STG"])?;
    ensure!(!files.path("plot.svg").exists());
    let output = files.eval("score --truth @truth --pred @right --json @no/such/place")?;
    ensure!(
        output.status.code() == Some(Exit::Other as i32) && said(&output).contains("cannot write"),
        "{}",
        said(&output)
    );
    Ok(())
}

#[test]
fn the_versions_differ_in_what_an_empty_answer_is_worth_and_in_decimals() -> anyhow::Result<()> {
    let files = Files::new()?;
    for (suite, precision, over) in [("tr", serde_json::json!(null), 2), ("tr-v2", serde_json::json!(1.0), 3)] {
        let table = shown(&files.eval(&format!("score --truth @truth --pred @right --suite {suite} --json @scores"))?)?;
        let scores = files.json("scores")?;
        ensure!(scores["suite"] == suite && scores["queries"][0]["scores"]["precision"] == precision, "{scores}");
        ensure!(scores["totals"][0]["over"]["precision"] == over, "{scores}");
        let name = if suite == "tr" { "VUE-TR " } else { "VUE-TR-V2 " };
        ensure!(table.starts_with(name) && table.contains(if suite == "tr" { " 100.0" } else { " 100.00" }), "{table}");
    }
    Ok(())
}

#[test]
fn boxes_and_letters_are_scored_from_small_files_too() -> anyhow::Result<()> {
    let files = Files::new()?;
    files.write(
        "truth.csv",
        "query_id,time_ms,time_normalized,x0,y0,x1,y1\na,1000,0.1,0,0,1,1\na,2000,0.2,0,0,1,1\nb,1000,0.1,0,0,1,1\n",
    )?;
    files.write("boxes.csv", "query_id,time_ms,x0,y0,x1,y1\na,1499,1,1,0.5,0\na,1000,0,0,1,1\na,3000,0,0,0,1\n")?;
    let table = shown(&files.eval("score --suite stg --truth @truth.csv --pred @boxes.csv --json @scores")?)?;
    let scores = files.json("scores")?;
    let scores = &scores["totals"][0]["scores"];
    let want = [
        ("t_P", 1.0),
        ("t_R", 0.25),
        ("t_IoU", 0.25),
        ("v_P", 0.5),
        ("v_R", 0.125),
        ("v_IoU", 0.125),
        ("v_IoU_Int", 0.5),
    ];
    for (name, want) in want {
        ensure!(scores[name].as_f64().is_some_and(|got| (got - want).abs() < 1e-9), "{name} is not {want}: {scores}");
    }
    ensure!(table.contains("1 of 2 queries are answered with no box"), "{table}");

    files.write(
        "letters",
        r#"[{"problem_id": 1, "answer": "A", "pred_answer": "a ", "task_type": "x"},
                              {"problem_id": 2, "answer": "B", "pred_answer": "C", "task_type": "y"}]"#,
    )?;
    let table = shown(&files.eval("score --suite plot --truth @letters --pred @letters")?)?;
    ensure!(table.lines().any(|line| line.split_whitespace().eq(["all", "2", "50.00"])), "{table}");
    Ok(())
}

#[test]
fn two_files_are_compared_by_group_and_by_query() -> anyhow::Result<()> {
    let files = Files::new()?;
    let table = shown(&files.eval("compare --truth @truth @wrong @right")?)?;
    ensure!(table.contains("IoU: 2 better, 1 worse, 0 the same"), "{table}");
    let lines: Vec<&str> =
        table.lines().filter(|line| line.starts_with("better") || line.starts_with("worse")).collect();
    let [nothing, once, twice] = lines[..] else { anyhow::bail!("{table}") };
    ensure!(nothing.contains("0.00 -> 100.00  0  a: nothing"), "{table}");
    ensure!(once.contains("0.00 -> 100.00  1  a: once"), "{table}");
    ensure!(twice.starts_with("worse") && twice.ends_with("2  b: twice"), "{table}");
    // The same the other way round, and only the first of each.
    let table = shown(&files.eval("compare --truth @truth @right @wrong --top 1")?)?;
    ensure!(table.contains("IoU: 1 better, 2 worse, 0 the same"), "{table}");
    ensure!(table.lines().filter(|line| line.starts_with("worse")).count() == 1, "{table}");
    Ok(())
}
