//! What a stage's outputs pass through: cut to size, stored by the broker, a few at a time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle};

use super::allowance::Allowance;
use super::control::CancelFlag;
use super::report::Reporter;
use crate::bus::Bus;
use crate::error::{ErrorKind, JobError, StageName};
use crate::message::{JobId, Output};
use crate::stage::{Port, Stop};

/// A [`Port`] onto the bus, for the engine's thread.
pub struct BusPort {
    bus: Bus,
    /// Bytes on their way to the broker; all messages of the stage share it.
    sending: Allowance,
    runtime: Handle,
    flag: CancelFlag,
    /// Set once this message's outputs are wanted no more, though its job's others are.
    giving_up: CancelFlag,
    in_flight: VecDeque<JoinHandle<Result<(), Stop>>>,
    reporter: Reporter,
    started: Instant,
    waited: Duration,
}

impl BusPort {
    /// A port for one input message; its outputs take their bytes from `sending` until they are stored.
    pub fn new(
        bus: Bus,
        sending: Allowance,
        stage: StageName,
        job: JobId,
        flag: CancelFlag,
        budget_bytes: Option<u64>,
    ) -> Self {
        let reporter = Reporter::new(bus.clone(), stage, job, budget_bytes);
        BusPort {
            bus,
            sending,
            runtime: Handle::current(),
            flag,
            giving_up: CancelFlag::default(),
            in_flight: VecDeque::new(),
            reporter,
            started: Instant::now(),
            waited: Duration::ZERO,
        }
    }

    /// Tells the owner every now and then that this message is being worked on, until aborted.
    pub fn heartbeat(&self) -> JoinHandle<()> {
        self.reporter.heartbeat()
    }

    /// Waits, on the engine's thread, for what is on its way of a message that has failed. Waited for, not broken off:
    /// it could arrive after its job's messages were purged.
    pub fn give_up(&mut self) {
        self.giving_up.set();
        while !self.in_flight.is_empty() {
            // The outcome of the whole is settled; that of its parts matters no more.
            let _ = self.settle_first();
        }
    }

    /// Waits until the broker has every output of a message, and tells the owner. The engine may compute meanwhile.
    ///
    /// # Errors
    /// The first output's that could not be stored.
    pub async fn stored(mut self) -> Result<(), Stop> {
        let computed = self.started.elapsed();
        let mut outcome = Ok(());
        for sending in std::mem::take(&mut self.in_flight) {
            outcome = outcome.and(sent(sending.await));
        }
        outcome?;
        self.reporter.tell(computed, self.waited).await;
        Ok(())
    }

    fn settle_first(&mut self) -> Result<(), Stop> {
        let Some(sending) = self.in_flight.pop_front() else { return Ok(()) };
        sent(self.runtime.block_on(sending))
    }
}

fn sent(outcome: Result<Result<(), Stop>, JoinError>) -> Result<(), Stop> {
    outcome.unwrap_or_else(|e| Err(Stop::Unavailable(format!("sending broke off: {e}"))))
}

impl Port for BusPort {
    fn emit(&mut self, output: Output<'_>) -> Result<(), Stop> {
        let subject = self.bus.subjects().output(&output);
        let bodies = output.encode(self.bus.max_body()).map_err(|e| {
            JobError::new(ErrorKind::Internal, e.to_string())
                .hint("raise max_payload in the server's configuration (deploy/nats.conf sets 8 MB)")
        })?;
        for (id, body) in bodies {
            while self.in_flight.front().is_some_and(JoinHandle::is_finished) {
                self.settle_first()?;
            }
            let since = Instant::now();
            let share = self.runtime.block_on(self.sending.take(body.len(), || self.flag.is_set()));
            self.waited += since.elapsed();
            let Some(share) = share else { return Err(Stop::Cancelled) };
            let (bus, subject, flag) = (self.bus.clone(), subject.clone(), self.flag.clone());
            let (job, giving_up) = (output.job().clone(), self.giving_up.clone());
            self.in_flight.push_back(self.runtime.spawn(async move {
                let stop = || flag.is_set() || giving_up.is_set();
                let stored = bus.store(subject, &id, &job, Bytes::from(body), &stop).await;
                drop(share);
                stored
            }));
        }
        self.reporter.add(&output);
        self.reporter.send(self.started.elapsed(), self.waited);
        Ok(())
    }

    fn cancelled(&self) -> bool {
        self.flag.is_set()
    }
}
