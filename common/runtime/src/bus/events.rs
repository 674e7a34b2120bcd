//! A job's events: one gapless sequence per job whoever writes, and exactly one terminal event.
//!
//! Every append says which event it follows (`Nats-Expected-Last-Subject-Sequence`), and the broker refuses it if
//! another writer was faster. So two owners of one job, or an owner and a stage that reports a failure, can never
//! both end it. An owner also writes down its fencing token, which grows with every delivery of the job: once a newer owner
//! has written, an older one (it was paused, say) is refused. [`adopt`]: what others have written meanwhile.

mod adopt;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

pub use super::clock::now_ms;
use super::conditional::{Conditional, Stored};
use super::handle::Bus;
use super::headers::FencingToken;
use super::past_events::{Tail, read_all, read_tail};
use crate::metrics::counts;
use protocol::error::{ErrorKind, JobError};
use protocol::event::{Event, JobEvent};
use protocol::message::JobId;
use protocol::wire::{self, Encoding};

/// Logs opened by this process; tells their message ids apart.
static OPENED: AtomicU64 = AtomicU64::new(0);
/// Events that a job has before it has an owner: `accepted` and `queued`.
const ADMITTED_EVENTS: u64 = 2;

/// Event that ended a job.
#[derive(Clone, Debug)]
pub struct Ended(pub Box<JobEvent>);

/// Reason for which an event was not appended.
#[derive(Clone, Debug)]
pub enum Refused {
    /// The job has a terminal event: nothing may follow it.
    Ended(Ended),
    /// Another owner has written, with this token: the job was delivered to another worker since. Or the events that this log
    /// wrote are gone, and the id was admitted again as another job, which is whose log this is now.
    Superseded(FencingToken),
}

/// Event on its way into the log.
struct Entry {
    event: JobEvent,
    token: FencingToken,
    message: Conditional,
}

/// Log of one job's events, and where its end is.
pub struct EventLog {
    bus: Bus,
    job: JobId,
    tail: Tail,
    /// Number among this process's logs: two of them at the same place must not pass for one.
    log: u64,
    /// Appends begun: one that was broken off must not pass for the next at its place.
    appends: u64,
    /// Token of the owner that writes; 0 for whoever is none.
    token: FencingToken,
    /// Place in the log of the first event written here.
    first: Option<u64>,
    /// Least number of the next event: those before it were seen, though the broker may have lost them since.
    next: u64,
    /// Date of the last event that was seen of this admission; 0 for none.
    seen_ms: u64,
    /// Task of the job, as far as its writer knows.
    task: String,
    /// Whether its end was written here.
    ended_here: bool,
    /// Whether another owner has written: with the same token, or of another job that was admitted under this id since.
    taken: bool,
}

impl EventLog {
    /// Opens a job's log at its end. Waits for a broker that is away.
    pub async fn open(bus: &Bus, job: &JobId) -> Self {
        let tail = read_tail(bus, job).await;
        let log = OPENED.fetch_add(1, Ordering::Relaxed);
        let seen_ms = tail.event.as_ref().map_or(0, |e| e.at_ms);
        EventLog {
            bus: bus.clone(),
            job: job.clone(),
            tail,
            log,
            appends: 0,
            token: FencingToken::default(),
            first: None,
            next: 0,
            seen_ms,
            task: String::new(),
            ended_here: false,
            taken: false,
        }
    }

    /// Notes that the job was admitted: its events `accepted` and `queued` have been told, whether the broker still has them
    /// or not, and the next one follows them.
    pub fn note_admitted(&mut self) {
        self.next = self.next.max(ADMITTED_EVENTS);
    }

    /// Last event; none if nothing was heard of the job within the age of events.
    pub fn last(&self) -> Option<&JobEvent> {
        self.tail.event.as_ref()
    }

    /// Sequence of the last event on the stream; 0 if there is none.
    pub fn last_sequence(&self) -> u64 {
        self.tail.stream_sequence
    }

    /// Terminal event, if there is one.
    pub fn ended(&self) -> Option<Ended> {
        let event = self.tail.event.as_ref().filter(|e| e.event.is_terminal())?;
        Some(Ended(Box::new(event.clone())))
    }

    /// Writes in the client's encoding from now on.
    pub fn write_as(&mut self, encoding: Encoding) {
        self.tail.encoding = encoding;
    }

    /// Notes the task of the job, which is counted by it.
    pub fn note_task(&mut self, task: &str) {
        task.clone_into(&mut self.task);
    }

    /// Terminal event, if it was written here.
    pub fn written_end(&self) -> Option<&Event> {
        self.last().map(|last| &last.event).filter(|event| self.ended_here && event.is_terminal())
    }

    /// Writes as the owner with this token from now on.
    pub fn fence(&mut self, token: FencingToken) {
        self.token = token;
    }

    /// Token of the owner that has written last; 0 if none has.
    pub fn last_token(&self) -> FencingToken {
        self.tail.token
    }

    /// Token of a newer owner, if one has written.
    pub fn superseded(&self) -> Option<FencingToken> {
        (self.token > FencingToken::default() && self.tail.token > self.token).then_some(self.tail.token)
    }

