//! Reports of stages to a job's owner while they work: rows done, time and memory.

use serde::{Deserialize, Serialize};

use crate::error::StageName;
use crate::message::Modality;
use crate::wire::{Message, version};
use crate::wire_error::WireError;

/// Rows that a stage has handed on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Modality of the rows.
    pub modality: Modality,
    /// First row, in the unit of the stage's output: frames, windows, feature rows, tokens.
    pub offset: u64,
    /// Number of rows.
    pub rows: u64,
}

/// Report on `report.<job>`; one without rows is a heartbeat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Stage that reports.
    pub stage: StageName,
    /// Name among the stage's replicas.
    pub instance: String,
    /// Rows handed on since the last report.
    pub done: Vec<Done>,
    /// Microseconds of computing since the last report.
    pub busy_us: u64,
    /// Microseconds of waiting for whoever takes the output since the last report.
    pub wait_us: u64,
    /// Time of the report, Unix milliseconds.
    pub at_ms: u64,
    /// Bytes that the process has held at most.
    pub peak_bytes: u64,
    /// Bytes that it may hold; 0 without a budget.
    pub budget_bytes: u64,
}

impl Message for Report {
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}
