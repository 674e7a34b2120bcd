//! Work queues: one durable consumer that all workers of a queue share. Whoever makes the streams makes them too, so that a
//! queue is there, and can be counted, before its first worker is; the workers only look for theirs.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::ConsumerErrorKind;

use super::error::{BusError, BusErrorKind};
use super::handle::Bus;
use crate::subject::{PRIORITIES, StreamName, Subjects};
use protocol::error::StageName;

/// Pause before a queue that others make is looked for again.
const AGAIN: Duration = Duration::from_millis(200);
/// Age from which a stream is set up for certain, see [`Bus::set_up`].
const SET_UP: Duration = Duration::from_secs(2);
/// Queue of requests that are not admitted yet.
pub const ADMISSION: &str = "admission";

/// Name of the queue of a priority.
pub fn queue_of(priority: u8) -> String {
    format!("priority-{priority}")
}

/// A work queue as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Name of its consumer.
    pub name: String,
    /// Subject whose messages are its own: one, or those that end in `.*`.
    pub takes: String,
    /// Whether the broker is told that subject: not where the stream is one queue. A filter is not given without need:
    /// nats-server 2.9.10 loses count of a subject's messages when one is removed twice (acknowledged by two workers, say),
    /// and then finds none of them by a filter with a wildcard.
    filtered: bool,
}

impl Queue {
    /// Queues of a stream; none of a stream that is only read.
    pub fn of(stream: StreamName, subjects: &Subjects) -> Vec<Queue> {
        let worked_off_by = |stage: StageName| {
            vec![Queue { name: stage.to_string(), takes: subjects.all_input(stage), filtered: false }]
        };
        match stream {
            StreamName::Jobs => vec![Queue { name: ADMISSION.to_owned(), takes: subjects.jobs(), filtered: true }],
            StreamName::Line => {
                PRIORITIES.map(|p| Queue { name: queue_of(p), takes: subjects.all_waiting(p), filtered: true }).to_vec()
            }
            StreamName::Decode => worked_off_by(StageName::Decode),
            StreamName::Frames => worked_off_by(StageName::Vision),
            StreamName::Audio => worked_off_by(StageName::Audio),
            StreamName::Features => worked_off_by(StageName::Fuse),
            StreamName::Tokens | StreamName::Events | StreamName::Dead | StreamName::Capacity => Vec::new(),
        }
    }

    /// Consumer that all workers share. The server delivers without end; whoever receives a message more than `max_deliver`
    /// times fails its job (`Delivery::exhausted` of the run loop). So nothing stays behind in the queue unseen.
    fn config(&self, ack_wait: Duration) -> pull::Config {
        pull::Config {
            durable_name: Some(self.name.clone()),
            name: Some(self.name.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait,
            max_deliver: -1,
            filter_subject: if self.filtered { self.takes.clone() } else { String::new() },
            ..Default::default()
        }
    }
}

/// Consumer of a work queue.
#[derive(Clone)]
pub struct WorkQueue {
    stream: StreamName,
    queue: Queue,
    consumer: PullConsumer,
}

impl WorkQueue {
    /// The consumer. It stays usable when the queue is made again, which gives it the same name.
    pub fn consumer(&self) -> &PullConsumer {
        &self.consumer
    }

    /// Stream that it is a queue of.
    pub fn stream(&self) -> StreamName {
        self.stream
    }

    /// Makes the consumer again if it is gone and that is this process's to do; stage-llm finds it missing within seconds.
    /// All that its stream holds is delivered anew then, also what others have in flight: outputs that are there already
    /// are recognised.
    pub async fn restore(&self, bus: &Bus) {
        if bus.makes_streams
            && let Err(error) = bus.make_queue(self.stream, &self.queue).await
        {
            tracing::debug!(%error, "making a queue again failed, retrying");
        }
    }
}

impl Bus {
    /// Opens a queue of a stream by its name: made, if it is not there and that is this process's to do, else waited for, as a
    /// cluster without a leader is.
    ///
    /// # Errors
    /// [`JetStream`](BusErrorKind::JetStream), [`Leaderless`](BusErrorKind::Leaderless).
    ///
    /// # Panics
    /// If the stream is to have no such queue.
    pub async fn work_queue(&self, stream: StreamName, name: &str) -> Result<WorkQueue, BusError> {
        let queue = Queue::of(stream, self.subjects()).into_iter().find(|queue| queue.name == name);
        let queue = queue.expect("workers know the names of their queues. This is a bug.");
        let consumer = match self.makes_streams {
            true => self.once_led(|| self.make_queue(stream, &queue)).await?,
            false => self.await_queue(stream, &queue).await?,
        };
        Ok(WorkQueue { stream, queue, consumer })
    }

