//! Benchmark without a GPU: the parts of the towers at full width and of a decode step, beside their floors on this machine and, with a
//! Python that has PyTorch, beside PyTorch in the same run.
//!
//!     cpu_bench [--python PATH] [--rounds 9] [--part audio,vision,decoder] [--only NAME] [--json FILE]
//!
//! `RAYON_NUM_THREADS` sets the threads of both; there are as many as cores without it.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for developers: what it prints is read by who started it"
)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tests::cpu::ceilings::Ceilings;
use tests::cpu::peer::Peer;
use tests::cpu::{audio, decoder, table, vision};

#[derive(Parser)]
#[command(about = "Measures the towers and a decode step on the CPU, beside PyTorch")]
struct Args {
    /// Python with PyTorch, to run beside ours.
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Runs of each case that count.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Parts to measure.
    #[arg(long, value_delimiter = ',', default_values = ["audio", "vision", "decoder"])]
    part: Vec<Kind>,
    /// Only cases with this in their names.
    #[arg(long)]
    only: Option<String>,
    /// File for the figures.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Audio,
    Vision,
    Decoder,
}

fn main() -> ExitCode {
    // SAFETY: this is the only thread yet.
    unsafe { compute::threads::settle() };
    match bench(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cpu_bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(args: &Args) -> anyhow::Result<()> {
    let threads = candle_core::utils::get_num_threads();
    let ceilings = Ceilings::measure(threads)?;
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "{threads} threads, load {}; by a second of CPU time: matmul {:.0} GFLOP, copy {:.1} GB, read {:.1} GB",
        load.split(' ').next().unwrap_or("unknown"),
        ceilings.operations_per_s / 1e9,
        ceilings.copy_bytes_per_s / 1e9,
        ceilings.read_bytes_per_s / 1e9
    );
    let mut rows = Vec::new();
    for kind in &args.part {
        // One for each kind: what it holds of the last one goes with it.
        let mut peer = args.python.as_deref().map(|python| Peer::start(python, threads)).transpose()?;
        if let Some(peer) = &peer {
            println!("beside {}", peer.version);
        }
        println!("{}", table::HEADS);
        let cases = match kind {
            Kind::Audio => audio::cases()?,
            Kind::Vision => vision::cases()?,
            Kind::Decoder => decoder::cases()?,
        };
        for mut case in cases.into_iter().filter(|c| args.only.as_ref().is_none_or(|only| c.name.contains(only))) {
            for row in table::measure(&mut case, peer.as_mut(), args.rounds, &ceilings)? {
                println!("{row}");
                rows.push(row);
            }
        }
    }
    args.json
        .as_ref()
        .map_or(Ok(()), |path| std::fs::write(path, serde_json::to_vec_pretty(&rows)?).map_err(Into::into))
}
