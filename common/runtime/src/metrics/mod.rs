//! What a process counts, for Prometheus.
//!
//! In reading order: [`names`], [`counts`] (what is counted), [`listen`] (where it is read).

pub mod counts;
pub mod listen;
pub mod names;
