//! A job's events: one gapless sequence per job whoever writes, and exactly one terminal event.
//!
//! Every append says which event it follows (`Nats-Expected-Last-Subject-Sequence`), and the broker refuses it if
//! another writer was faster. So two owners of one job, or an owner and a stage that reports a failure, can never
//! both end it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use futures::StreamExt;

use super::{Bus, headers};
use crate::event::{Event, JobEvent};
use crate::message::JobId;
use crate::subject::StreamName;
use crate::wire::{self, Encoding};

/// Unix time in milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// The job has ended; this is the event that ended it.
#[derive(Clone, Debug)]
pub struct Ended(pub Box<JobEvent>);

/// The end of a job's log, as last seen.
#[derive(Clone, Debug)]
struct Tail {
    /// Sequence on the stream of the last event; 0 if there is none.
    stream_sequence: u64,
    event: Option<JobEvent>,
    encoding: Encoding,
}

/// Appends to one job's log.
pub struct EventLog {
    bus: Bus,
    job: JobId,
    tail: Tail,
}

impl EventLog {
    /// Opens a job's log at its end. Waits for a broker that is away.
    pub async fn open(bus: &Bus, job: &JobId) -> Self {
        let tail = read_tail(bus, job).await;
        EventLog { bus: bus.clone(), job: job.clone(), tail }
    }

    /// The last event; none if nothing was heard of the job within the age of events.
    pub fn last(&self) -> Option<&JobEvent> {
        self.tail.event.as_ref()
    }

    /// The terminal event, if there is one.
    pub fn ended(&self) -> Option<Ended> {
        let event = self.tail.event.as_ref().filter(|e| e.event.is_terminal())?;
        Some(Ended(Box::new(event.clone())))
    }

    /// Writes in the client's encoding from now on.
    pub fn write_as(&mut self, encoding: Encoding) {
        self.tail.encoding = encoding;
    }

    /// Appends an event; waits for a broker that is away.
    ///
    /// # Errors
    /// [`Ended`] when the job has a terminal event: nothing may follow it.
    pub async fn append(&mut self, event: Event) -> Result<(), Ended> {
        loop {
            if let Some(ended) = self.ended() {
                return Err(ended);
            }
            let seq = self.tail.event.as_ref().map_or(0, |e| e.seq + 1);
            let entry =
                JobEvent { v: wire::VERSION, job: self.job.clone(), seq, at_ms: now_ms(), event: event.clone() };
            let publish = PublishMessage::build()
                .headers(headers(&self.job))
                // Names the writer too: the same place in the log written by another must be refused, not deduplicated.
                .message_id(format!("{}/event-{}/{seq}", self.job, self.bus.instance()))
                .expected_last_subject_sequence(self.tail.stream_sequence)
                .payload(wire::encode_as(self.tail.encoding, &entry).into());
            let subject = self.bus.subjects().events(&self.job);
            let outcome = match self.bus.js.send_publish(subject, publish).await {
                Ok(ack) => ack.await,
                Err(e) => Err(e),
            };
            match outcome {
                Ok(ack) => {
                    self.tail.stream_sequence = ack.sequence;
                    self.tail.event = Some(entry);
                    return Ok(());
                }
                Err(e) => {
                    if e.kind() != PublishErrorKind::WrongLastSequence {
                        tracing::warn!(job = %self.job, error = %e, "event not stored yet");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                    let encoding = self.tail.encoding;
                    self.tail = Tail { encoding, ..read_tail(&self.bus, &self.job).await };
                    // Stored after all, though its acknowledgement was lost.
                    if self.tail.event.as_ref() == Some(&entry) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Characters of answer text that the log already holds: a new owner goes on behind them.
    pub async fn text_written(&self) -> usize {
        let subject = self.bus.subjects().events(&self.job);
        let mut written = 0;
        let Ok(reader) = self.bus.reader(StreamName::Events, subject, 0).await else { return 0 };
        let Ok(mut batch) = reader.fetch().max_messages(100_000).messages().await else { return 0 };
        while let Some(Ok(message)) = batch.next().await {
            if let Ok(JobEvent { event: Event::Text { delta }, .. }) = wire::decode_any(&message.payload) {
                written += delta.len();
            }
        }
        written
    }
}

/// Reads the last event on a job's subject, waiting for a broker that is away.
async fn read_tail(bus: &Bus, job: &JobId) -> Tail {
    let subject = bus.subjects().events(job);
    loop {
        let last = match bus.stream(StreamName::Events).await {
            Ok(stream) => stream.get_last_raw_message_by_subject(&subject).await,
            Err(error) => {
                tracing::warn!(%job, %error, "cannot read events");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        match last {
            Ok(message) => {
                let encoding = Encoding::of(&message.payload);
                match wire::decode_any::<JobEvent>(&message.payload) {
                    Ok(event) => {
                        return Tail { stream_sequence: message.sequence, event: Some(event), encoding };
                    }
                    Err(error) => {
                        // A stranger wrote there: the log goes on behind it.
                        tracing::warn!(%job, %error, "unreadable event");
                        return Tail { stream_sequence: message.sequence, event: None, encoding };
                    }
                }
            }
            Err(e) if e.kind() == LastRawMessageErrorKind::NoMessageFound => {
                return Tail { stream_sequence: 0, event: None, encoding: Encoding::MessagePack };
            }
            Err(error) => {
                tracing::warn!(%job, %error, "cannot read events");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}
