//! Check of every kernel against its CPU twin on this machine's GPU, and measurements at the model's shapes.

use std::process::ExitCode;

use candle_core::{DType, Device};
use compute::Compute;
use compute::kernels::bench::{self, Figure};
use compute::kernels::check::{self, Check};
use config::{ComputeConfig, Precision};

/// Arguments of the check.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Check only.
    #[arg(long)]
    no_bench: bool,
    /// GPU to use.
    #[arg(long, default_value = "cuda")]
    device: String,
}

/// Prints both tables. Exit status: 0 if all kernels are right, 1 if one is not, 2 without a GPU.
pub fn run(args: &Arguments) -> ExitCode {
    let config = ComputeConfig { device: args.device.clone(), dtype: Precision::Bf16, ..ComputeConfig::default() };
    let device = match Compute::open(&config, None) {
        Ok(compute) => compute.device,
        Err(error) => {
            eprintln!("gpu_bench kernels: {error}");
            return ExitCode::from(2);
        }
    };
    let types = [DType::BF16, DType::F16, DType::F32];
    let checks = types.into_iter().flat_map(|dtype| {
        let shared = check::check(&device, dtype)
            .into_iter()
            .map(move |c| Check { name: format!("{}, {}", c.name, dtype.as_str()), ..c });
        shared.chain(stage_llm::language::kernels::check::check(&device, dtype))
    });
    let mut wrong = 0;
    for check in checks {
        println!("{check}");
        wrong += u8::from(!check.ok);
    }
    if !args.no_bench
        && let Err(error) = bench(&device)
    {
        eprintln!("gpu_bench kernels: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::from(u8::from(wrong > 0))
}

fn bench(device: &Device) -> candle_core::Result<()> {
    bench::bench(device, DType::BF16)?.iter().for_each(show);
    #[cfg(feature = "cuda")]
    stage_llm::language::kernels::bench::bench(device, DType::BF16)?.iter().for_each(|timing| println!("{timing}"));
    Ok(())
}

fn show(figure: &Figure) {
    println!("{:<60} {:>9.1} us {:>8.0} {}", figure.name, figure.microseconds, figure.achieved, figure.unit);
}
