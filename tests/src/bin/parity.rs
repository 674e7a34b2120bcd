//! Comparison of the stages with the oracle's golden values, as a table of every boundary.
//!
//! Exit status: 0 if every boundary is within tolerance, 1 if not, 2 for unusable input.

use std::process::ExitCode;

use clap::Parser;
use tests::parity::command::{Arguments, run};

/// Compare the stages with a golden directory, boundary by boundary (tests/oracle/README.md says what it holds).
#[derive(Parser)]
struct Command {
    #[command(flatten)]
    arguments: Arguments,
}

fn main() -> ExitCode {
    // SAFETY: this is the only thread yet.
    unsafe { compute::threads::settle() };
    run(Command::parse().arguments)
}
