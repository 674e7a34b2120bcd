//! What tests of more than one crate share.
//!
//! In reading order: [`harness`] (a real broker, real processes, real videos), [`shipped`] (that broker as an operator sets
//! it up), [`pipeline`] (the stages in one process)
//! and [`delivery`] (how unkindly messages travel between them), [`parity`] (the stages against the oracle).

pub mod delivery;
pub mod faults;
pub mod harness;
pub mod parity;
pub mod pipeline;
pub mod shipped;
