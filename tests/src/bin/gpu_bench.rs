//! Full-size runs on a GPU machine: first token, milliseconds a token and memory of the card, for videos of several
//! lengths through broker and five processes, beside what the card reaches on its own.
//!
//!     gpu_bench --model DIR|--weights random [--seconds 10,60,300,3600] [--set section.key=value]... [--json FILE]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use common::error::StageName;
use serde::Serialize;
use tests::gpu::run::{Measured, Pipeline};
use tests::gpu::synthetic::SyntheticDecode;
use tests::gpu::{card, kernels, stages};
use tests::parity;

#[derive(Parser)]
#[command(about = "Measures the whole pipeline on a GPU machine; needs the vidi command beside itself")]
struct Args {
    #[command(flatten)]
    config: common::process::ConfigArgs,
    #[command(subcommand)]
    command: Option<Part>,
    /// Checkpoint directory.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Lengths of videos, seconds.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 60, 300, 3600])]
    seconds: Vec<u64>,
    /// Questions of each length; the last one counts.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Tokens to generate.
    #[arg(long, default_value_t = 64)]
    new_tokens: u32,
    /// Jobs of mixed length afterwards, after each of which every stage must hold what it held after the first.
    #[arg(long, default_value_t = 0)]
    soak: usize,
    /// Vision, audio, fuse and llm as one process: one CUDA context for all.
    #[arg(long)]
    one_process: bool,
    /// Writes the figures.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Part {
    /// The synthetic stage-decode of a bench, as a process of its own.
    Decode,
    /// Checks and measures every kernel alone.
    Kernels(kernels::Arguments),
    /// Measures every stage alone, message by message; the model is the configuration's.
    Stages,
    /// Holds the stages against the oracle's golden values, e.g. on the card in 16 bit.
    Parity(parity::command::Arguments),
}

#[derive(Serialize)]
struct Report {
    card: String,
    settings: Vec<String>,
    idle_bytes: u64,
    ready_bytes: u64,
    measured: Vec<Measured>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.command {
        Some(Part::Decode) => {
            return common::process::main_with(&args.config, |config| {
                Ok(SyntheticDecode::new(config.decode.batch_frames))
            });
        }
        Some(Part::Kernels(kernels)) => return kernels::run(&kernels),
        Some(Part::Stages) => return stages::run(&args.config),
        Some(Part::Parity(arguments)) => return parity::command::run(arguments),
        None => {}
    }
    let runtime = tokio::runtime::Runtime::new().expect("a machine with a GPU gives threads");
    match runtime.block_on(bench(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn bench(args: &Args) -> anyhow::Result<()> {
    if args.model.is_none() && args.config.weights.is_none() {
        anyhow::bail!("--model names a checkpoint directory, or --weights random does without one");
    }
    let card = card::query("name,driver_version,memory.total")?;
    let idle_bytes = card::used_bytes()?;
    println!("{card}; {}", args.config.set.join(" "));
    let started = std::time::Instant::now();
    // Each round is a first question, unless the command line says otherwise.
    let mut set: Vec<String> = ["llm.keep_video=false".to_owned()].into_iter().chain(args.config.set.clone()).collect();
    set.extend(args.config.weights.map(|weights| format!("model.weights={weights}")));
    let pipeline = Pipeline::start(args.model.as_deref(), &set, args.one_process).await?;
    let ready_bytes = card::used_bytes()?;
    println!("ready in {:.1} s, {:.2} GB on the card", started.elapsed().as_secs_f64(), gb(ready_bytes - idle_bytes));
    show_memory(&pipeline).await?;
    println!("| video s | tokens | first token s | ms a token | whole s | peak GB | busy s |");
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | --- |");
    let mut measured = Vec::new();
    for (i, &seconds) in args.seconds.iter().enumerate() {
        for round in 0..args.rounds.max(1) {
            // A length may come twice; a job that has an end is not run again.
            let m = pipeline.ask(&format!("bench-{i}-{seconds}-{round}"), seconds, args.new_tokens).await?;
            let busy: Vec<String> = m.busy_s.iter().map(|(stage, s)| format!("{stage} {s:.2}")).collect();
            println!(
                "| {seconds} | {} | {:.3} | {:.2} | {:.2} | {:.2} | {} {} |",
                m.tokens,
                m.first_token_s,
                m.ms_per_token,
                m.total_s,
                gb(m.peak_bytes.saturating_sub(idle_bytes)),
                busy.join(", "),
                m.error.as_deref().unwrap_or(""),
            );
            measured.push(m);
        }
    }
    if args.soak > 0 {
        soak(&pipeline, args.soak).await?;
    }
    show_memory(&pipeline).await?;
    if let Some(path) = &args.json {
        let report = Report { card, settings: args.config.set.clone(), idle_bytes, ready_bytes, measured };
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

async fn show_memory(pipeline: &Pipeline) -> anyhow::Result<()> {
    for status in pipeline.memory().await? {
        let (used, peak, reserved) = (gb(status.used_bytes), gb(status.peak_bytes), gb(status.reserved_bytes));
        println!("{}: {used:.3} GB used, {peak:.3} at most, {reserved:.3} reserved", status.stage);
    }
    Ok(())
}

/// Lengths of the soak's videos, seconds: short and long in turn.
const MIXED: [u64; 7] = [10, 45, 3, 90, 20, 150, 7];
/// Jobs after which nothing grows any more: each length once.
const FIRST_JOBS: usize = MIXED.len();

/// Asks one question after the other and looks at what the computing stages hold after each.
///
/// # Errors
/// A job that fails, a stage that holds more after a job than after the first round of them.
async fn soak(pipeline: &Pipeline, jobs: usize) -> anyhow::Result<()> {
    let mut at_rest: BTreeMap<StageName, u64> = BTreeMap::new();
    let started = std::time::Instant::now();
    for i in 0..jobs {
        let m = pipeline.ask(&format!("soak-{i}"), MIXED[i % MIXED.len()], 8).await?;
        if let Some(error) = m.error {
            anyhow::bail!("job {i}: {error}");
        }
        for status in pipeline.memory().await?.into_iter().filter(|s| s.stage != StageName::Decode) {
            let known = at_rest.entry(status.stage).or_insert(status.used_bytes);
            if i < FIRST_JOBS {
                *known = status.used_bytes.max(*known);
            } else if status.used_bytes > *known {
                anyhow::bail!(
                    "after job {i} stage-{} holds {} bytes, at first {known}",
                    status.stage,
                    status.used_bytes
                );
            }
        }
        if (i + 1) % 50 == 0 {
            println!("soak: {} jobs in {:.0} s", i + 1, started.elapsed().as_secs_f64());
        }
    }
    let held: Vec<String> = at_rest.iter().map(|(stage, bytes)| format!("{stage} {:.3} GB", gb(*bytes))).collect();
    println!(
        "soak: {jobs} jobs in {:.0} s, after each no more than {}",
        started.elapsed().as_secs_f64(),
        held.join(", ")
    );
    Ok(())
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