    /// Appends an event; waits for a broker that is away. One that the broker does not take, as it is too large for a message,
    /// ends the job with the figures instead.
    ///
    /// # Errors
    /// [`Refused::Ended`] when the job has a terminal event, [`Refused::Superseded`] when a newer owner has written, or the id
    /// is another job's by now.
    pub async fn append(&mut self, event: Event) -> Result<(), Refused> {
        self.append_behind(event, |_| true).await.map(drop)
    }

    /// Appends an event as [`append`](Self::append) does, but only behind a last event that `fits`: true if it is there. What
    /// another writer was faster with is looked at before each try.
    ///
    /// # Errors
    /// Those of [`append`](Self::append).
    pub async fn append_behind(
        &mut self,
        event: Event,
        fits: impl Fn(Option<&Event>) -> bool,
    ) -> Result<bool, Refused> {
        // Ids of all tries: a server that has just lost the lead of its cluster may refuse one that the new leader stores, and
        // show neither, so that the next is refused for it.
        let mut tried = Vec::new();
        loop {
            // First of all: the end of another job is not this one's.
            if self.taken {
                return Err(Refused::Superseded(self.tail.token));
            }
            if let Some(ended) = self.ended() {
                return Err(Refused::Ended(ended));
            }
            if let Some(newer) = self.superseded() {
                return Err(Refused::Superseded(newer));
            }
            if !fits(self.last().map(|last| &last.event)) {
                return Ok(false);
            }
            let entry = self.entry_that_fits(event.clone());
            let behind = self.tail.stream_sequence;
            tried.push(entry.message.id.clone());
            let stored = match self.bus.store_behind(&entry.message).await {
                Stored::At(sequence) => Some(sequence),
                Stored::Refused => self.adopt_what_follows(behind, &tried).await,
            };
            if let Some(sequence) = stored {
                self.next = entry.event.seq + 1;
                self.first.get_or_insert(entry.event.seq);
                self.seen_ms = entry.event.at_ms;
                if entry.event.event.is_terminal() {
                    self.ended_here = true;
                    counts::job_ended(&self.task, &entry.event.event);
                }
                // Others may have written behind it, where the acknowledgement was lost.
                if self.tail.stream_sequence < sequence {
                    self.tail.stream_sequence = sequence;
                    self.tail.token = entry.token;
                    self.tail.event = Some(entry.event);
                }
                return Ok(true);
            }
        }
    }

    /// The next entry of this log, or the failure that takes its place.
    fn entry_that_fits(&mut self, event: Event) -> Entry {
        let entry = self.entry(event);
        let (bytes, most) = (entry.message.body.len(), self.bus.max_message());
        // A failure is as small as its sentence.
        if bytes <= most || matches!(entry.event.event, Event::Failed { .. }) {
            return entry;
        }
        let text = format!("an event of {bytes} bytes, and the broker takes messages of {most}");
        let error = JobError::new(ErrorKind::DoesNotFit, text)
            .hint("ask fewer questions in a job, or raise max_payload in the server's configuration (deploy/nats.conf sets 8 MB)");
        tracing::error!(job = %self.job, %error, "job failed");
        self.entry(Event::Failed { error })
    }

    /// The next entry of this log as one message that is never made again: however often it is sent, its bytes, its id and
    /// its place are the same.
    fn entry(&mut self, event: Event) -> Entry {
        self.appends += 1;
        let seq = self.tail.event.as_ref().map_or(0, |e| e.seq + 1).max(self.next);
        let event = JobEvent { v: wire::VERSION, job: self.job.clone(), seq, at_ms: self.bus.known_ms(), event };
        // A token stands until a newer one.
        let token = self.token.max(self.tail.token);
        let message = Conditional {
            subject: self.bus.subjects().events(&self.job),
            // Names the writer too: the same place in the log written by another must be refused, not deduplicated.
            id: format!("{}{}/{seq}", self.signature(), self.appends),
            headers: token.headers(&self.job),
            behind: self.tail.stream_sequence,
            body: wire::encode_as(self.tail.encoding, &event).into(),
        };
        Entry { event, token, message }
    }

    /// What the ids of this log's messages, and of no other's, begin with.
    fn signature(&self) -> String {
        format!("{}/event-{}-{}-", self.job, self.bus.instance(), self.log)
    }

    /// Whether anything was seen of this admission.
    fn has_begun(&self) -> bool {
        self.next > 0 || self.seen_ms > 0
    }

    /// Bytes of each answer's text that the log holds, by its question: a new owner goes on behind them. Waits for a broker
    /// that is away.
    pub async fn text_written(&self) -> BTreeMap<Option<u32>, usize> {
        let mut written = BTreeMap::new();
        if self.first.is_some_and(|first| first <= ADMITTED_EVENTS) {
            return written;
        }
        for (_, event) in read_all(&self.bus, &self.job).await {
            if let Event::Text { delta, question, .. } = &event.event {
                *written.entry(*question).or_default() += delta.len();
            }
        }
        written
    }
}
