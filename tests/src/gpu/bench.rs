//! Benchmark of one configuration: questions about videos of several durations, beside their floors on this GPU.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use model::checkpoint::Checkpoint;
use model::config_json::ModelConfig;
use protocol::error::StageName;
use runtime::process::ConfigArgs;
use serde::Serialize;

use super::driver;
use super::floor::{Ceilings, Floor, Floors, RTX_4090};
use super::run::{Measured, Pipeline};

/// Questions of a benchmark.
#[derive(Clone, Debug)]
pub struct Questions {
    /// Durations of the videos in seconds.
    pub seconds: Vec<u64>,
    /// Questions per duration; the last one counts.
    pub rounds: usize,
    /// Tokens to generate.
    pub new_tokens: u32,
    /// Two questions more per duration, after stage-llm was unloaded.
    pub unload: bool,
    /// Questions at once per duration, after those.
    pub at_once: usize,
    /// Jobs of mixed duration afterwards.
    pub soak: usize,
}

/// Figures of one configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name, driver version and memory of the GPU.
    pub gpu: String,
    /// Rates of the GPU, measured first.
    pub ceilings: Option<Ceilings>,
    /// Configuration keys.
    pub settings: Vec<String>,
    /// Bytes of GPU memory in use before the start.
    pub idle_bytes: u64,
    /// Bytes of GPU memory in use once the stages were ready.
    pub ready_bytes: u64,
    /// One row per question.
    pub rows: Vec<Row>,
}

/// Measured question and its floor.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The measurement; its peak is without the memory in use before the start.
    #[serde(flatten)]
    pub measured: Measured,
    /// Its floors; none if the GPU's rates were not measured.
    pub floors: Option<Floors>,
    /// What an RTX 4090 would take at the same distance from its own floor.
    pub paper: Option<Floor>,
}

/// Starts a pipeline with a configuration and further options of `vidi up`, asks the questions and prints a row after each.
///
/// # Errors
/// If there is no model, no driver or the pipeline does not start; memory that grows in the soak.
pub async fn bench(
    config: &ConfigArgs,
    model: Option<&Path>,
    options: &[String],
    questions: &Questions,
    ceilings: Option<Ceilings>,
) -> anyhow::Result<Report> {
    if model.is_none() && config.weights.is_none() {
        anyhow::bail!("no model: give --model DIR or --weights random");
    }
    let gpu = driver::query("name,driver_version,memory.total")?;
    let idle_bytes = driver::used_bytes()?;
    println!("{gpu}; {}", config.set.join(" "));
    let (effective, geometry) = described(config, model)?;
    let started = Instant::now();
    // Every question goes through all stages, unless the command line says otherwise.
    let mut set: Vec<String> = ["llm.keep_video=false".to_owned()].into_iter().chain(config.set.clone()).collect();
    set.extend(config.weights.map(|weights| format!("model.weights={weights}")));
    let pipeline = Pipeline::start(model, &set, options, StageName::ALL.len()).await?;
    let ready_bytes = driver::used_bytes()?;
    println!("ready in {:.1} s, {:.2} GB of GPU memory", started.elapsed().as_secs_f64(), gb(ready_bytes - idle_bytes));
    show_memory(&pipeline).await?;
    println!(
        "| video s | tokens | first token s | floor | floor kept up | on a 4090 | ms per token | floor | on a 4090 | whole s | peak GB | keys and values | busy s |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |");
    let mut rows = Vec::new();
    for (i, &seconds) in questions.seconds.iter().enumerate() {
        let floors = ceilings.map(|c| Floors::new(seconds, &geometry, &effective, &c)).transpose()?;
        let of_4090 = Floor::new(seconds, &geometry, &effective, &RTX_4090)?;
        let rounds = questions.rounds.max(1);
        for round in 0..rounds + if questions.unload { AFTER_UNLOAD } else { 0 } {
            if round == rounds {
                pipeline.unload_llm().await?;
            }
            // A duration may come twice, but the id of an ended job is not run again.
            let job = format!("bench-{i}-{seconds}-{round}");
            let mut measured = pipeline.ask(&job, seconds, questions.new_tokens).await?;
            measured.peak_bytes = measured.peak_bytes.saturating_sub(idle_bytes);
            let seen = Floor { first_token_s: measured.first_token_s, ms_per_token: measured.ms_per_token };
            let paper = floors.map(|here| of_4090.at_the_same_efficiency(&here.short, &seen));
            let row = Row { measured, floors, paper };
            println!("{}", line(&row));
            rows.push(row);
        }
        if questions.at_once > 0 {
            let job = format!("bench-{i}-{seconds}-at-once");
            at_once(&pipeline, &job, seconds, questions, idle_bytes).await?;
        }
    }
    if questions.soak > 0 {
        soak(&pipeline, questions.soak).await?;
    }
    show_memory(&pipeline).await?;
    Ok(Report { gpu, ceilings, settings: config.set.clone(), idle_bytes, ready_bytes, rows })
}

