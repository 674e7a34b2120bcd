//! A worker that owns jobs, each in three steps: read and claimed, answered, settled.

use std::sync::Arc;
use std::time::Duration;

use super::clearing::Clearing;
use super::fencing;
use crate::bus::Bus;
use crate::bus::FencingToken;
use crate::run::device::DeviceWatch;
use crate::run::engine::Engine;
use crate::run::inbox::Delivery;
use crate::run::listener::Listener;
use crate::run::service::{Counters, InstanceInfo};
use crate::run::watchdog::Pulse;
use protocol::message::JobId;

/// Worker that owns jobs, shared by the tasks that do its steps. They are in the files of their names.
pub struct Worker<O> {
    pub bus: Bus,
    pub listener: Listener,
    pub engine: Engine<O>,
    pub device: DeviceWatch,
    pub info: InstanceInfo,
    /// Watch over the engine.
    pub pulse: Arc<Pulse>,
    pub counters: Arc<Counters>,
    pub clearing: Clearing,
    /// Bytes of one token on the bus.
    pub token_bytes: u64,
    /// Tokens that pass the layers together at most.
    pub step_tokens: u64,
}

/// Count of the delivery of a job, once it is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Answered, cancelled, given back, or left to another worker.
    Processed,
    /// The job failed here.
    Failed,
}

impl<O> Worker<O> {
    /// Tries that a job still has, this one included. That it was given back to let others go first counts as none.
    pub async fn tries_left(&self, job: &JobId, delivery: &Delivery) -> u64 {
        let most = self.bus.config().max_deliver.max(1) as u64;
        let left = most.saturating_sub(delivery.redeliveries);
        if left > 1 {
            return left;
        }
        (most + self.bus.returned(job).await).saturating_sub(delivery.redeliveries)
    }

    /// Whether a worker may have died of a job: it was delivered more often than it was given back.
    pub async fn is_suspect(&self, job: &JobId, delivery: &Delivery) -> bool {
        delivery.redeliveries > 0 && delivery.redeliveries > self.bus.returned(job).await
    }

    /// Leaves a job to the worker that it was delivered to since; never a failure.
    pub async fn leave(&self, job: &JobId, delivery: Delivery, newer: FencingToken) -> Settled {
        if newer == FencingToken::default() {
            // Nobody owns the job that its id was admitted for since, and this delivery may be all that the line has of that.
            tracing::warn!("job superseded: its events were lost and its id was admitted again, given back");
            // The broker may have delivered it to this worker several times meanwhile, which were no tries of that job.
            self.bus.forgive(job, 1 + self.bus.config().max_deliver.max(1) as u64).await;
            delivery.give_back(Duration::ZERO).await;
            return Settled::Processed;
        }
        tracing::warn!("job superseded: delivered to another worker meanwhile, left to it");
        // Its own delivery of the same message is that worker's to settle; of another message, this one is a duplicate.
        if !fencing::is_of(newer, &delivery) {
            delivery.done().await;
        }
        Settled::Processed
    }
}
