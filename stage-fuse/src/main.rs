//! The process that is stage-fuse.

use std::process::ExitCode;

fn main() -> ExitCode {
    common::process::main(stage_fuse::open)
}
