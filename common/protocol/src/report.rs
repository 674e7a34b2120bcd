//! What stages tell a job's owner while they work: rows done, time and memory.

use serde::{Deserialize, Serialize};

use crate::error::StageName;
use crate::message::Modality;
use crate::wire::{Message, version};
use crate::wire_error::WireError;

/// Rows that a stage has handed on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Half of the plan.
    pub modality: Modality,
    /// First row, in the unit of the stage's output: frames, windows, feature rows, tokens.
    pub offset: u64,
    /// Rows.
    pub rows: u64,
}

/// One report on `report.<job>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Who.
    pub stage: StageName,
    /// Which of its replicas.
    pub instance: String,
    /// Since the last report.
    pub done: Vec<Done>,
    /// Microseconds of computing since the last report.
    pub busy_us: u64,
    /// Microseconds of waiting for whoever takes the output since the last report.
    pub wait_us: u64,
    /// Unix milliseconds now.
    pub at_ms: u64,
    /// The most that the process has held.
    pub peak_bytes: u64,
    /// What it may hold; 0 without a budget.
    pub budget_bytes: u64,
}

impl Message for Report {
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}
