//! Comparison as a command, with a table and an exit status.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{Options, compare};

/// Compares the stages with a golden directory, boundary by boundary (tests/oracle/README.md describes its content).
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Checkpoint directory.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Golden directory: golden.json, golden.safetensors, and the oracle's input.
    #[arg(long, value_name = "DIR")]
    golden: PathBuf,
    /// Frames, u8 [F, H, W, 3] of any size; by default frames.npy in the golden directory.
    #[arg(long, value_name = "FILE")]
    frames: Option<PathBuf>,
    /// Audio at 16 kHz mono, f32 or i16; by default pcm.npy in the golden directory.
    #[arg(long, value_name = "FILE")]
    pcm: Option<PathBuf>,
    /// Seed of the random cuts, orders and repetitions of messages that must not change the answer.
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    chunking: u64,
    /// Number of seeds to try, from SEED on.
    #[arg(long, value_name = "N", default_value_t = 3)]
    chunkings: u64,
    /// Device, precision and formats to compare, e.g. `--set compute.device=cuda --set compute.dtype=bf16`.
    #[command(flatten)]
    config: runtime::process::ConfigArgs,
}

/// Prints the table. Exit status: 0 if every boundary is within tolerance, 1 if not, 2 for unusable input.
pub fn run(a: Arguments) -> ExitCode {
    let config = match a.config.load() {
        Ok(config) => config,
        Err(fatal) => {
            eprintln!("parity: {}", fatal.1);
            return ExitCode::from(2);
        }
    };
    let options = Options {
        checkpoint: a.checkpoint,
        golden: a.golden,
        frames: a.frames,
        pcm: a.pcm,
        seed: a.chunking,
        scrambled: a.chunkings,
        config,
    };
    match compare(&options) {
        Ok(report) => {
            println!("{report}");
            ExitCode::from(u8::from(!report.failures().is_empty()))
        }
        Err(error) => {
            eprintln!("parity: {error:#}");
            ExitCode::from(2)
        }
    }
}
