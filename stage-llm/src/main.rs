//! The process that is stage-llm.

use std::process::ExitCode;

fn main() -> ExitCode {
    common::process::main_owner(stage_llm::open)
}
