//! `vidi eval`: scores answers as the authors of the benchmarks VUE-TR, VUE-TR-V2, VUE-STG and VUE-PLOT do, compares two
//! files of answers, and makes such a file by asking a running pipeline.
//!
//! In reading order: [`suite`] (the benchmarks), [`records`] and [`csv`] (files of queries and answers), [`sheet`] (scores of
//! queries, and their totals by group), [`curve`] (share of queries over a threshold), [`ranges`] and [`retrieval`] (time
//! ranges), [`tubes`] and [`grounding`] (boxes over time), [`choice`] (letters), [`score`] (which of these a benchmark takes),
//! [`show`] (tables and pictures), [`compare`] (two files of answers); [`videos`] (what there is to ask about), [`line`](mod@line) and
//! [`answers`] (the file that grows), [`pace`] and [`progress`] (time left, and what is shown), [`run`] (asking); [`error`](mod@error).

pub mod answers;
pub mod choice;
pub mod compare;
pub mod csv;
pub mod curve;
pub mod error;
pub mod grounding;
pub mod line;
pub mod pace;
pub mod progress;
pub mod ranges;
pub mod records;
pub mod retrieval;
pub mod run;
pub mod score;
pub mod sheet;
pub mod show;
pub mod suite;
pub mod tubes;
pub mod videos;

pub use error::EvalError;
