//! Measurements without a GPU: the towers at full width and a decode step, part by part, each beside its floor on this machine and
//! beside PyTorch doing the same, in turns.
//!
//! In reading order: [`clock`] (wall and CPU time of laps), [`ceilings`] (rates of this machine), [`case`](mod@case) (what is timed),
//! [`audio`], [`vision`] and [`decoder`] (the cases), [`peer`] (PyTorch, another process), [`table`] (rounds, medians and the report).

pub mod audio;
pub mod case;
pub mod ceilings;
pub mod clock;
pub mod decoder;
pub mod peer;
pub mod table;
pub mod vision;
