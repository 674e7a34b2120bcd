//! The loop of a stage between its work queue and the next.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tracing::Instrument;

use super::Ended;
use super::allowance::{Allowance, Share};
use super::checkpoint::Checkpoint;
use super::control::broadcast_end;
use super::dead::bury;
use super::device::DeviceWatch;
use super::engine::Engine;
use super::handover::{Elsewhere, Handover};
use super::inbox::{Delivery, Inbox, Prefetch};
use super::listener::Listener;
use super::pass::{self, Member};
use super::peers;
use super::port::{BusPort, Origin, Outlet};
use super::service::{self, Counters, InstanceInfo};
use super::shutdown::{self, Shutdown};
use super::taking::{self, Intake, Taken};
use super::watchdog::{Pulse, Watchdog};
use super::whereabouts;
use crate::bus::events::EventLog;
use crate::bus::{Attempt, Bus, Role};
use crate::metrics::counts;
use crate::objects::Fetching;
use crate::subject::StreamName;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::event::Event;
use protocol::message::JobId;
use protocol::stage::{Stage, Stop};

/// Outputs on their way to the broker at a time, of all messages in flight: so many of the largest size, to bound memory.
const SENDING: usize = 4;
/// Broker trouble while a stage starts is waited out for so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a stage between its work queue and the next until `shutdown`.
///
/// # Errors
/// [`Ended::Bus`] when the queue cannot be set up, or other processes of the pipeline [differ](peers::check); later trouble of that
/// kind is waited out. [`Ended::Device`] when the stage's device was lost.
pub async fn run<S>(bus: Bus, mut stage: S, info: InstanceInfo, shutdown: Shutdown) -> Result<(), Ended>
where
    S: Stage + Send + 'static,
    for<'a> S::Input<'a>: Deserialize<'a>,
{
    peers::check(&bus, &info.checkpoint).await?;
    let stream = StreamName::input_of(S::NAME);
    let mut stopping = shutdown.clone();
    tokio::select! {
        there = bus.await_stream(stream) => there?,
        () = shutdown::begun(&mut stopping) => return Ok(()),
    }
    let bus = bus.with_outlet(Role::Stage(S::NAME), PATIENCE).await?;
    let queue = tokio::select! {
        queue = bus.work_queue(stream, S::NAME.as_str()) => queue?,
        () = shutdown::begun(&mut stopping) => return Ok(()),
    };
    let listener = Listener::start(&bus, S::NAME, shutdown.clone()).await?;
    let watchdog = Watchdog::start(S::NAME, &info.watchdog, &info.notifier);
    stage.use_source(Arc::new(Fetching::new(&bus)));
    let elsewhere = Elsewhere::start(&bus, stage.files(), listener.shutdown()).await?;
    let probe = stage.probe().map(|probe| (probe, elsewhere.whereabouts.clone(), watchdog.clone()));
    let together = stage.together().max(1);
    let engine = Engine::start(S::NAME.as_str(), stage);
    let counters = Arc::new(Counters::default());
    let service = service::register(&bus, S::NAME, &info, &counters, vec![queue.clone()], probe).await?;
    let prefetch = if together > 1 { Prefetch { units: together, of: pass::units::<S> } } else { Prefetch::ONE };
    let inbox = Inbox::start(&bus, queue, elsewhere.handed, listener.shutdown(), prefetch);
    let (allowance, steps) = (taking::allowance(&bus, together), taking::steps(together));
    let outlet = Outlet::new(Allowance::new(SENDING * bus.config().message_bytes), info.budget_bytes);
    let (checkpoint, handover) = (info.checkpoint.clone(), elsewhere.handover);
    let device = DeviceWatch::new(info.device_lost.clone(), listener.draining());
    let worker =
        Worker { bus: bus.clone(), counters: counters.clone(), outlet, watchdog, checkpoint, handover, device };
    let mut intake = Intake { stage: S::NAME, bus: bus.clone(), inbox, listener, counters, allowance, steps, together };
    let mut settling = JoinSet::new();
    tracing::info!(stage = %S::NAME, instance = bus.instance(), "ready");
    while let Some(first) = intake.next().await {
        // One that was delivered before may kill this process: then nobody else's message is in flight.
        while first.delivery.redeliveries > 0 && !settling.is_empty() {
            settled(settling.join_next().await);
        }
        while let Some(outcome) = settling.try_join_next() {
            settled(Some(outcome));
        }
        let taken = intake.take(first).await;
        for (taken, computed) in worker.compute(&engine, taken).await {
            let span = taken.span.clone();
            settling.spawn(worker.clone().settle::<S>(taken, computed).instrument(span));
        }
    }
    while !settling.is_empty() {
        settled(settling.join_next().await);
    }
    if let Some(handover) = &worker.handover {
        handover.ended().await;
    }
    // A service that was never asked anything has nobody to tell.
    let _ = service.stop().await;
    intake.listener.drained().await;
    tracing::info!(stage = %S::NAME, "drained");
    worker.device.lost().map_or(Ok(()), |lost| Err(Ended::Device(lost.to_owned())))
}

