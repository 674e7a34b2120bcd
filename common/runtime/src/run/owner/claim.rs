//! First step of owning a job: its request is read, and the job claimed unless it has ended or has a newer owner.

use super::fencing;
use super::worker::{Settled, Worker};
use crate::bus::FencingToken;
use crate::bus::events::EventLog;
use crate::run::dead::bury;
use crate::run::inbox::Delivery;
use crate::run::registry::InFlight;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::{JobId, JobRequest};
use protocol::wire::{self, Encoding};

/// Job that this worker owns: when it was read it had not ended, and no newer owner had written.
pub struct Claimed {
    pub request: JobRequest,
    pub delivery: Delivery,
    pub in_flight: InFlight,
    /// Log of its events, in the encoding of its request and under the fencing token.
    pub log: EventLog,
    pub token: FencingToken,
}

impl<O> Worker<O> {
    /// Claims a job.
    ///
    /// # Errors
    /// How the delivery was settled, where there is nothing to answer.
    pub async fn claim(&self, request: JobRequest, delivery: Delivery) -> Result<Claimed, Settled> {
        let bus = &self.bus;
        let job = request.job.clone();
        let in_flight = self.listener.begin(&job, delivery.redeliveries > 0).await;
        let mut log = EventLog::open(bus, &job).await;
        if log.ended().is_some() {
            drop(in_flight);
            self.clearing.begin(bus, job, delivery);
            return Err(Settled::Processed);
        }
        log.write_as(Encoding::of(&delivery.message.payload));
        log.note_admitted();
        log.note_task(&request.task);
        let token = fencing::token_of(&delivery, log.last_token());
        log.fence(token);
        if let Some(newer) = log.superseded() {
            drop(in_flight);
            return Err(self.leave(&job, delivery, newer).await);
        }
        Ok(Claimed { request, delivery, in_flight, log, token })
    }

    /// Reads a request. Admission has read it; what cannot be read any more, or is another job's, was not queued by it.
    ///
    /// # Errors
    /// How the delivery was settled.
    pub async fn read(&self, delivery: Delivery) -> Result<(JobRequest, Delivery), Settled> {
        let of_subject: Option<JobId> = self.bus.subjects().job_of(&delivery.message.subject);
        let text = match wire::decode_any::<JobRequest>(&delivery.message.payload) {
            Ok(request) if Some(&request.job) == of_subject.as_ref() => return Ok((request, delivery)),
            Ok(request) => format!("a request of {}", request.job),
            Err(error) => error.to_string(),
        };
        let error = JobError::new(ErrorKind::PoisonMessage, format!("not queued by admission: {text}"));
        self.bus.note_unreadable();
        bury(&self.bus, StageName::Llm, of_subject.as_ref(), &delivery, &error).await;
        delivery.done().await;
        Err(Settled::Failed)
    }
}
