//! Benchmark at full size on a GPU machine: time to the first token, milliseconds per token and GPU memory, for videos of
//! several lengths through broker and five processes, beside the floors from the GPU's own rates.
//!
//!     gpu_bench --model DIR|--weights random [--seconds 10,60,300,3600] [--set section.key=value]... [--json FILE]
//!     gpu_bench --weights random --set compute.device=cuda --set llm.kv=q4 parked --dir DIR [--seconds 300,3600]
//!     gpu_bench --model DIR [--json FILE] table [--q8 FILE] [--q4 FILE]
//!     gpu_bench --weights random [--set section.key=value]... passes [--windows 1,2,4,8] [--frames 1,2,4,8,16,32]
//!     gpu_bench --weights random [--set section.key=value]... texts [--video-seconds 60,300] [--texts 1,2,4,8,16,32]
//!     gpu_bench --model DIR|--weights random [--json FILE] placement [--devices cuda:0,cuda:1] [--jobs 12]

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for developers: what it prints is read by who started it"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tests::gpu::bench::Questions;
use tests::gpu::floor::Ceilings;
use tests::gpu::synthetic::SyntheticDecode;
use tests::gpu::{bench, kernels, parked, passes, placement, stages, table, texts};
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
    /// Durations of the videos in seconds.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 60, 300, 3600])]
    seconds: Vec<u64>,
    /// Questions per duration; the last one counts.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Tokens to generate.
    #[arg(long, default_value_t = 64)]
    new_tokens: u32,
    /// Unload stage-llm after the questions of a duration, and ask twice more: with `--set llm.keep_video=true --set llm.park_dir=DIR`
    /// the first one reads its video from disk.
    #[arg(long)]
    unload: bool,
    /// After the questions of a duration, so many more of it at once, which grow in one batch: with `--set llm.keep_video=true`.
    #[arg(long, default_value_t = 0)]
    at_once: usize,
    /// Jobs of mixed duration afterwards; after each, every stage must hold no more memory than after the first ones.
    #[arg(long, default_value_t = 0)]
    soak: usize,
    /// Run vision, audio, fuse and llm in one process, with one CUDA context.
    #[arg(long)]
    one_process: bool,
    /// Devices of stages, one for each, as for `vidi up`.
    #[arg(long, value_name = "STAGE=DEVICE,...")]
    place: Option<String>,
    /// File for the figures.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Part {
    /// Runs the stage-decode of a benchmark: synthetic videos, and directories with frames.npy and pcm.npy.
    Decode,
    /// Checks and measures every kernel alone.
    Kernels(kernels::Arguments),
    /// Measures every stage alone, message by message; the model is the configuration's.
    Stages,
    /// Measures passes of the encoders, by how many windows or frames go through together, beside the floor of their matmuls; the
    /// model is the configuration's.
    Passes(passes::Arguments),
    /// Measures decode steps of several texts about one video, and compares their tokens with those of each text alone; the model
    /// is the configuration's.
    Texts(texts::Arguments),
    /// Measures parked videos: written, and read back, beside the disk's and the copies' own rates.
    Parked(parked::Arguments),
    /// Compares the stages with the oracle's golden values, e.g. on the GPU in 16 bit.
    Parity(parity::command::Arguments),
    /// Measures every configuration of tests/BENCHMARKS.md, beside its floor on this GPU.
    Table(table::Arguments),
    /// Measures the same questions, and jobs a second, with the stages on one device and on two.
    Placement(placement::Arguments),
    /// Prints a device's rates of copies and matmuls as JSON.
    Ceilings {
        /// Device, e.g. `cuda:0`.
        device: String,
    },
}

fn main() -> ExitCode {
    // SAFETY: this is the only thread yet.
    unsafe { compute::threads::settle() };
    let args = Args::parse();
    match args.command {
        Some(Part::Decode) => {
            return runtime::process::main(&args.config, |config| Ok(SyntheticDecode::new(config.decode.batch_frames)));
        }
        Some(Part::Kernels(kernels)) => return kernels::run(&kernels),
        Some(Part::Stages) => return stages::run(&args.config),
        Some(Part::Passes(passes)) => return passes::run(&passes, &args.config),
        Some(Part::Texts(texts)) => return texts::run(&texts, &args.config),
        Some(Part::Parked(parked)) => return parked::run(&parked, &args.config),
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
        Some(Part::Table(_) | Part::Placement(_)) | None => {}
    }
    let runtime = tokio::runtime::Runtime::new().expect("the operating system starts threads");
    match runtime.block_on(bench(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn bench(args: &Args) -> anyhow::Result<()> {
    let questions = Questions {
        seconds: args.seconds.clone(),
        rounds: args.rounds,
        new_tokens: args.new_tokens,
        unload: args.unload,
        at_once: args.at_once,
        soak: args.soak,
    };
    let write = |json: Vec<u8>| args.json.as_ref().map_or(Ok(()), |path| std::fs::write(path, json));
    if let Some(Part::Placement(placement)) = &args.command {
        let columns = placement::run(placement, &args.config, args.model.as_deref(), &questions).await?;
        return Ok(write(serde_json::to_vec_pretty(&columns)?)?);
    }
    let ceilings = Ceilings::of("cuda");
    match &ceilings {
        Ok(c) => println!(
            "copies {:.0} GB/s, matmuls {}; after half a second of nothing else {}",
            c.copy_bytes_per_s / 1e9,
            c.matmuls,
            c.sustained,
        ),
        Err(error) => eprintln!("measurement of the GPU failed, no floors: {error:#}"),
    }
    let (ceilings, model) = (ceilings.ok(), args.model.as_deref());
    let json = match &args.command {
        Some(Part::Table(table)) => {
            serde_json::to_vec_pretty(&table::run(table, &args.config, model, &questions, ceilings).await?)?
        }
        _ => {
            serde_json::to_vec_pretty(&bench::bench(&args.config, model, &options(args), &questions, ceilings).await?)?
        }
    };
    Ok(write(json)?)
}

/// Options of `vidi up`.
fn options(args: &Args) -> Vec<String> {
    let place = args.place.iter().flat_map(|place| ["--place".to_owned(), place.clone()]);
    args.one_process.then(|| "--one-process".to_owned()).into_iter().chain(place).collect()
}