/// Reports a settling that panicked; its message comes again.
fn settled(outcome: Option<Result<(), JoinError>>) {
    if let Some(Err(panicked)) = outcome {
        tracing::error!(%panicked, "settling a message panicked, it comes again. This is a bug.");
    }
}

/// Names the work on messages to the watchdog.
fn named(taken: &[Taken]) -> String {
    let jobs: Vec<&str> = taken.iter().map(|taken| taken.job.as_str()).collect();
    match jobs.as_slice() {
        [job] => format!("a message of job {job}"),
        jobs => format!("messages of jobs {}", jobs.join(", ")),
    }
}

/// Message that the engine is done with: its outputs are on their way.
struct Computed {
    port: BusPort,
    /// Heartbeats, until all outputs are stored.
    heartbeat: JoinHandle<()>,
}

/// Work on messages, but for computing.
#[derive(Clone)]
struct Worker {
    bus: Bus,
    counters: Arc<Counters>,
    outlet: Outlet,
    watchdog: Watchdog,
    checkpoint: Checkpoint,
    /// Way of messages whose file is not here; none where no message has a file.
    handover: Option<Arc<Handover>>,
    device: DeviceWatch,
}

impl Worker {
    /// Computes messages together on the engine's thread: each with its outcome.
    async fn compute<S>(&self, engine: &Engine<S>, taken: Vec<Taken>) -> Vec<(Taken, Result<Computed, Stop>)>
    where
        S: Stage + Send + 'static,
        for<'a> S::Input<'a>: Deserialize<'a>,
    {
        let started = Instant::now();
        // Watched until the engine's thread has said that it is done: a step on one message is one on all.
        let pulse = Arc::new(self.watchdog.watch(named(&taken)));
        let (mut outcomes, mut begun, mut members) = (Vec::new(), Vec::new(), Vec::new());
        for mut taken in taken {
            let step = taken.step.take();
            match taken.span.in_scope(|| self.begin(S::NAME, &taken, step, &pulse)) {
                Ok(member) => {
                    begun.push((taken, member.port.heartbeat()));
                    members.push(member);
                }
                Err(stop) => outcomes.push((taken, Err(stop))),
            }
        }
        let Some((first, _)) = begun.first() else { return outcomes };
        Counters::add(&self.counters.in_flight, begun.len() as u64);
        let run = engine.run(move |stage| Ok(pass::compute(stage, members)));
        let computed = run.instrument(first.span.clone()).await;
        drop(pulse);
        let computed = computed.unwrap_or_else(|stop| begun.iter().map(|_| Err(stop.clone())).collect());
        let each = started.elapsed() / begun.len() as u32;
        for ((taken, heartbeat), computed) in begun.into_iter().zip(computed) {
            if computed.is_err() {
                self.counters.in_flight.fetch_sub(1, Ordering::Relaxed);
                Counters::add(&self.counters.busy_us, each.as_micros() as u64);
                heartbeat.abort();
            }
            outcomes.push((taken, computed.map(|port| Computed { port, heartbeat })));
        }
        outcomes
    }

    /// Begins with a message, unless it killed too many workers or is of another checkpoint.
    fn begin(
        &self,
        stage: StageName,
        taken: &Taken,
        step: Option<Arc<Share>>,
        pulse: &Arc<Pulse>,
    ) -> Result<Member<BusPort>, Stop> {
        let Taken { job, delivery, in_flight, .. } = taken;
        if delivery.exhausted(self.bus.config().max_deliver) {
            let tried = delivery.redeliveries;
            let text =
                format!("{tried} workers took the message and neither finished nor gave it back: they died of it");
            return Err(Stop::Failed(JobError::new(ErrorKind::PoisonMessage, text)));
        }
        let headers = delivery.message.headers.as_ref();
        self.checkpoint.check(headers, self.bus.instance())?;
        let (bus, outlet, end) = (self.bus.clone(), self.outlet.clone(), in_flight.end().clone());
        let origin = Origin { attempt: Attempt::of(headers), checkpoint: self.checkpoint.or(Checkpoint::of(headers)) };
        let watch = (pulse.clone(), self.watchdog.clone());
        let port = BusPort::new(bus, outlet, stage, job.clone(), origin, end, watch).in_step(step);
        Ok(Member { body: delivery.message.payload.clone(), job: job.clone(), port })
    }

