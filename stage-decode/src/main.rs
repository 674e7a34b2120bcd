//! The process that is stage-decode.

use std::process::ExitCode;

fn main() -> ExitCode {
    common::process::main(stage_decode::open)
}
