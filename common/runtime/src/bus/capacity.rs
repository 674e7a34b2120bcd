//! Capacity of the token stream: it is reserved before a video is decoded, so that the tokens of two jobs can never fill
//! the stream by half each and block each other for ever.
//!
//! The reservations of all jobs are one message, replaced by compare-and-set. A reservation belongs to its job, not to
//! its owner: who takes a job over finds the tokens and the capacity there. It ends with the job. Where an owner could not
//! give it back, whoever finds no capacity does.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use async_nats::HeaderMap;
use serde::{Deserialize, Serialize};

use super::conditional::{Conditional, Stored};
use super::events::EventLog;
use super::handle::Bus;
use crate::subject::StreamName;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::JobId;
use protocol::wire::{self, Message, WireError, version};

/// Bytes that a message of tokens takes besides them: body's envelope, headers, the server's own book-keeping.
const ENVELOPE_BYTES: u64 = 2048;
/// Changes whose ids the ledger keeps: more than can be made between a refusal and the look that follows it.
const REMEMBERED_CHANGES: usize = 64;
/// Changes begun by this process; tells their ids apart.
static CHANGES: AtomicU64 = AtomicU64::new(0);

/// Reservations of all jobs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Ledger {
    #[serde(default = "version")]
    v: u32,
    jobs: Vec<Entry>,
    /// Ids of the last changes, the newest last: whoever was refused finds there whether an earlier copy of its change was
    /// stored, also once another has replaced it.
    #[serde(default)]
    changes: VecDeque<String>,
}

/// Reservation of one job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    job: JobId,
    /// Bytes that it holds; 0 while it waits.
    bytes: u64,
    /// Times that it went back to the queue for want of capacity: these are no failed tries.
    returned: u64,
}

impl Message for Ledger {
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}

impl Ledger {
    /// Notes a change as the newest one.
    fn note(&mut self, change: String) {
        if self.changes.len() >= REMEMBERED_CHANGES {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
    }

    fn entry(&mut self, job: &JobId) -> &mut Entry {
        if let Some(at) = self.jobs.iter().position(|e| e.job == *job) {
            return &mut self.jobs[at];
        }
        self.jobs.push(Entry { job: job.clone(), bytes: 0, returned: 0 });
        self.jobs.last_mut().expect("just pushed. This is a bug.")
    }
}

/// Outcome of asking for capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// It is there.
    Reserved,
    /// These jobs hold too much of it.
    HeldBy(Vec<JobId>),
}

impl Bus {
    /// Bytes that the tokens of a job will take on the stream, at most.
    pub fn token_stream_bytes(&self, tokens: u64, token_bytes: u64) -> u64 {
        let body = tokens.saturating_mul(token_bytes);
        // Producers cut where their inputs end, not only where a message is full.
        let messages = 2 * body.div_ceil(self.max_body().max(1) as u64) + 2;
        body.saturating_add(body / 8).saturating_add(messages * ENVELOPE_BYTES)
    }

    /// Reserves capacity for a job's tokens, or says who holds it. The same job twice is one reservation.
    ///
    /// # Errors
    /// `does_not_fit` if the stream is too small for this job alone.
    pub async fn reserve_capacity(&self, job: &JobId, bytes: u64) -> Result<Capacity, JobError> {
        let capacity = self.config().token_bytes.max(0) as u64;
        if bytes > capacity {
            let message = format!("its tokens take {bytes} bytes on the bus; the token stream holds {capacity}");
            return Err(JobError::new(ErrorKind::DoesNotFit, message)
                .at(StageName::Llm)
                .hint("ask with a lower fps or a shorter span, or raise bus.token_bytes")
                .detail("needed_bytes", bytes)
                .detail("available_bytes", capacity));
        }
        let reserve = |ledger: &mut Ledger| {
            let others = ledger.jobs.iter().filter(|e| e.job != *job);
            let held: u64 = others.clone().map(|e| e.bytes).sum();
            if held.saturating_add(bytes) > capacity {
                return Capacity::HeldBy(others.filter(|e| e.bytes > 0).map(|e| e.job.clone()).collect());
            }
            ledger.entry(job).bytes = bytes;
            Capacity::Reserved
        };
        Ok(self.change_ledger(reserve).await)
    }

    /// Gives back the capacity of jobs that have ended; true if there were some.
    pub async fn release_ended(&self, jobs: &[JobId]) -> bool {
        let mut ended = Vec::new();
        for job in jobs {
            let log = EventLog::open(self, job).await;
            if log.last().is_none() || log.ended().is_some() {
                ended.push(job);
            }
        }
        if ended.is_empty() {
            return false;
        }
        self.change_ledger(|ledger| ledger.jobs.retain(|e| !ended.contains(&&e.job))).await;
        true
    }

    /// Notes that a job goes back to the queue for want of capacity, and returns how often it has.
    pub async fn note_returned(&self, job: &JobId) -> u64 {
        self.forgive(job, 1).await
    }

    /// Notes so many deliveries of a job that count as no tries of it, and returns how many there are.
    pub async fn forgive(&self, job: &JobId, deliveries: u64) -> u64 {
        let note = |ledger: &mut Ledger| {
            let entry = ledger.entry(job);
            entry.returned += deliveries;
            entry.returned
        };
        self.change_ledger(note).await
    }

    /// Times that a job went back to the queue for want of capacity.
    pub async fn returned(&self, job: &JobId) -> u64 {
        let (ledger, _) = self.read_ledger().await;
        ledger.jobs.iter().find(|e| e.job == *job).map_or(0, |e| e.returned)
    }

    /// Jobs that hold capacity, or wait for it.
    pub async fn capacity_holders(&self) -> Vec<JobId> {
        let (ledger, _) = self.read_ledger().await;
        ledger.jobs.into_iter().map(|e| e.job).collect()
    }

    /// Reads, changes and writes the ledger, until nobody was faster. Waits for a broker that is away.
    async fn change_ledger<T>(&self, change: impl Fn(&mut Ledger) -> T) -> T {
        let (mut before, mut sequence) = self.read_ledger().await;
        // Of all tries: a server that has just lost the lead of its cluster may refuse one that the new leader stores, and
        // show neither.
        let mut tried = Vec::new();
        loop {
            let mut ledger = before.clone();
            let outcome = change(&mut ledger);
            if ledger == before {
                return outcome;
            }
            ledger.v = wire::VERSION;
            let id = format!("capacity/{}-{}", self.instance(), CHANGES.fetch_add(1, Ordering::Relaxed));
            ledger.note(id.clone());
            let message = Conditional {
                subject: self.subjects().capacity(),
                id,
                headers: HeaderMap::new(),
                behind: sequence,
                body: wire::encode(&ledger).into(),
            };
            if let Stored::At(_) = self.store_behind(&message).await {
                return outcome;
            }
            tried.push(message.id);
            (before, sequence) = self.read_ledger().await;
            if before.changes.iter().any(|change| tried.contains(change)) {
                return outcome;
            }
        }
    }

    /// Ledger and its sequence on the stream.
    async fn read_ledger(&self) -> (Ledger, u64) {
        let subject = self.subjects().capacity();
        let Some(message) = self.last_on(StreamName::Capacity, &subject).await else { return (Ledger::default(), 0) };
        let ledger = wire::decode::<Ledger>(&message.payload).unwrap_or_else(|error| {
            // Whoever wrote there cannot be undone; jobs in work reserve again when taken over.
            tracing::error!(%error, "capacity ledger unreadable, begun anew");
            self.note_unreadable();
            Ledger::default()
        });
        (ledger, message.sequence)
    }
}
