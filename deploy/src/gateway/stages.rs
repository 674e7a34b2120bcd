//! What is known of the stages' processes, besides which of them answer: from the supervisor where it is in this process, else from
//! what was loaded and unloaded through this gateway.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use protocol::error::StageName;
use runtime::bus::events::now_ms;
use serde::Serialize;

use crate::up::desired::Desired;

/// State of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// It has its model, and takes work.
    Ready,
    /// Its process started, and does not take work yet.
    Loading,
    /// It has no process, and gets one with the next job, or when it is loaded.
    Unloaded,
    /// It does not answer, and nobody here knows of a process.
    Missing,
}

impl Condition {
    /// Every state.
    pub const ALL: [Condition; 4] = [Condition::Ready, Condition::Loading, Condition::Unloaded, Condition::Missing];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Condition::Ready => "ready",
            Condition::Loading => "loading",
            Condition::Unloaded => "unloaded",
            Condition::Missing => "missing",
        }
    }
}

/// State of a stage, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StageState {
    /// The state.
    pub state: Condition,
    /// Unix time since when it loads or is unloaded, milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
}

/// Sources of what is known.
pub struct Stages {
    desired: Option<Desired>,
    /// Whether a stage was loaded through this gateway last, or unloaded, and when.
    told: Mutex<BTreeMap<StageName, (bool, u64)>>,
}

impl Stages {
    /// Stages of a supervisor in this process, if there is one.
    pub fn new(desired: Option<Desired>) -> Self {
        Stages { desired, told: Mutex::default() }
    }

    /// Notes what a supervisor elsewhere did at this gateway's word.
    pub fn note(&self, stages: &[StageName], loaded: bool) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.extend(stages.iter().map(|&stage| (stage, (loaded, now_ms()))));
    }

    /// State of a stage that answers, or does not.
    pub fn state(&self, stage: StageName, answers: bool) -> StageState {
        let supervised = self.desired.as_ref().and_then(|desired| desired.since(stage));
        let told = || self.told.lock().unwrap_or_else(PoisonError::into_inner).get(&stage).copied();
        match (answers, supervised.or_else(told)) {
            // One that is unloaded drains, and answers until its end.
            (true, Some((false, at_ms))) if supervised.is_some() => {
                StageState { state: Condition::Unloaded, since_ms: Some(at_ms) }
            }
            (true, _) => StageState { state: Condition::Ready, since_ms: None },
            (false, Some((true, at_ms))) => StageState { state: Condition::Loading, since_ms: Some(at_ms) },
            (false, Some((false, at_ms))) => StageState { state: Condition::Unloaded, since_ms: Some(at_ms) },
            (false, None) => StageState { state: Condition::Missing, since_ms: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_does_not_answer_is_missing_unless_it_was_loaded_or_unloaded_here() {
        let stages = Stages::new(None);
        let state = |answers| stages.state(StageName::Llm, answers).state;
        assert_eq!((state(true), state(false)), (Condition::Ready, Condition::Missing));
        stages.note(&[StageName::Llm], false);
        // Whoever has work for it may have loaded it meanwhile.
        assert_eq!((state(true), state(false)), (Condition::Ready, Condition::Unloaded));
        stages.note(&[StageName::Llm], true);
        assert_eq!((state(true), state(false)), (Condition::Ready, Condition::Loading));
        assert!(stages.state(StageName::Llm, false).since_ms.is_some_and(|at| at > 0));
    }
}
