//! What workers of stage-llm tell each other: how each is occupied, which videos it keeps, and jobs that one offers to another.

use serde::{Deserialize, Serialize};

use crate::stage::KeptVideo;
use crate::wire::{Message, version};
use crate::wire_error::{WireError, WireErrorKind};

/// Videos that are told of at most, those that were used last.
pub const MOST_KEPT: usize = 256;
/// Priorities of jobs.
const PRIORITIES: usize = 10;

/// How a worker is, on `workers`: said when that changes, and every second or more often.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerNews {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Name among the replicas of stage-llm.
    pub instance: String,
    /// Whether it has nothing to do and would take any job at once.
    #[serde(default)]
    pub idle: bool,
    /// Whether it wants to hear the news of the others, as one that has just started does.
    #[serde(default)]
    pub asks: bool,
    /// Whether it takes no further job.
    #[serde(default)]
    pub leaves: bool,
    /// Video that it answers about now.
    #[serde(default)]
    pub answers: Option<KeptVideo>,
    /// Videos that it keeps, the last one used first.
    #[serde(default)]
    pub keeps: Vec<KeptVideo>,
    /// Jobs that it has taken from the line and not begun, by priority from 0 to 9.
    #[serde(default)]
    pub held: Vec<u64>,
}

impl Message for WorkerNews {
    fn check(&self) -> Result<(), WireError> {
        let refused = |what: &str| Err(WireError::new(WireErrorKind::Value, what));
        if self.instance.is_empty() {
            return refused("instance is empty");
        }
        if self.held.len() > PRIORITIES {
            return refused("held has a number for each of ten priorities at most");
        }
        if self.keeps.len() > MOST_KEPT {
            return refused("keeps are 256 videos at most");
        }
        Ok(())
    }
}

/// Answer to a job that was offered on `offer.<instance>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferReply {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Whether the job is its own from now on.
    pub taken: bool,
}

impl Message for OfferReply {
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}
