//! Benchmark of every configuration of tests/BENCHMARKS.md, one after the other, as one table.

use std::path::{Path, PathBuf};

use runtime::process::ConfigArgs;

use super::bench::{Questions, Report, bench, gb};
use super::floor::Ceilings;

/// Settings of all configurations.
pub(super) const ALL: [&str; 4] =
    ["compute.device=cuda", "compute.dtype=bf16", "bus.message_bytes=7800000", "llm.end_tokens=[255999]"];
/// Settings for a GPU with memory to spare: large passes, large messages.
pub(super) const ROOMY: [&str; 3] = ["vision.batch=16", "decode.batch_frames=16", "llm.chunk_rows=8192"];
/// Setting of matmuls in E4M3.
const FP8: &str = "compute.media_products=fp8";
/// Settings for a GPU with a memory cap: small passes.
const CAPPED: [&str; 2] = ["vision.batch=8", "decode.batch_frames=8"];

/// Files of quantized weights; without one a stage quantizes them while it loads.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// File of `vidi quantize --to q8`.
    #[arg(long)]
    q8: Option<PathBuf>,
    /// File of `vidi quantize --to q4`.
    #[arg(long)]
    q4: Option<PathBuf>,
}

/// Measures every configuration, with the settings of the command line added, and prints them side by side.
///
/// # Errors
/// As [`bench`].
pub async fn run(
    arguments: &Arguments,
    config: &ConfigArgs,
    model: Option<&Path>,
    questions: &Questions,
    ceilings: Option<Ceilings>,
) -> anyhow::Result<Vec<(String, Report)>> {
    let mut reports = Vec::new();
    for (name, settings) in columns(arguments) {
        let set = settings.into_iter().chain(config.set.clone()).collect();
        let config = ConfigArgs { config: config.config.clone(), set, weights: config.weights };
        reports.push((name.to_owned(), bench(&config, model, &[], questions, ceilings).await?));
    }
    println!("{}", side_by_side(&reports, questions));
    Ok(reports)
}

fn columns(arguments: &Arguments) -> Vec<(&'static str, Vec<String>)> {
    let with = |parts: &[&[&str]]| ALL.iter().chain(parts.iter().copied().flatten()).map(ToString::to_string).collect();
    let blocks = |format: &str, file: &Option<PathBuf>, parts: &[&[&str]]| {
        let mut set: Vec<String> = with(parts);
        set.extend([format!("llm.weights={format}"), format!("llm.kv={format}")]);
        set.extend(file.iter().map(|file| format!("llm.quantized={}", file.display())));
        set
    };
    let under_22 = ["compute.card_bytes=22000000000", "llm.chunk_rows=512", "llm.max_prompt_tokens=512"];
    let under_19_6 = ["compute.card_bytes=19600000000", "llm.chunk_rows=1024", "llm.max_prompt_tokens=1024"];
    vec![
        ("bf16", with(&[&ROOMY])),
        ("fp8", with(&[&ROOMY, &[FP8]])),
        ("q8 + q8, 22 GB", blocks("q8", &arguments.q8, &[&CAPPED, &under_22])),
        ("q4 + q4, 19.6 GB", blocks("q4", &arguments.q4, &[&CAPPED, &under_19_6])),
        ("q4 + q4, 19.6 GB, fp8", blocks("q4", &arguments.q4, &[&CAPPED, &under_19_6, &[FP8]])),
    ]
}

/// Table of first token, milliseconds per token and peak of the last question of each duration, floors in brackets; that of a first
/// token at both rates of matmuls.
fn side_by_side(reports: &[(String, Report)], questions: &Questions) -> String {
    let mut lines = vec![
        "| video s | | first token s (floor; kept up) | ms per token (floor) | peak GB |".to_owned(),
        "| ---: | --- | --- | --- | ---: |".to_owned(),
    ];
    for &seconds in &questions.seconds {
        for (name, report) in reports {
            let Some(row) = report.rows.iter().rfind(|row| row.measured.seconds == seconds) else { continue };
            let m = &row.measured;
            let first = row.floors.map_or_else(String::new, |floors| {
                format!(" ({:.2}; {:.2})", floors.short.first_token_s, floors.kept_up.first_token_s)
            });
            let token = row.floors.map_or_else(String::new, |floors| format!(" ({:.1})", floors.short.ms_per_token));
            lines.push(match &m.error {
                Some(error) => format!("| {seconds} | {name} | {error} | | |"),
                None => format!(
                    "| {seconds} | {name} | {:.3}{first} | {:.2}{token} | {:.2} |",
                    m.first_token_s,
                    m.ms_per_token,
                    gb(m.peak_bytes),
                ),
            });
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::bench::Row;
    use crate::gpu::floor::{Floor, Floors};
    use crate::gpu::run::Measured;

    #[test]
    fn every_column_is_a_valid_configuration() {
        let arguments = Arguments { q8: Some("/tmp/q8".into()), q4: None };
        for (name, set) in columns(&arguments) {
            let config = ConfigArgs { config: None, set, weights: None }.load();
            let config = config.unwrap_or_else(|fatal| panic!("{name}: {}", fatal.1));
            assert_eq!(config.compute.media_products == config::MediaProducts::Fp8, name.contains("fp8"));
            assert_eq!(config.llm.quantized.is_some(), name.contains("q8"), "{name}");
        }
    }

    #[test]
    fn the_last_question_of_a_duration_counts_and_a_refusal_is_shown() {
        let measured = |first_token_s, error: Option<&str>| Measured {
            seconds: 300,
            tokens: 61_800,
            first_token_s,
            total_s: 3.0,
            ms_per_token: 9.97,
            peak_bytes: 46_000_000_000,
            cached: protocol::event::Cached::No,
            token_ids: Vec::new(),
            busy_s: Vec::new(),
            error: error.map(str::to_owned),
        };
        let floor = |first_token_s| Floor { first_token_s, ms_per_token: 9.31 };
        let floors = Some(Floors { short: floor(0.9), kept_up: floor(1.04) });
        let report = |rows: Vec<Measured>| Report {
            gpu: "a GPU".to_owned(),
            ceilings: None,
            settings: Vec::new(),
            idle_bytes: 0,
            ready_bytes: 0,
            rows: rows.into_iter().map(|measured| Row { measured, floors, paper: None }).collect(),
        };
        let reports = [
            ("fp8".to_owned(), report(vec![measured(2.0, None), measured(1.574, None)])),
            ("q8".to_owned(), report(vec![measured(f64::NAN, Some("llm: needs 10.28 GiB"))])),
        ];
        let questions =
            Questions { seconds: vec![300, 3600], rounds: 2, new_tokens: 64, soak: 0, unload: false, at_once: 0 };
        let table = side_by_side(&reports, &questions);
        assert!(table.contains("| 300 | fp8 | 1.574 (0.90; 1.04) | 9.97 (9.3) | 46.00 |"), "{table}");
        assert!(table.ends_with("| 300 | q8 | llm: needs 10.28 GiB | | |"), "{table}");
    }
}
