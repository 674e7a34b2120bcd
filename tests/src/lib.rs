//! Test code that more than one test or binary uses.
//!
//! In reading order: [`harness`] (a real broker, real processes), [`media`] (videos), [`built`] (commands), [`cluster`] (a cluster of three brokers),
//! [`shipped`] (that broker with the shipped configuration), [`own`] (`vidi up` with a broker of its own), [`disk`] (a small one), [`dice`] (random numbers by seed), [`delivery`] (order, cuts and repetitions of messages) and
//! [`pipeline`] (the stages in one process), [`parity`] (the stages against the oracle), [`faults`] (the fault suite),
//! [`gpu`] (measurements at full size on a GPU machine), [`cpu`] (measurements without one, beside PyTorch), [`capacity`] (what a load takes, by arithmetic and by simulation).

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for developers: what it prints is read by who started it"
)]

pub mod built;
pub mod capacity;
pub mod cluster;
pub mod cpu;
pub mod delivery;
pub mod dice;
pub mod disk;
pub mod faults;
pub mod gpu;
pub mod harness;
pub mod media;
pub mod own;
pub mod parity;
pub mod pipeline;
pub mod shipped;
