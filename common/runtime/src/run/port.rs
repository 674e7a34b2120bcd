//! What a stage's outputs pass through: cut to size, stored by the broker, a few at a time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

use super::allowance::{Allowance, Share};
use super::checkpoint::Checkpoint;
use super::job_end::EndSignal;
use super::pass::Outward;
use super::report::Reporter;
use super::watchdog::{Pulse, Watchdog};
use crate::bus::{Attempt, Bus};
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::{JobId, Output};
use protocol::stage::{Later, Port, Stop};

/// Time when a stage last came to the end of a message. Messages may overlap on a device; the time that they take is
/// told once.
#[derive(Clone)]
struct Lap(Arc<Mutex<Instant>>);

impl Lap {
    /// Time of the stage that a message has taken which was begun at `started` and is computed now.
    fn end(&self, started: Instant) -> Duration {
        let mut last = self.0.lock().expect("no holder panics. This is a bug.");
        let begun = started.max(*last);
        *last = Instant::now();
        last.duration_since(begun)
    }
}

/// Way out that the messages of a stage share.
#[derive(Clone)]
pub struct Outlet {
    /// Bytes on their way to the broker.
    sending: Allowance,
    lap: Lap,
    budget_bytes: Option<u64>,
}

impl Outlet {
    /// Outlet of a stage with so many bytes at most on their way, and a budget, if it has one.
    pub fn new(sending: Allowance, budget_bytes: Option<u64>) -> Self {
        Outlet { sending, lap: Lap(Arc::new(Mutex::new(Instant::now()))), budget_bytes }
    }
}

/// What the outputs of a message have of it.
pub struct Origin {
    /// Attempt that the message belongs to: its outputs belong to the same.
    pub attempt: Attempt,
    /// Checkpoint that they are made with, or for.
    pub checkpoint: Checkpoint,
}

impl Origin {
    /// Headers of every output.
    pub fn headers(&self, job: &JobId) -> HeaderMap {
        let mut headers = self.attempt.headers(job);
        self.checkpoint.note(&mut headers);
        headers
    }
}

/// [`Port`] onto the bus, for the engine's thread.
pub struct BusPort {
    bus: Bus,
    outlet: Outlet,
    runtime: Handle,
    /// What the outputs have of the input.
    origin: Origin,
    /// Headers of every output.
    headers: Arc<HeaderMap>,
    /// Signal that its job has come to its end.
    end: EndSignal,
    /// Turns true once this message's outputs are wanted no more, though its job's others are.
    giving_up: watch::Sender<bool>,
    in_flight: VecDeque<JoinHandle<Result<(), Stop>>>,
    /// Outputs that are still on their way from a device.
    later: Vec<Later>,
    /// Time that computing took; none before it is over.
    computed: Option<Duration>,
    reporter: Reporter,
    started: Instant,
    waited: Duration,
    /// Watch over the engine's work; none once the engine is done with the message.
    pulse: Option<Arc<Pulse>>,
    watchdog: Watchdog,
    /// Units of work of a step.
    units: u64,
    /// Held while a device may still compute the message, by all that are computed together.
    step: Option<Arc<Share>>,
}

impl BusPort {
    /// Port for one input message, whose work on the engine `pulse` watches.
    pub fn new(
        bus: Bus,
        outlet: Outlet,
        stage: StageName,
        job: JobId,
        origin: Origin,
        end: EndSignal,
        (pulse, watchdog): (Arc<Pulse>, Watchdog),
    ) -> Self {
        let headers = Arc::new(origin.headers(&job));
        let reporter = Reporter::new(bus.clone(), stage, job, outlet.budget_bytes);
        BusPort {
            bus,
            outlet,
            runtime: Handle::current(),
            origin,
            headers,
            end,
            giving_up: watch::Sender::new(false),
            in_flight: VecDeque::new(),
            later: Vec::new(),
            computed: None,
            reporter,
            started: Instant::now(),
            waited: Duration::ZERO,
            pulse: Some(pulse),
            watchdog,
            units: 0,
            step: None,
        }
    }

    /// The same as part of a step, held until the device is done with the message.
    pub fn in_step(self, step: Option<Arc<Share>>) -> Self {
        BusPort { step, ..self }
    }

    /// Begins the next step of the work.
    fn step(&self) {
        if let Some(pulse) = &self.pulse {
            pulse.step();
        }
    }

    /// Waits for the broker, which is no step of the work.
    fn outside<T>(&self, future: impl Future<Output = T>) -> T {
        outside(self.pulse.as_deref(), &self.runtime, future)
    }

    /// Tells the owner every now and then that this message is being worked on, until aborted.
    pub fn heartbeat(&self) -> JoinHandle<()> {
        self.reporter.heartbeat()
    }

