//! Holds the stages against the oracle's golden values and prints a table of every boundary.
//!
//! Exit status: 0 if all is within tolerance, 1 if something is not, 2 for input that cannot be used.

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
    run(Command::parse().arguments)
}
