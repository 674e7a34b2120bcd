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

/// Messages in flight at a time, as steps of the engine: the one that computes and the one whose outputs are being stored; so
/// many of the largest size, more of smaller ones, so that the next need not wait for the broker's word about the last.
const IN_FLIGHT: usize = 2;
/// Bytes that a message in flight counts as at least, however small it is; no unit of work that is computed with others
/// (a frame, a window of sound) is larger.
const LEAST_BYTES: usize = 1 << 20;

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
    /// All work on it.
    pub span: Span,
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
    /// Units of work that are computed together at most.
    pub together: u64,
}

/// Bytes in flight of a stage that computes so many units together.
pub fn allowance(bus: &Bus, together: u64) -> Allowance {
    let of_units = usize::try_from(together).unwrap_or(usize::MAX).saturating_mul(LEAST_BYTES);
    Allowance::new(of_units.max(bus.config().message_bytes).saturating_mul(IN_FLIGHT))
}

/// Bytes that a message counts as.
fn size(delivery: &Delivery) -> usize {
    delivery.message.payload.len().max(LEAST_BYTES)
}

impl Intake {
    /// Next message, which is not worked on yet, and its units; none once drained.
    pub async fn next(&mut self) -> Option<(Delivery, u64)> {
        loop {
            let (delivery, units) = self.inbox.next().await?;
            if !self.listener.is_draining() {
                return Some((delivery, units));
            }
            delivery.give_back(Duration::ZERO).await;
        }
    }

    /// Takes a message, and those that wait already for as long as they need no step of their own. Nothing is waited for that
    /// is not here. One that was delivered before may be what its last worker died of: it has no company.
    pub async fn take(&mut self, (first, units): (Delivery, u64)) -> Vec<Taken> {
        let share = self.allowance.take(size(&first)).await;
        let (suspect, mut units) = (first.redeliveries > 0, units);
        let mut taken: Vec<Taken> = self.accept(first, share).await.into_iter().collect();
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
            if let Some(beside) = self.accept(delivery, share).await {
                units += more;
                taken.push(beside);
            }
        }
    }

    /// Takes a message unless there is nothing to do for it any more.
    async fn accept(&self, delivery: Delivery, share: Share) -> Option<Taken> {
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
        Some(Taken { job, delivery, in_flight, share, span })
    }
}