    /// Makes the queues of a stream that are not there.
    pub(super) async fn make_queues(&self, stream: StreamName) -> Result<(), BusError> {
        for queue in Queue::of(stream, self.subjects()) {
            self.make_queue(stream, &queue).await?;
        }
        Ok(())
    }

    async fn make_queue(&self, stream: StreamName, queue: &Queue) -> Result<PullConsumer, BusError> {
        self.set_up(stream).await;
        self.consumer(stream, queue.config(Duration::from_secs_f64(self.config().ack_wait_s))).await
    }

    /// Waits until a stream is set up. nats-server 2.9.10 shows a stream to its second maker (stage-llm and `vidi up` start together) while
    /// it still sets it up for the first; a consumer that is made by then has no way out, and never delivers anything, without a word.
    /// Newer ones show a stream last of all.
    async fn set_up(&self, stream: StreamName) {
        if !shows_streams_early(&self.client().server_info().version) {
            return;
        }
        // One that is not there is told by whoever needs it.
        let Ok(found) = self.js.get_stream(stream.on(self.subjects())).await else { return };
        let created_ms = (found.cached_info().created.unix_timestamp_nanos() / 1_000_000) as u64;
        let age = Duration::from_millis(self.known_ms().saturating_sub(created_ms));
        tokio::time::sleep(SET_UP.saturating_sub(age)).await;
    }

    /// Waits for a queue that others make.
    async fn await_queue(&self, stream: StreamName, queue: &Queue) -> Result<PullConsumer, BusError> {
        let (on, name) = (stream.on(self.subjects()), &queue.name);
        let mut told = false;
        loop {
            let error = match self.js.get_consumer_from_stream(name, &on).await {
                Ok(consumer) => return Ok(consumer),
                Err(error) => error,
            };
            let missing = matches!(error.kind(), ConsumerErrorKind::JetStream(ref e)
                if [ErrorCode::CONSUMER_NOT_FOUND, ErrorCode::STREAM_NOT_FOUND].contains(&e.error_code()));
            if !missing && self.kind_of(&error) != BusErrorKind::Leaderless {
                let text =
                    format!("queue {name} of {on}: {error}; this user needs the permissions in deploy/users.conf");
                return Err(BusError::new(BusErrorKind::JetStream, text));
            }
            if !told {
                told = true;
                tracing::info!(stream = on, queue = name, %error, "queue missing, waiting for stage-llm, or for its servers");
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Whether a server of a version may show streams before they are set up: 2.9.10 does, and when that was mended in 2.10 was not looked up.
fn shows_streams_early(version: &str) -> bool {
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(u32::MAX));
    (numbers.next(), numbers.next()) < (Some(2), Some(11))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_before_2_11_may_show_streams_early() {
        for (version, early) in [
            ("2.9.10", true),
            ("2.9.25", true),
            ("2.10.4", true),
            ("2.11.0", false),
            ("2.15.1", false),
            ("3.0.0", false),
        ] {
            assert_eq!(shows_streams_early(version), early, "{version}");
        }
    }

    #[test]
    fn every_message_of_a_work_queue_has_one_queue_that_takes_it() {
        let subjects = Subjects::new("a.b");
        for stream in StreamName::ALL {
            let takes: Vec<String> = Queue::of(stream, &subjects).into_iter().map(|queue| queue.takes).collect();
            assert!(takes.is_empty() || takes == stream.subjects(&subjects), "{stream:?}: {takes:?}");
        }
        for stage in StageName::ALL {
            assert!(!Queue::of(StreamName::input_of(stage), &subjects).is_empty(), "{stage}");
        }
    }
}
