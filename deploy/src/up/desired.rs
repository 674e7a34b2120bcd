//! Desired state of the stages of a supervisor, beside the actual one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use config::Device;
use protocol::error::StageName;
use runtime::bus::events::now_ms;
use tokio::sync::watch;

/// Desired state of every stage on each of its devices: loaded, with its processes, or unloaded, with none. The supervisor's
/// tasks follow it; whoever loads and unloads stages changes it.
#[derive(Clone)]
pub struct Desired(Arc<BTreeMap<(StageName, Device), DesiredStage>>);

/// Desired and actual state of the processes of one stage on one device.
pub struct DesiredStage {
    /// Processes while they are loaded.
    replicas: u64,
    loaded: watch::Sender<bool>,
    /// Processes that run now, those that drain included.
    running: watch::Sender<u64>,
    /// Unix time of the last start of a process, or of the unloading, milliseconds.
    since_ms: AtomicU64,
}

impl Desired {
    /// Desired state of processes that are loaded, each with its stage and device.
    pub fn new(processes: impl IntoIterator<Item = (StageName, Device)>) -> Self {
        let mut all: BTreeMap<_, DesiredStage> = BTreeMap::new();
        for process in processes {
            let unstarted = || DesiredStage {
                replicas: 0,
                loaded: watch::Sender::new(true),
                running: watch::Sender::new(0),
                since_ms: AtomicU64::new(now_ms()),
            };
            all.entry(process).or_insert_with(unstarted).replicas += 1;
        }
        Desired(Arc::new(all))
    }

    /// State of a stage's processes on a device; none of one that was not named to [`new`](Self::new).
    pub fn of(&self, stage: StageName, device: Device) -> Option<&DesiredStage> {
        self.0.get(&(stage, device))
    }

    /// States of a stage's processes, on one device or on all.
    fn on(&self, stage: StageName, device: Option<Device>) -> impl Iterator<Item = &DesiredStage> {
        let meant = move |of: &(StageName, Device)| of.0 == stage && device.is_none_or(|device| of.1 == device);
        self.0.iter().filter(move |(of, _)| meant(of)).map(|(_, state)| state)
    }

    /// Whether this supervisor runs processes of a stage.
    pub fn has(&self, stage: StageName) -> bool {
        self.on(stage, None).next().is_some()
    }

    /// Whether a stage is loaded, somewhere, and the Unix time since when it loads or is unloaded, milliseconds; none of a
    /// stage without processes here.
    pub fn since(&self, stage: StageName) -> Option<(bool, u64)> {
        let states = self.on(stage, None);
        states.map(|state| (*state.loaded.borrow(), state.since_ms.load(Ordering::Relaxed))).max()
    }

    /// Whether a stage has no process that is to run, here.
    pub fn is_unloaded(&self, stage: StageName) -> bool {
        self.on(stage, None).all(|state| !*state.loaded.borrow())
    }

    /// Stages of which some processes are unloaded.
    pub fn unloaded(&self) -> Vec<StageName> {
        let mut stages: Vec<StageName> =
            self.0.iter().filter(|(_, state)| !*state.loaded.borrow()).map(|((stage, _), _)| *stage).collect();
        stages.dedup();
        stages
    }

    /// Loads a stage's processes, on one device or on all; returns how many are started.
    pub fn load(&self, stage: StageName, device: Option<Device>) -> u64 {
        let unloaded = self.on(stage, device).filter(|state| !state.loaded.send_replace(true));
        let started = unloaded.map(|state| {
            state.since_ms.store(now_ms(), Ordering::Relaxed);
            state.replicas
        });
        started.sum()
    }

    /// Unloads a stage's processes, on one device or on all: drains them and waits for their end; returns how many there were.
    pub async fn unload(&self, stage: StageName, device: Option<Device>) -> u64 {
        let mut processes = 0;
        for state in self.on(stage, device) {
            processes += *state.running.borrow();
            state.since_ms.store(now_ms(), Ordering::Relaxed);
            state.loaded.send_replace(false);
        }
        for state in self.on(stage, device) {
            // The sender is part of `self`.
            let _ = state.running.subscribe().wait_for(|&n| n == 0).await;
        }
        processes
    }
}

impl DesiredStage {
    /// Whether the processes are to run, and every change of that.
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

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: [Device; 2] = [Device::Cuda(0), Device::Cuda(1)];

    /// Vision on both GPUs, twice on the second one, and audio on the first.
    fn desired() -> Desired {
        let vision = [GPU[0], GPU[1], GPU[1]].map(|device| (StageName::Vision, device));
        Desired::new(vision.into_iter().chain([(StageName::Audio, GPU[0])]))
    }

    #[tokio::test]
    async fn processes_on_one_device_leave_it_and_come_back_and_the_others_stay() {
        let desired = desired();
        for device in [GPU[0], GPU[1], GPU[1]] {
            desired.of(StageName::Vision, device).unwrap().note_start();
        }
        let ending = {
            let desired = desired.clone();
            tokio::spawn(async move { desired.unload(StageName::Vision, Some(GPU[0])).await })
        };
        let first = desired.of(StageName::Vision, GPU[0]).unwrap();
        first.loaded().wait_for(|&loaded| !loaded).await.unwrap();
        assert!(!ending.is_finished(), "its process has not ended");
        first.note_end();
        assert_eq!(ending.await.unwrap(), 1);
        assert!(*desired.of(StageName::Vision, GPU[1]).unwrap().loaded().borrow());
        assert!(desired.since(StageName::Vision).unwrap().0 && !desired.is_unloaded(StageName::Vision));
        assert_eq!(desired.unloaded(), [StageName::Vision]);
        assert_eq!(desired.load(StageName::Vision, Some(GPU[1])), 0);
        assert_eq!(desired.load(StageName::Vision, None), 1);
        assert!(desired.unloaded().is_empty());
    }

    #[tokio::test]
    async fn what_is_not_here_is_not_waited_for() {
        let desired = desired();
        assert_eq!(desired.unload(StageName::Audio, Some(GPU[1])).await, 0);
        assert_eq!((desired.has(StageName::Fuse), desired.since(StageName::Fuse)), (false, None));
        assert_eq!((desired.unload(StageName::Fuse, None).await, desired.load(StageName::Fuse, None)), (0, 0));
        assert!(desired.is_unloaded(StageName::Fuse) && desired.unloaded().is_empty());
        assert_eq!(desired.unload(StageName::Vision, None).await, 0, "none had started");
        assert!(desired.is_unloaded(StageName::Vision) && !desired.since(StageName::Vision).unwrap().0);
    }
}
