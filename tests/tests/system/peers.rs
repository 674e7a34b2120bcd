//! candle-transformers' own models on the golden checkpoints, as a second opinion that needs no PyTorch.
//!
//! The oracle and the stages were written by the same hands from the same specification; candle's SigLIP, Whisper encoder
//! and Gemma 2 were not. Each file compares one of them at the boundaries where the two must agree, shows that a mistake is
//! seen, and measures what differs by design. `cargo test --workspace --test system peers:: -- --nocapture` prints every figure;
//! tests/golden/README.md has the table.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for developers: what it prints is read by who started it"
)]

mod checkpoint;
mod gemma;
mod siglip;
mod whisper;
