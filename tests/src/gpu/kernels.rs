//! Every kernel of ours held against its CPU twin on this machine's card, and measured at the model's own shapes.

use std::process::ExitCode;

use candle_core::{DType, Device};
use common::compute::Compute;
use common::config::{ComputeConfig, Precision};
use common::kernels::check::{self, Check, Figure};

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Checks only.
    #[arg(long)]
    no_bench: bool,
    /// Which card.
    #[arg(long, default_value = "cuda")]
    device: String,
}

/// Prints both tables. Exit status: 0 if all kernels are right, 1 if one is not, 2 without a card.
pub fn run(args: &Arguments) -> ExitCode {
    let config = ComputeConfig { device: args.device.clone(), dtype: Precision::Bf16, ..ComputeConfig::default() };
    let device = match Compute::open(&config, None) {
        Ok(compute) => compute.device,
        Err(error) => {
            eprintln!("gpu_bench kernels: {error}");
            return ExitCode::from(2);
        }
    };
    let wrong = [DType::BF16, DType::F16, DType::F32].into_iter().flat_map(|dtype| checked(&device, dtype)).count();
    if !args.no_bench {
        match check::bench(&device, DType::BF16) {
            Ok(figures) => figures.iter().for_each(show),
            Err(error) => {
                eprintln!("gpu_bench kernels: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::from(u8::from(wrong > 0))
}

/// Prints a type's checks and gives those that failed.
fn checked(device: &Device, dtype: DType) -> Vec<Check> {
    let checks = check::check(device, dtype);
    for c in &checks {
        let verdict = if c.ok { "ok" } else { "FAILED" };
        let why = c.failure.as_deref().unwrap_or_default();
        println!("{:<5} {:<28} {:>9.1e} {:>9.1e} {verdict} {why}", dtype.as_str(), c.name, c.error, c.tolerance);
    }
    checks.into_iter().filter(|c| !c.ok).collect()
}

fn show(figure: &Figure) {
    println!("{:<60} {:>9.1} us {:>8.0} {}", figure.name, figure.microseconds, figure.achieved, figure.unit);
}
