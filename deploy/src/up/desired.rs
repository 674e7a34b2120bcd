//! Desired state of the stages of a supervisor, beside the actual one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use protocol::error::StageName;
use runtime::bus::events::now_ms;
use tokio::sync::watch;

/// Desired state of every stage: loaded, with its processes, or unloaded, with none. The supervisor's tasks follow it;
/// whoever loads and unloads stages changes it.
#[derive(Clone)]
pub struct Desired(Arc<BTreeMap<StageName, DesiredStage>>);

/// Desired and actual state of one stage.
pub struct DesiredStage {
    /// Processes of the stage while it is loaded.
    replicas: u64,
    loaded: watch::Sender<bool>,
    /// Processes that run now, those that drain included.
    running: watch::Sender<u64>,
    /// Unix time of the last start of a process, or of the unloading, milliseconds.
    since_ms: AtomicU64,
}

impl Desired {
    /// Desired state of stages that are loaded, with so many processes each.
    pub fn new(replicas: &[(StageName, usize)]) -> Self {
        let desired = |n: usize| DesiredStage {
            replicas: n as u64,
            loaded: watch::Sender::new(true),
            running: watch::Sender::new(0),
            since_ms: AtomicU64::new(now_ms()),
        };
        Desired(Arc::new(replicas.iter().map(|&(stage, n)| (stage, desired(n))).collect()))
    }

    /// State of a stage; none of one that was not named to [`new`](Self::new).
    pub fn of(&self, stage: StageName) -> Option<&DesiredStage> {
        self.0.get(&stage)
    }

    /// Whether this supervisor runs processes of a stage.
    pub fn has(&self, stage: StageName) -> bool {
        self.0.get(&stage).is_some_and(|e| e.replicas > 0)
    }

    /// Whether a stage is loaded, and the Unix time since when it loads or is unloaded, milliseconds; none of a stage without
    /// processes here.
    pub fn since(&self, stage: StageName) -> Option<(bool, u64)> {
        let state = self.0.get(&stage).filter(|state| state.replicas > 0)?;
        let loaded = *state.loaded.borrow();
        Some((loaded, state.since_ms.load(Ordering::Relaxed)))
    }

    /// Loads a stage; returns how many processes are started.
    pub fn load(&self, stage: StageName) -> u64 {
        let Some(state) = self.0.get(&stage) else { return 0 };
        if state.loaded.send_replace(true) {
            return 0;
        }
        state.since_ms.store(now_ms(), Ordering::Relaxed);
        state.replicas
    }

    /// Unloads a stage: drains its processes and waits for their end; returns how many there were.
    pub async fn unload(&self, stage: StageName) -> u64 {
        let Some(state) = self.0.get(&stage) else { return 0 };
        let processes = *state.running.borrow();
        state.since_ms.store(now_ms(), Ordering::Relaxed);
        state.loaded.send_replace(false);
        // The sender is part of `self`.
        let _ = state.running.subscribe().wait_for(|&n| n == 0).await;
        processes
    }
}

impl DesiredStage {
    /// Whether the stage is to have processes, and every change of that.
    pub fn loaded(&self) -> watch::Receiver<bool> {
        self.loaded.subscribe()
    }

    /// Notes that a process started.
    pub fn note_start(&self) {
        self.since_ms.store(now_ms(), Ordering::Relaxed);
        self.running.send_modify(|n| *n += 1);
    }

    /// Notes that a process ended.
    pub fn note_end(&self) {
        self.running.send_modify(|n| *n -= 1);
    }
}
