//! Capacity of the pipeline (deploy/CAPACITY.md): what a load needs by arithmetic, and a simulation of it on real brokers and
//! the real run loops with stages that only wait.
//!
//!     capacity plan [--per-hour 1,100,10000] [--seconds 300] [--times h200-fp8] [--footage 1080p]
//!     capacity run --per-hour 100 --jobs 20 [--speed 10] [--at-a-time 1] [--prefixes 2 --brokers 2] [--replicas llm=4,decode=2]
//!     capacity ceiling --jobs 12 [--at-a-time 4] [--seconds 60]
//!     capacity servers [--messages 20000]

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for developers: what it prints is read by who started it"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand};
use config::Config;
use protocol::error::StageName;
use serde::Serialize;
use tests::capacity::model::Video;
use tests::capacity::plan::Plan;
use tests::capacity::scenario::{Arrivals, Scenario};
use tests::capacity::times::{Footage, Times};
use tests::capacity::{cluster, run};

#[derive(Parser)]
#[command(about = "Plans and simulates loads; brokers are nats-server, their files lie below TMPDIR")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// File for the figures, as JSON.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Prints what loads need, by arithmetic.
    Plan {
        #[command(flatten)]
        asked: Asked,
        /// Videos an hour.
        #[arg(long, value_delimiter = ',', default_values_t = [1.0, 100.0, 10_000.0])]
        per_hour: Vec<f64>,
    },
    /// Runs a load whose jobs come by the clock.
    Run {
        #[command(flatten)]
        asked: Asked,
        #[command(flatten)]
        simulated: Simulated,
        /// Videos an hour.
        #[arg(long)]
        per_hour: f64,
        /// Times that the clock is faster than the real one. Bytes a second are those of the real clock all the same.
        #[arg(long, default_value_t = 1.0)]
        speed: f64,
        /// The next job comes when one has been answered, so many at a time, and not by the clock; --per-hour then only says how
        /// many replicas there are.
        #[arg(long)]
        at_a_time: Option<usize>,
    },
    /// Runs jobs through stages that do not even wait, so many at a time: what broker and run loops can do on this machine.
    Ceiling {
        #[command(flatten)]
        asked: Asked,
        #[command(flatten)]
        simulated: Simulated,
        /// Jobs at a time.
        #[arg(long, default_value_t = 4)]
        at_a_time: usize,
    },
    /// Measures what one server stores a second, and three, in one copy and in three.
    Servers {
        /// Small messages, of 400 bytes; of those of 1 MB a hundredth.
        #[arg(long, default_value_t = 20_000)]
        messages: usize,
    },
}

/// What is asked about, and what it takes.
#[derive(Args)]
struct Asked {
    /// Length of each video, seconds.
    #[arg(long, default_value_t = 300)]
    seconds: u64,
    /// Frames that are taken of each second.
    #[arg(long, default_value_t = 1)]
    fps: u32,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 64)]
    answer_tokens: u32,
    /// Table of service times.
    #[arg(long, default_value = "h200-fp8", value_parser = Times::named)]
    times: Times,
    /// What decoding takes.
    #[arg(long, default_value = "1080p", value_parser = Footage::named)]
    footage: Footage,
    /// `decode.batch_frames`; the product's default if not given.
    #[arg(long)]
    batch_frames: Option<usize>,
    /// `bus.message_bytes`; the product's default if not given.
    #[arg(long)]
    message_bytes: Option<usize>,
}

/// How it is simulated.
#[derive(Args)]
struct Simulated {
    /// Jobs in all.
    #[arg(long)]
    jobs: usize,
    /// Replicas of stages in each pipeline, e.g. `decode=2,llm=4`; those not named have what the plan says.
    #[arg(long, value_delimiter = ',', value_parser = replicas)]
    replicas: Vec<(StageName, usize)>,
    /// Pipelines with a prefix each.
    #[arg(long, default_value_t = 1)]
    prefixes: usize,
    /// Brokers that they share.
    #[arg(long, default_value_t = 1)]
    brokers: usize,
    /// `bus.token_bytes`; the product's default if not given.
    #[arg(long)]
    token_bytes: Option<i64>,
    /// Seed of the times between arrivals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn replicas(text: &str) -> Result<(StageName, usize), String> {
    let (stage, n) = text.split_once('=').ok_or_else(|| format!("{text:?} is not STAGE=NUMBER"))?;
    let stage = stage.parse().map_err(|e| format!("{stage:?}: {e}"))?;
    Ok((stage, n.parse().map_err(|e| format!("{text:?}: {e}"))?))
}

impl Asked {
    fn video(&self) -> Video {
        Video { seconds: self.seconds, fps: self.fps, answer_tokens: self.answer_tokens }
    }

    /// `decode.batch_frames` and `bus.message_bytes`.
    fn cut(&self) -> (usize, usize) {
        let defaults = Config::default();
        (
            self.batch_frames.unwrap_or(defaults.decode.batch_frames),
            self.message_bytes.unwrap_or(defaults.bus.message_bytes),
        )
    }

    fn scenario(&self, simulated: &Simulated, per_hour: f64, speed: f64, arrivals: Arrivals) -> Scenario {
        let (batch_frames, message_bytes) = self.cut();
        Scenario {
            per_hour,
            jobs: simulated.jobs,
            arrivals,
            seed: simulated.seed,
            video: self.video(),
            footage: self.footage,
            times: self.times.clone(),
            asked: simulated.replicas.clone(),
            speed,
            prefixes: simulated.prefixes,
            brokers: simulated.brokers,
            batch_frames,
            message_bytes,
            token_bytes: simulated.token_bytes.unwrap_or(Config::default().bus.token_bytes),
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match done(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn done(arguments: &Arguments) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    match &arguments.command {
        Command::Plan { asked, per_hour } => {
            let plan = Plan::of(per_hour, asked.video(), &asked.times, asked.footage, asked.cut())?;
            println!("{}\n{plan}\n{}", asked.times.origin, asked.footage.origin);
            write(arguments, &plan)
        }
        Command::Run { asked, simulated, per_hour, speed, at_a_time } => {
            ensure!(speed.is_finite() && *speed > 0.0, "--speed is over 0; without waits there is `capacity ceiling`");
            let arrivals = at_a_time.map_or(Arrivals::Open, Arrivals::Closed);
            let report = run::run(&asked.scenario(simulated, *per_hour, *speed, arrivals), dir.path()).await?;
            println!("{report}");
            write(arguments, &report)
        }
        Command::Ceiling { asked, simulated, at_a_time } => {
            let arrivals = Arrivals::Closed(*at_a_time);
            let mut scenario = asked.scenario(simulated, 1.0, f64::INFINITY, arrivals);
            if !scenario.asked.iter().any(|&(stage, _)| stage == StageName::Llm) {
                // As many owners as jobs: none waits for another's turn.
                scenario.asked.push((StageName::Llm, at_a_time.div_ceil(scenario.prefixes.max(1))));
            }
            let report = run::run(&scenario, dir.path()).await?;
            println!("{report}");
            write(arguments, &report)
        }
        Command::Servers { messages } => {
            ensure!(*messages >= 100, "--messages is at least 100");
            let rows = cluster::measure(dir.path(), &[(400, *messages), (1_000_000, messages / 100)]).await?;
            print!("{}", cluster::table(&rows));
            write(arguments, &rows)
        }
    }
}

fn write(arguments: &Arguments, figures: &impl Serialize) -> anyhow::Result<()> {
    let Some(path) = &arguments.json else { return Ok(()) };
    std::fs::write(path, serde_json::to_vec_pretty(figures)?).with_context(|| format!("{}", path.display()))
}
