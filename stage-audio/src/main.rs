//! The process that is stage-audio.

use std::process::ExitCode;

fn main() -> ExitCode {
    common::process::main(stage_audio::open)
}
