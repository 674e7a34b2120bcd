//! What tests of more than one crate share.
//!
//! In reading order: [`harness`] (a real broker, real processes, real videos), [`shipped`] (that broker as an operator sets
//! it up), [`pipeline`] (the stages in one process) and [`delivery`] (how unkindly messages travel between them), [`parity`]
//! (the stages against the oracle), [`faults`] (what must not lose a job), [`gpu`] (the whole at full size on a GPU machine).

pub mod delivery;
pub mod faults;
pub mod gpu;
pub mod harness;
pub mod parity;
pub mod pipeline;
pub mod shipped;
