//! Control requests and their replies: cancel and drain, which stages answer; load and unload, which a supervisor answers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::StageName;
use crate::job_id::JobId;
use crate::wire::{Message, VERSION, version};
use crate::wire_error::WireError;

/// Verb of a control message, the last part of its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Drop a job's work: every stage.
    Cancel,
    /// Take no further message, and leave: the instance or stage that the request names.
    Drain,
    /// Start the processes of a stage: a supervisor.
    Load,
    /// End the processes of a stage: a supervisor.
    Unload,
}

impl Verb {
    /// Every verb.
    pub const ALL: [Verb; 4] = [Verb::Cancel, Verb::Drain, Verb::Load, Verb::Unload];

    /// Verb as it is written in a subject.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Cancel => "cancel",
            Verb::Drain => "drain",
            Verb::Load => "load",
            Verb::Unload => "unload",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Verb {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let known = Verb::ALL.into_iter().find(|v| v.as_str() == s);
        known.ok_or_else(|| format!("no verb {s:?}; there are cancel, drain, load, unload"))
    }
}

/// Body of a control message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ControlRequest {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Job to drop, for `cancel`.
    #[serde(default)]
    pub job: Option<JobId>,
    /// Stage whose instances alone are meant.
    #[serde(default)]
    pub stage: Option<StageName>,
    /// Device (`cuda:0`, `cpu`) whose processes of the stage alone are meant, for `load` and `unload`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Instance that alone is meant, for `drain`.
    #[serde(default)]
    pub instance: Option<String>,
    /// Whether the job has its terminal event, for `cancel`: all that is left is to drop its work.
    #[serde(default)]
    pub ended: bool,
}

impl Message for ControlRequest {
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}

/// Reply of one instance to a control message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControlReply {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Stage that replies.
    pub stage: StageName,
    /// Name among the stage's replicas.
    pub instance: String,
    /// Whether it was working on that job, for `cancel`; whether it drains, for `drain`.
    pub stopped: bool,
    /// Fault of the request, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Message for ControlReply {
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}

/// Reply of a supervisor to `load` or `unload`. Stages are silent at these: who has no process cannot answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadReply {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Name of the supervisor.
    pub instance: String,
    /// Stages whose processes were started or ended.
    pub stages: Vec<StageName>,
    /// Number of those processes.
    pub processes: u64,
    /// Milliseconds that it took.
    pub ms: u64,
    /// Fault of the request, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl LoadReply {
    /// Reply of a supervisor that has done nothing yet.
    pub fn new(instance: &str) -> Self {
        LoadReply { v: VERSION, instance: instance.to_owned(), stages: Vec::new(), processes: 0, ms: 0, error: None }
    }
}

impl Message for LoadReply {
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}