    /// Settles a message: acknowledged once its outputs are stored, given back, or buried with its job failed.
    async fn settle<S: Stage + 'static>(self, taken: Taken, computed: Result<Computed, Stop>) {
        if let (Err(Stop::Failed(error)), Some(handover)) = (&computed, &self.handover)
            && whereabouts::is_about_the_place(error.kind)
        {
            let (handover, error) = (handover.clone(), error.clone());
            // Not among what the next message may have to wait for.
            tokio::spawn(self.place::<S>(handover, taken, error).in_current_span());
            return;
        }
        let Worker { bus, counters, .. } = &self;
        let Taken { job, delivery, in_flight, share: _share, .. } = taken;
        let outcome = match computed {
            Ok(Computed { port, heartbeat }) => {
                let stored = port.stored().await;
                counters.in_flight.fetch_sub(1, Ordering::Relaxed);
                heartbeat.abort();
                stored.map(|computed| {
                    Counters::add(&counters.busy_us, computed.as_micros() as u64);
                    counts::batch(S::NAME, computed);
                })
            }
            Err(stop) => Err(stop),
        };
        let outcome = self.device.judge(outcome).await;
        if in_flight.end().is_set() {
            // The job ended while its outputs were on their way: whoever cleared up behind it may have come too early.
            bus.purge_outputs(S::NAME, &job).await;
        }
        drop(in_flight);
        let error = match outcome {
            Ok(()) => {
                Counters::add(&counters.processed, 1);
                Counters::add(&counters.bytes_in, delivery.message.payload.len() as u64);
                return delivery.done().await;
            }
            Err(Stop::Cancelled) => {
                Counters::add(&counters.dropped, 1);
                return delivery.done().await;
            }
            Err(Stop::Unavailable(why)) if !delivery.last_try => {
                tracing::warn!(why, "message given back, to be tried again");
                return delivery.retry_later().await;
            }
            Err(Stop::Unavailable(why)) => {
                let tried = delivery.redeliveries + 1;
                JobError::new(ErrorKind::PoisonMessage, format!("given up after {tried} tries: {why}"))
            }
            Err(Stop::Failed(error)) => error,
        };
        self.fail::<S>(&job, delivery, error).await;
    }

    /// Finds another instance for a message whose file is not here; its job fails where nobody has it.
    async fn place<S: Stage>(self, handover: Arc<Handover>, taken: Taken, error: JobError) {
        let Taken { job, delivery, in_flight, share, .. } = taken;
        drop(share);
        let nowhere = handover.place(delivery, in_flight.end(), error).await;
        drop(in_flight);
        if let Some((delivery, error)) = nowhere {
            self.fail::<S>(&job, delivery, error).await;
        }
    }

    /// Fails the job of a message, which leaves its queue.
    async fn fail<S: Stage>(&self, job: &JobId, delivery: Delivery, error: JobError) {
        let Worker { bus, counters, .. } = self;
        let error = error.at(S::NAME);
        tracing::error!(%error, "job failed");
        Counters::add(&counters.failed, 1);
        counters.note_error(&error);
        if error.kind == ErrorKind::PoisonMessage {
            Counters::add(&counters.unreadable, u64::from(delivery.redeliveries == 0));
            bury(bus, S::NAME, Some(job), &delivery, &error).await;
        }
        fail(bus, job, error).await;
        delivery.done().await;
    }
}

/// Ends a job with `failed`, unless it has ended, and tells every stage to drop it; its owner clears up behind it. A job
/// that nobody has heard of gets no event: a stray message must not make one up.
async fn fail(bus: &Bus, job: &JobId, error: JobError) {
    let mut log = EventLog::open(bus, job).await;
    if log.last().is_none() {
        return;
    }
    if log.append(Event::Failed { error }).await.is_ok() {
        broadcast_end(bus, job).await;
    }
}
