//! Each instance as a NATS service: `nats micro ls`, `info` and `stats` show what it is and how it fares.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::service::{Service, ServiceExt};
use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::checkpoint::Checkpoint;
use super::device::DeviceLost;
use super::peers::FINGERPRINT;
use super::probes;
use super::watchdog::Watchdog;
use super::whereabouts::Whereabouts;
use crate::bus::{Bus, BusError, BusErrorKind, WorkQueue};
use crate::metrics::counts::{self, Levels};
use crate::metrics::listen;
use crate::notify::Notifier;
use config::WatchdogConfig;
use protocol::error::{JobError, StageName};
use protocol::memory;
use protocol::stage::Probe;
use protocol::wire::{self, Encoding};

/// Time between two questions for the queue's depth.
const DEPTH_EVERY: Duration = Duration::from_secs(1);

/// Counters of an instance from its start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages worked off.
    pub processed: AtomicU64,
    /// Messages that failed their job.
    pub failed: AtomicU64,
    /// Messages that could not be read.
    pub unreadable: AtomicU64,
    /// Messages that another delivery had come before.
    pub redelivered: AtomicU64,
    /// Messages dropped because nobody waited for their job.
    pub dropped: AtomicU64,
    /// Messages in flight.
    pub in_flight: AtomicU64,
    /// Microseconds with a message in flight.
    pub busy_us: AtomicU64,
    /// Bytes of messages worked off.
    pub bytes_in: AtomicU64,
    /// Messages waiting in the queue, as last asked.
    pub queue_depth: AtomicU64,
    /// Jobs that workers of stage-llm, this one and the others, have taken from the queue and not begun.
    pub held: AtomicU64,
    /// Error of the last job that failed here.
    pub last_error: Mutex<String>,
}

impl Counters {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts a message, and whether another delivery had come before it.
    pub fn delivered(&self, stage: StageName, redeliveries: u64) {
        if redeliveries > 0 {
            Counters::add(&self.redelivered, 1);
            counts::redelivered(stage);
        }
    }

    /// Notes why a job failed here.
    pub fn note_error(&self, error: &JobError) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = error.to_string();
    }

    /// What waits: in the queue, or taken from it and not begun.
    pub fn waiting(&self) -> u64 {
        self.queue_depth.load(Ordering::Relaxed) + self.held.load(Ordering::Relaxed)
    }
}

/// Status of an instance, as its service statistics have it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Stage of the instance.
    pub stage: StageName,
    /// Name among the stage's replicas.
    pub instance: String,
    /// First part of its subjects; empty in instances of before 2026-11-27.
    #[serde(default)]
    pub prefix: String,
    /// Device that it computes on, `cpu` or `cuda:N`; empty in instances of before 2026-11-27.
    #[serde(default)]
    pub device: String,
    /// Resident bytes now.
    pub used_bytes: u64,
    /// Resident bytes at most.
    pub peak_bytes: u64,
    /// Bytes taken from the system, used or not.
    pub reserved_bytes: u64,
    /// Bytes that it may hold; 0 without a budget.
    pub budget_bytes: u64,
    /// [`Counters::processed`] as of now.
    pub processed: u64,
    /// [`Counters::failed`] as of now.
    pub failed: u64,
    /// Messages of any kind that could not be read.
    pub unreadable: u64,
    /// [`Counters::redelivered`] as of now.
    pub redelivered: u64,
    /// [`Counters::dropped`] as of now.
    pub dropped: u64,
    /// [`Counters::in_flight`] as of now.
    pub in_flight: u64,
    /// [`Counters::busy_us`] as of now.
    pub busy_us: u64,
    /// [`Counters::bytes_in`] as of now.
    pub bytes_in: u64,
    /// [`Counters::waiting`] as of now.
    pub queue_depth: u64,
    /// Times that the broker was lost and found again.
    pub reconnects: u64,
    /// Error of the last job that failed there; empty if none has.
    #[serde(default)]
    pub last_error: String,
    /// Address of its `/metrics`; empty where it has none.
    #[serde(default)]
    pub metrics: String,
}

impl Status {
    fn now(bus: &Bus, stage: StageName, counters: &Counters, device: &str, budget_bytes: u64) -> Self {
        let memory::Usage { used_bytes, peak_bytes, reserved_bytes } = memory::usage();
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        Status {
            stage,
            instance: bus.instance().to_owned(),
            prefix: bus.subjects().prefix().to_owned(),
            device: device.to_owned(),
            used_bytes,
            peak_bytes,
            reserved_bytes,
            budget_bytes,
            processed: get(&counters.processed),
            failed: get(&counters.failed),
            unreadable: get(&counters.unreadable) + bus.unreadable(),
            redelivered: get(&counters.redelivered),
            dropped: get(&counters.dropped),
            in_flight: get(&counters.in_flight),
            busy_us: get(&counters.busy_us),
            bytes_in: get(&counters.bytes_in),
            queue_depth: counters.waiting(),
            reconnects: bus.reconnects(),
            last_error: counters.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            metrics: listen::address().map(|address| address.to_string()).unwrap_or_default(),
        }
    }
}

