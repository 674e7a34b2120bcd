//! The process that is stage-vision.

use std::process::ExitCode;

fn main() -> ExitCode {
    common::process::main(stage_vision::open)
}