/// Asks several questions about a video at once, and prints how long all take and what memory at most.
///
/// # Errors
/// A job that fails.
async fn at_once(
    pipeline: &Pipeline,
    job: &str,
    seconds: u64,
    questions: &Questions,
    idle_bytes: u64,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let jobs: Vec<String> = (0..questions.at_once).map(|n| format!("{job}-{n}")).collect();
    let asked = jobs.iter().map(|job| pipeline.ask(job, seconds, questions.new_tokens));
    let all = futures::future::try_join_all(asked).await?;
    if let Some(error) = all.iter().find_map(|measured| measured.error.as_ref()) {
        anyhow::bail!("{job}: {error}");
    }
    let peak = all.iter().map(|measured| measured.peak_bytes).max().unwrap_or_default().saturating_sub(idle_bytes);
    let slowest = all.iter().map(|measured| measured.ms_per_token).fold(0.0, f64::max);
    let tokens: usize = all.iter().map(|measured| measured.token_ids.len()).sum();
    let took = started.elapsed().as_secs_f64();
    println!(
        "{} questions about {seconds} s at once: {took:.2} s, {tokens} tokens, {slowest:.2} ms a token at most, peak {:.2} GB",
        all.len(),
        gb(peak)
    );
    Ok(())
}

/// Effective configuration and model geometry of the pipeline.
fn described(config: &ConfigArgs, model: Option<&Path>) -> anyhow::Result<(config::Config, ModelConfig)> {
    let mut effective = config.load().map_err(|fatal| anyhow::anyhow!("{}", fatal.1))?;
    effective.model.dir = model.map_or_else(PathBuf::new, Path::to_owned);
    let geometry = Checkpoint::configured(&effective.model)?.config().clone();
    Ok((effective, geometry))
}

fn line(row: &Row) -> String {
    let m = &row.measured;
    let busy: Vec<String> = m.busy_s.iter().map(|(stage, s)| format!("{stage} {s:.2}")).collect();
    let (short, kept_up) = (row.floors.map(|f| f.short), row.floors.map(|f| f.kept_up));
    let shown = |floor: &Option<Floor>, of: fn(&Floor) -> f64, digits: usize| {
        floor.as_ref().map_or_else(String::new, |floor| format!("{:.digits$}", of(floor)))
    };
    let first = |f: &Floor| f.first_token_s;
    let per_token = |f: &Floor| f.ms_per_token;
    format!(
        "| {} | {} | {:.3} | {} | {} | {} | {:.2} | {} | {} | {:.2} | {:.2} | {} | {} {} |",
        m.seconds,
        m.tokens,
        m.first_token_s,
        shown(&short, first, 3),
        shown(&kept_up, first, 3),
        shown(&row.paper, first, 2),
        m.ms_per_token,
        shown(&short, per_token, 2),
        shown(&row.paper, per_token, 1),
        m.total_s,
        gb(m.peak_bytes),
        m.cached.place().unwrap_or("computed"),
        busy.join(", "),
        m.error.as_deref().unwrap_or(""),
    )
}

async fn show_memory(pipeline: &Pipeline) -> anyhow::Result<()> {
    for status in pipeline.memory().await? {
        let (used, peak, reserved) = (gb(status.used_bytes), gb(status.peak_bytes), gb(status.reserved_bytes));
        println!("{} on {}: {used:.3} GB used, {peak:.3} at most, {reserved:.3} reserved", status.stage, status.device);
    }
    Ok(())
}

/// Questions after an unload: one that finds its video on disk, if it was parked, and one that finds it in memory again.
const AFTER_UNLOAD: usize = 2;
/// Durations of the soak's videos in seconds, short and long in turn.
const MIXED: [u64; 7] = [10, 45, 3, 90, 20, 150, 7];
/// Number of jobs after which memory must not grow: each duration once.
const FIRST_JOBS: usize = MIXED.len();

/// Asks one question after the other and checks the memory of the computing stages after each.
///
/// # Errors
/// A job that fails, or a stage that holds more memory after a job than after the first round.
async fn soak(pipeline: &Pipeline, jobs: usize) -> anyhow::Result<()> {
    let mut at_rest: BTreeMap<StageName, u64> = BTreeMap::new();
    let started = Instant::now();
    for i in 0..jobs {
        let m = pipeline.ask(&format!("soak-{i}"), MIXED[i % MIXED.len()], 8).await?;
        if let Some(error) = m.error {
            anyhow::bail!("job {i} of the soak failed: {error}");
        }
        for status in pipeline.memory().await?.into_iter().filter(|s| s.stage != StageName::Decode) {
            let known = at_rest.entry(status.stage).or_insert(status.used_bytes);
            if i < FIRST_JOBS {
                *known = status.used_bytes.max(*known);
            } else if status.used_bytes > *known {
                anyhow::bail!(
                    "memory grows: after job {i} stage-{} holds {} bytes, after the first round {known}",
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

/// Gigabytes (10^9 bytes).
pub fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