/// Metadata of an instance that an operator reads; fixed when it starts.
#[derive(Clone, Debug, Default)]
pub struct InstanceInfo {
    /// Checkpoint that it computes with.
    pub checkpoint: Checkpoint,
    /// Family of its model, `9b` or `7b`; empty but of stage-llm.
    pub family: String,
    /// Compute type.
    pub dtype: String,
    /// Device that it computes on, `cpu` or `cuda:N`.
    pub device: String,
    /// Bytes that the instance may hold.
    pub budget_bytes: Option<u64>,
    /// When its engine counts as hung.
    pub watchdog: WatchdogConfig,
    /// Who is told that it is ready, and that it is alive.
    pub notifier: Notifier,
    /// Time that a job waits for the worker that keeps its video, of stage-llm.
    pub affinity_wait: Duration,
    /// Whether its device is lost.
    pub device_lost: DeviceLost,
}

/// Name of a stage's service.
pub fn name_of(stage: StageName) -> String {
    format!("vidi-{stage}")
}

/// Registers this instance: from now on it is found, and counts as ready. It has a `status` endpoint, and with `probe`
/// the one that tells what a file is, watched as the engine is.
///
/// # Errors
/// When the broker refuses the subscriptions.
pub async fn register(
    bus: &Bus,
    stage: StageName,
    info: &InstanceInfo,
    counters: &Arc<Counters>,
    queues: Vec<WorkQueue>,
    probe: Option<(Probe, Option<Whereabouts>, Watchdog)>,
) -> Result<Service, BusError> {
    let refused = |e: async_nats::Error| BusError::new(BusErrorKind::JetStream, format!("service {stage}: {e}"));
    let metadata = HashMap::from([
        ("stage".to_owned(), stage.to_string()),
        ("instance".to_owned(), bus.instance().to_owned()),
        ("prefix".to_owned(), bus.subjects().prefix().to_owned()),
        ("wire".to_owned(), wire::VERSION.to_string()),
        ("model".to_owned(), info.checkpoint.name.clone()),
        (FINGERPRINT.to_owned(), info.checkpoint.fingerprint.clone()),
        ("family".to_owned(), info.family.clone()),
        ("dtype".to_owned(), info.dtype.clone()),
        ("device".to_owned(), info.device.clone()),
        ("budget_bytes".to_owned(), info.budget_bytes.unwrap_or(0).to_string()),
        ("max_payload".to_owned(), bus.client().max_payload().to_string()),
    ]);
    let budget = info.budget_bytes.unwrap_or(0);
    let now = {
        let (on, count, device) = (bus.clone(), counters.clone(), info.device.clone());
        move || Status::now(&on, stage, &count, &device, budget)
    };
    let stats = now.clone();
    let weak = Arc::downgrade(counters);
    let levels =
        |count: Arc<Counters>| Levels { waiting: count.waiting(), in_flight: count.in_flight.load(Ordering::Relaxed) };
    counts::watch(stage, &info.device, budget, move || weak.upgrade().map(levels));
    let service = bus
        .client()
        .service_builder()
        .description(format!("Vidi, stage {stage}"))
        .metadata(metadata)
        .stats_handler(move |_, _| serde_json::to_value(stats()).unwrap_or_default())
        .start(name_of(stage), env!("CARGO_PKG_VERSION"))
        .await
        .map_err(refused)?;
    let mut status = service
        .endpoint_builder()
        .name("status")
        .add(format!("{}.status.{stage}", bus.subjects().prefix()))
        .await
        .map_err(refused)?;
    tokio::spawn(async move {
        while let Some(request) = status.next().await {
            let body = wire::encode_as(Encoding::Json, &now());
            if let Err(error) = request.respond(Ok(body.into())).await {
                tracing::debug!(%error, "status reply failed");
            }
        }
    });
    if let Some((probe, whereabouts, watchdog)) = probe {
        let own = bus.subjects().probe_of(bus.instance());
        let own = service.endpoint_builder().name("probe-here").add(own).await.map_err(refused)?;
        let any = service.endpoint_builder().name("probe").add(bus.subjects().probe()).await.map_err(refused)?;
        tokio::spawn(probes::answer(bus.clone(), [any, own], probe, whereabouts, watchdog));
    }
    let (on, count) = (bus.clone(), counters.clone());
    tokio::spawn(async move {
        loop {
            count.queue_depth.store(waiting(&on, &queues).await, Ordering::Relaxed);
            tokio::time::sleep(DEPTH_EVERY).await;
        }
    });
    info.notifier.ready(&format!("stage-{stage}, instance {}", bus.instance()));
    Ok(service)
}

/// Messages that wait in the queues of one stream.
async fn waiting(bus: &Bus, queues: &[WorkQueue]) -> u64 {
    // Where the stream holds none, one answer says so of all.
    if let [first, _, ..] = queues
        && bus.messages_in(first.stream()).await == Some(0)
    {
        return 0;
    }
    let mut waiting = 0;
    for queue in queues {
        waiting += queue.consumer().get_info().await.map_or(0, |info| info.num_pending);
    }
    waiting
}
