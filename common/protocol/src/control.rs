//! Control requests and their replies: cancel and drain, which stages answer; load and unload, which a supervisor answers.

use serde::{Deserialize, Serialize};

use crate::error::StageName;
use crate::job_id::JobId;
use crate::wire::{Message, VERSION, version};
use crate::wire_error::WireError;

/// Body of a control message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ControlRequest {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// `cancel`: which job.
    #[serde(default)]
    pub job: Option<JobId>,
    /// Only instances of this stage.
    #[serde(default)]
    pub stage: Option<StageName>,
    /// `drain`: only this instance.
    #[serde(default)]
    pub instance: Option<String>,
    /// `cancel`: the job has its terminal event; all that is left is to drop its work.
    #[serde(default)]
    pub ended: bool,
}

impl Message for ControlRequest {
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}

/// What one instance did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControlReply {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Who.
    pub stage: StageName,
    /// Which of its replicas.
    pub instance: String,
    /// `cancel`: whether it was working on that job. `drain`: whether it drains.
    pub stopped: bool,
    /// What was wrong with the request, if something was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Message for ControlReply {
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}

/// What a supervisor did at `load` or `unload`. Stages are silent at these: who has no process cannot answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadReply {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Which supervisor.
    pub instance: String,
    /// Stages whose processes were started or ended.
    pub stages: Vec<StageName>,
    /// How many processes that were.
    pub processes: u64,
    /// Milliseconds that it took.
    pub ms: u64,
    /// What was wrong with the request, if something was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl LoadReply {
    /// Of a supervisor that has done nothing yet.
    pub fn new(instance: &str) -> Self {
        LoadReply { v: VERSION, instance: instance.to_owned(), stages: Vec::new(), processes: 0, ms: 0, error: None }
    }
}

impl Message for LoadReply {
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}
