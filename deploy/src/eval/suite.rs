//! The benchmarks that answers are scored for, and what they are scored against.

use std::path::PathBuf;

use serde::Serialize;

/// Benchmark, by what is asked and how answers are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Suite {
    /// VUE-TR: time ranges.
    Tr,
    /// VUE-TR-V2: time ranges, where an empty answer may be a right one.
    TrV2,
    /// VUE-STG: boxes over time.
    Stg,
    /// VUE-PLOT, reasoning: one of several letters.
    Plot,
}

impl Suite {
    /// Name as its authors write it.
    pub fn name(self) -> &'static str {
        match self {
            Suite::Tr => "VUE-TR",
            Suite::TrV2 => "VUE-TR-V2",
            Suite::Stg => "VUE-STG",
            Suite::Plot => "VUE-PLOT",
        }
    }

    /// Decimals of a percentage, as they are published.
    pub fn decimals(self) -> usize {
        if self == Suite::Tr { 1 } else { 2 }
    }

    /// The column by which two answers to a query are compared.
    pub fn decisive(self) -> &'static str {
        match self {
            Suite::Tr | Suite::TrV2 => "IoU",
            Suite::Stg => "v_IoU",
            Suite::Plot => "accuracy",
        }
    }

    /// The columns whose totals are compared.
    pub fn compared(self) -> &'static [&'static str] {
        match self {
            Suite::Tr | Suite::TrV2 => &["precision", "recall", "IoU"],
            Suite::Stg => &["t_IoU", "v_IoU"],
            Suite::Plot => &["accuracy"],
        }
    }
}

/// What answers are scored against.
#[derive(Clone, Debug)]
pub struct Truth {
    /// The benchmark.
    pub suite: Suite,
    /// Its truth: queries with their answers, for VUE-STG the boxes.
    pub file: PathBuf,
    /// VUE-STG: table of all queries, with their videos.
    pub queries: Option<PathBuf>,
    /// VUE-STG: table of the videos' lengths.
    pub lengths: Option<PathBuf>,
    /// Whether to score what both files have, instead of refusing files that differ in their queries.
    pub partial: bool,
}
