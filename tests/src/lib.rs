//! What tests of more than one crate share.
//!
//! In reading order: [`harness`] (a real broker, real processes, real videos).

pub mod harness;
