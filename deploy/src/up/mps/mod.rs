//! NVIDIA's Multi-Process Service, by which processes share a GPU's time instead of taking turns: a daemon that is there
//! before the stages and ends after them.
//!
//! In reading order: [`home`] (a daemon's directories, and whether one serves there), [`choice`] (a daemon of our own, or one
//! that is there), [`keeper`] (the process that starts the daemon and leaves nothing of it), [`service`] (that process, kept
//! alive beside the stages).

pub mod choice;
pub mod home;
pub mod keeper;
pub mod service;
