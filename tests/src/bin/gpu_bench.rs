//! Full-size runs on a GPU machine: first token, milliseconds a token and memory of the card, for videos of several
//! lengths through broker and five processes, beside what the card reaches on its own.
//!
//!     gpu_bench --model DIR|--weights random [--seconds 10,60,300,3600] [--set section.key=value]... [--json FILE]
//!     gpu_bench --model DIR [--json FILE] table [--q8 FILE] [--q4 FILE]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tests::gpu::bench::Questions;
use tests::gpu::floor::Ceilings;
use tests::gpu::synthetic::SyntheticDecode;
use tests::gpu::{bench, kernels, stages, table};
use tests::parity;

#[derive(Parser)]
#[command(about = "Measures the whole pipeline on a GPU machine; needs the vidi command beside itself")]
struct Args {
    #[command(flatten)]
    config: runtime::process::ConfigArgs,
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
    /// Every configuration of tests/BENCHMARKS.md, one after the other, beside what the card cannot be faster than.
    Table(table::Arguments),
    /// A device's rates of copies and products, as JSON.
    Ceilings {
        /// Which device.
        device: String,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.command {
        Some(Part::Decode) => {
            return runtime::process::main_with(&args.config, |config| {
                Ok(SyntheticDecode::new(config.decode.batch_frames))
            });
        }
        Some(Part::Kernels(kernels)) => return kernels::run(&kernels),
        Some(Part::Stages) => return stages::run(&args.config),
        Some(Part::Parity(arguments)) => return parity::command::run(arguments),
        Some(Part::Ceilings { device }) => {
            return match Ceilings::measure(&device).and_then(|c| Ok(serde_json::to_string(&c)?)) {
                Ok(json) => {
                    println!("{json}");
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    eprintln!("{error:#}");
                    ExitCode::FAILURE
                }
            };
        }
        Some(Part::Table(_)) | None => {}
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
    let questions =
        Questions { seconds: args.seconds.clone(), rounds: args.rounds, new_tokens: args.new_tokens, soak: args.soak };
    let ceilings = Ceilings::of("cuda");
    match &ceilings {
        Ok(c) => println!(
            "copies {:.0} GB/s, products {:.0} TFLOP/s, of E4M3 {}",
            c.copy_bytes_per_s / 1e9,
            c.dense_operations_per_s / 1e12,
            c.e4m3_operations_per_s.map_or("none".to_owned(), |e| format!("{:.0}", e / 1e12)),
        ),
        Err(error) => eprintln!("no floors: {error:#}"),
    }
    let (ceilings, model) = (ceilings.ok(), args.model.as_deref());
    let json = match &args.command {
        Some(Part::Table(table)) => {
            serde_json::to_vec_pretty(&table::run(table, &args.config, model, &questions, ceilings).await?)?
        }
        _ => serde_json::to_vec_pretty(
            &bench::bench(&args.config, model, args.one_process, &questions, ceilings).await?,
        )?,
    };
    args.json.as_ref().map_or(Ok(()), |path| std::fs::write(path, json))?;
    Ok(())
}