    /// Waits for what is on its way from a device and hands it on.
    fn fetch(&mut self) -> Result<(), Stop> {
        let pulse = self.watchdog.watch(format!("a message of job {} that the device computes", self.reporter.job()));
        pulse.sized(self.units);
        self.pulse = Some(Arc::new(pulse));
        let mut left = self.later.len();
        let outcome = std::mem::take(&mut self.later).into_iter().try_for_each(|later| {
            left -= 1;
            later.emit(&mut |output| {
                if left == 0 {
                    // The last rows have come: the device is free, though the broker may be behind.
                    self.step = None;
                }
                self.emit(output)
            })
        });
        match &outcome {
            Ok(()) => self.computed(),
            Err(_) => self.give_up(),
        }
        outcome
    }

    /// Waits until the broker has every output of a message, tells the owner, and gives the time that computing took.
    /// The engine may compute meanwhile.
    ///
    /// # Errors
    /// The first output's that could not be made or stored.
    pub async fn stored(mut self) -> Result<Duration, Stop> {
        if !self.later.is_empty() {
            let fetching = tokio::task::spawn_blocking(move || self.fetch().map(|()| self));
            self =
                fetching.await.unwrap_or_else(|e| Err(Stop::Unavailable(format!("fetching outputs panicked: {e}"))))?;
        }
        let computed = self.computed.unwrap_or_default();
        let mut outcome = Ok(());
        for sending in std::mem::take(&mut self.in_flight) {
            outcome = outcome.and(sent(sending.await));
        }
        outcome?;
        self.reporter.tell(computed, self.waited).await;
        Ok(computed)
    }

    fn settle_first(&mut self) -> Result<(), Stop> {
        let Some(sending) = self.in_flight.pop_front() else { return Ok(()) };
        sent(self.outside(sending))
    }
}

fn outside<T>(pulse: Option<&Pulse>, runtime: &Handle, future: impl Future<Output = T>) -> T {
    match pulse {
        Some(pulse) => pulse.outside(runtime, future),
        None => runtime.block_on(future),
    }
}

fn sent(outcome: Result<Result<(), Stop>, JoinError>) -> Result<(), Stop> {
    outcome.unwrap_or_else(|e| Err(Stop::Unavailable(format!("sending an output panicked: {e}"))))
}

impl BusPort {
    /// Cuts an output to size and sends its parts; waits while too many bytes are on their way.
    fn send(&mut self, output: &Output<'_>) -> Result<(), Stop> {
        let subject = self.bus.subjects().output(output);
        let bodies = output.encode(self.bus.max_body()).map_err(|e| {
            JobError::new(ErrorKind::Internal, e.to_string())
                .hint("raise max_payload in the server's configuration (deploy/nats.conf sets 8 MB)")
        })?;
        for (id, body) in bodies {
            while self.in_flight.front().is_some_and(JoinHandle::is_finished) {
                self.settle_first()?;
            }
            let since = Instant::now();
            let share = self.outside(async {
                tokio::select! {
                    biased;
                    () = self.end.wait() => None,
                    share = self.outlet.sending.take(body.len()) => Some(share),
                }
            });
            self.waited += since.elapsed();
            let Some(share) = share else { return Err(Stop::Cancelled) };
            let (bus, subject, end) = (self.bus.clone(), subject.clone(), self.end.clone());
            let (id, headers, giving_up) = (self.origin.attempt.id(id), self.headers.clone(), self.giving_up.clone());
            self.in_flight.push_back(self.runtime.spawn(async move {
                let mut given_up = giving_up.subscribe();
                let unwanted = async {
                    tokio::select! {
                        () = end.wait() => {}
                        // The sender is held above: the channel stays open.
                        _ = given_up.wait_for(|&g| g) => {}
                    }
                };
                let stored = bus.store(subject, &id, &headers, Bytes::from(body), unwanted).await;
                drop(share);
                stored.map(drop)
            }));
        }
        self.reporter.add(output);
        if self.reporter.is_due() {
            let told = self.reporter.tell(self.started.elapsed(), self.waited);
            outside(self.pulse.as_deref(), &self.runtime, told);
        }
        Ok(())
    }
}

impl Port for BusPort {
    fn emit(&mut self, output: Output<'_>) -> Result<(), Stop> {
        self.step();
        let sent = self.send(&output);
        self.step();
        sent
    }

    fn emit_later(&mut self, later: Later) -> Result<(), Stop> {
        self.later.push(later);
        Ok(())
    }

    fn cancelled(&self) -> bool {
        self.step();
        self.end.is_set()
    }
}

impl Outward for BusPort {
    fn sized(&mut self, units: u64) {
        self.units = units;
        if let Some(pulse) = &self.pulse {
            pulse.sized(units);
        }
    }

    /// What was handed on already has the same ids when it comes again.
    fn again(&mut self) {
        self.later.clear();
    }

    /// What is still on its way from a device is not done.
    fn computed(&mut self) {
        self.pulse = None;
        if self.later.is_empty() {
            self.computed = Some(self.outlet.lap.end(self.started));
            self.step = None;
        }
    }

    /// Waits, on the engine's thread. Not broken off: it could arrive after its job's messages were purged.
    fn give_up(&mut self) {
        self.step = None;
        self.giving_up.send_replace(true);
        while !self.in_flight.is_empty() {
            // The outcome of the whole is settled; that of its parts matters no more.
            let _ = self.settle_first();
        }
        self.pulse = None;
    }
}
