//! Which messages a worker takes: one, and beside it those that wait already and are computed with it in the same step.

use std::sync::Arc;
use std::time::Duration;

use tracing::{Instrument, Span};

use super::allowance::{Allowance, Share};
use super::dead::bury;
use super::inbox::{Delivery, Inbox};
use super::listener::Listener;
use super::pass::room;
use super::registry::InFlight;
use super::service::Counters;
use crate::bus::Bus;
use crate::traces;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::JobId;

/// Messages whose outputs are being stored, as steps of the engine, beside those that it computes; so many of the largest size,
/// more of smaller ones, so that the next need not wait for the broker's word about the last.
const STORED: usize = 1;
/// Bytes that a message in flight counts as at least, however small it is; no unit of work that is computed with others
/// (a frame, a window of sound) is larger.
const LEAST_BYTES: usize = 1 << 20;
/// Steps that a device has at a time where messages are computed together: the one that it is at, and the next. A stage launches
/// work faster than its device does it; what comes meanwhile waits here, and is the next step together.
const STEPS: usize = 2;

/// Message that is worked on.
pub struct Taken {
    /// Its job.
    pub job: JobId,
    /// The message.
    pub delivery: Delivery,
    /// Its place in the registry, which tells of its job's end.
    pub in_flight: InFlight,
    /// Held until it is settled.
    pub share: Share,
    /// Step that it is computed in, for whoever waits for the device.
    pub step: Option<Arc<Share>>,
    /// All work on it.
    pub span: Span,
}

/// Message that a step begins with, which is not worked on yet.
pub struct First {
    /// The message.
    pub delivery: Delivery,
    /// Its units of work.
    units: u64,
    /// Step that it is computed in.
    step: Option<Arc<Share>>,
}

/// Way of messages from a queue to the engine.
pub struct Intake {
    /// Stage whose queue it is.
    pub stage: StageName,
    /// The broker.
    pub bus: Bus,
    /// Messages that wait.
    pub inbox: Inbox,
    /// What is known of their jobs.
    pub listener: Listener,
    /// Counts of this instance.
    pub counters: Arc<Counters>,
    /// Bytes in flight.
    pub allowance: Allowance,
    /// Steps that a device has; as many as there are bytes for where each message is a step.
    pub steps: Option<Allowance>,
    /// Units of work that are computed together at most.
    pub together: u64,
}

/// Bytes in flight of a stage that computes so many units together: those of the steps that it is at, and of those whose outputs
/// are being stored. With less, the next step would be a small one whenever the broker is slow.
pub fn allowance(bus: &Bus, together: u64) -> Allowance {
    let of_units = usize::try_from(together).unwrap_or(usize::MAX).saturating_mul(LEAST_BYTES);
    let computed = if together > 1 { STEPS } else { 1 };
    Allowance::new(of_units.max(bus.config().message_bytes).saturating_mul(computed + STORED))
}

/// Steps that a device has at a time, of a stage that computes so many units together.
pub fn steps(together: u64) -> Option<Allowance> {
    (together > 1).then(|| Allowance::new(STEPS))
}

/// Bytes that a message counts as.
fn size(delivery: &Delivery) -> usize {
    delivery.message.payload.len().max(LEAST_BYTES)
}

impl Intake {
    /// Next message, once the device has capacity for a step; none once drained.
    pub async fn next(&mut self) -> Option<First> {
        // Before a message is taken: those that come meanwhile go with it.
        let step = match &self.steps {
            Some(steps) => Some(Arc::new(steps.take(1).await)),
            None => None,
        };
        loop {
            let (delivery, units) = self.inbox.next().await?;
            if !self.listener.is_draining() {
                return Some(First { delivery, units, step });
            }
            delivery.give_back(Duration::ZERO).await;
        }
    }

    /// Takes a message, and those that wait already for as long as they need no step of their own. Nothing is waited for that
    /// is not here. One that was delivered before may be what its last worker died of: it has no company.
    pub async fn take(&mut self, first: First) -> Vec<Taken> {
        let First { delivery, mut units, step } = first;
        let share = self.allowance.take(size(&delivery)).await;
        let suspect = delivery.redeliveries > 0;
        let mut taken: Vec<Taken> = self.accept(delivery, share, &step).await.into_iter().collect();
        if suspect || taken.is_empty() {
            return taken;
        }
        loop {
            let (allowance, room, mut share) = (&self.allowance, room(units, self.together), None);
            let next = self.inbox.more(|delivery, units| {
                if delivery.redeliveries == 0 && units <= room {
                    share = allowance.try_take(size(delivery));
                }
                share.is_some()
            });
            let (Some((delivery, more)), Some(share)) = (next, share) else { return taken };
            if let Some(beside) = self.accept(delivery, share, &step).await {
                units += more;
                taken.push(beside);
            }
        }
    }

    /// Takes a message unless there is nothing to do for it any more.
    async fn accept(&self, delivery: Delivery, share: Share, step: &Option<Arc<Share>>) -> Option<Taken> {
        let Intake { stage, bus, counters, .. } = self;
        let job = bus.subjects().job_of(&delivery.message.subject);
        let span = traces::message(*stage, job.as_ref(), &delivery.message);
        let Some(job) = job else {
            let error = JobError::new(ErrorKind::PoisonMessage, "the subject names no job");
            bury(bus, *stage, None, &delivery, &error).await;
            Counters::add(&counters.unreadable, 1);
            delivery.done().await;
            return None;
        };
        let in_flight = self.listener.begin(&job, delivery.redeliveries > 0).instrument(span.clone()).await;
        counters.delivered(*stage, delivery.redeliveries);
        if in_flight.end().is_set() {
            drop(in_flight);
            Counters::add(&counters.dropped, 1);
            delivery.done().await;
            return None;
        }
        Some(Taken { job, delivery, in_flight, share, step: step.clone(), span })
    }
}
