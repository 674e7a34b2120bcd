//! stage-llm's side of the loop: it takes jobs from the queue, owns each until it has its terminal event, and ends it.
//!
//! In reading order: this file, [`worker`] (a job in three steps), [`fencing`] (which owner is newer), [`claim`] (a job is
//! read and claimed), [`answer`] (it is taken up, and what came of it told), with [`course`] (how long that took), [`settle`] (it is ended or given back),
//! [`clearing`] (what it leaves behind is dropped), [`port`] (what the engine's
//! thread asks of the bus), with [`probe`], [`capacity`], [`asked`], [`text`], [`missing`] (which part of a video to ask for
//! again) and [`lost`] (whether the broker has lost some), [`state`] (what is known of a job while it is owned), [`progress`] (how far each stage is). Several jobs in one worker:
//! [`held`] (those that wait there, in order), [`company`] (those that the engine may take beside others), [`others`] (how the
//! other workers are), [`offers`] (jobs that one hands to another), [`desk`] (the loop).

mod answer;
mod asked;
mod capacity;
mod claim;
mod clearing;
mod company;
mod course;
mod desk;
mod fencing;
mod held;
mod lost;
mod missing;
mod offers;
mod others;
mod port;
mod probe;
mod progress;
mod renewal;
mod settle;
mod state;
mod text;
mod worker;

use std::sync::Arc;

use super::Ended;
use super::admission;
use super::deadlines;
use super::device::DeviceWatch;
use super::engine::Engine;
use super::expiry::expire;
use super::line::Line;
use super::listener::Listener;
use super::losses::{self, Roll};
use super::peers;
use super::rescue::rescue;
use super::service::{self, Counters, InstanceInfo};
use super::shutdown::Shutdown;
use super::sweep::sweep;
use super::watchdog::Watchdog;
use crate::bus::Bus;
use crate::metrics::counts;
use clearing::Clearing;
use desk::Desk;
pub use probe::media_info;
use protocol::error::StageName;
use protocol::stage::Owner;
use worker::Worker;

/// Runs stage-llm until `shutdown`.
///
/// # Errors
/// [`Ended::Bus`] when the queues cannot be set up, or other processes of the pipeline [differ](peers::check); later trouble of that
/// kind is waited out. [`Ended::Device`] when its device was lost.
pub async fn run<O>(bus: Bus, owner: O, info: InstanceInfo, shutdown: Shutdown) -> Result<(), Ended>
where
    O: Owner + Send + 'static,
{
    peers::check(&bus, &info.checkpoint).await?;
    bus.ensure_streams().await?;
    // From now on events are dated by the broker's clock.
    bus.broker_ms().await;
    let listener = Listener::start(&bus, StageName::Llm, shutdown).await?;
    let line = Line::open(&bus).await?;
    let roll = Roll::default();
    let registry = listener.registry().clone();
    admission::start(&bus, line.clone(), roll.clone(), registry.clone(), listener.shutdown()).await?;
    tokio::spawn(losses::watch(bus.clone(), line.clone(), roll, registry, listener.shutdown()));
    tokio::spawn(expire(bus.clone(), listener.shutdown()));
    tokio::spawn(deadlines::watch(bus.clone(), listener.shutdown()));
    tokio::spawn(sweep(bus.clone(), listener.shutdown()));
    tokio::spawn(rescue(bus.clone(), listener.shutdown()));
    let (token_bytes, step_tokens) = (owner.token_bytes(), owner.step_tokens());
    let info = InstanceInfo { family: owner.family().to_owned(), ..info };
    let pulse = Arc::new(Watchdog::start(StageName::Llm, &info.watchdog, &info.notifier).watch("no job".to_owned()));
    pulse.pause();
    let (in_memory, on_disk) = owner.kept();
    counts::kept(in_memory, on_disk);
    counts::know_tasks(owner.tasks());
    let engine = Engine::start("llm", owner);
    let counters = Arc::new(Counters::default());
    let service = service::register(&bus, StageName::Llm, &info, &counters, line.queues(), None).await?;
    tracing::info!(stage = "llm", instance = bus.instance(), "ready");
    let draining = listener.shutdown();
    let clearing = Clearing::default();
    let device = DeviceWatch::new(info.device_lost.clone(), listener.draining());
    let worker = Worker {
        bus,
        listener,
        engine,
        device: device.clone(),
        info,
        pulse,
        counters,
        clearing,
        token_bytes,
        step_tokens,
    };
    let worker = Desk::new(worker, line).run(draining).await?;
    // A service that was never asked anything has nobody to tell.
    let _ = service.stop().await;
    if let Some(Worker { clearing, engine, listener, .. }) = worker {
        clearing.end().await;
        // It may have keys and values to write to a disk.
        engine.end().await;
        listener.drained().await;
    }
    tracing::info!(stage = "llm", "drained");
    device.lost().map_or(Ok(()), |lost| Err(Ended::Device(lost.to_owned())))
}
