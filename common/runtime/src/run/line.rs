//! How admitted jobs wait: in line by priority; workers take from the front.
//!
//! Each priority is a subject of its own on VIDI_LINE with its own consumer: higher first, first come first served within.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use tokio::sync::Mutex;

use super::inbox::Delivery;
use crate::bus::conditional::Conditional;
use crate::bus::queue::{WorkQueue, queue_of};
use crate::bus::streams::MadeAt;
use crate::bus::{Bus, BusError};
use crate::subject::{PRIORITIES, StreamName};
use protocol::message::{JobId, JobRequest};

/// Time within which a broker that is there answers a look at a queue.
const LOOK_WAIT: Duration = Duration::from_secs(2);
/// Time between two counts of those who wait.
const COUNT_EVERY: Duration = Duration::from_millis(500);

/// Jobs in line, as one worker sees them. Cheap to clone; all clones share it.
#[derive(Clone)]
pub struct Line {
    bus: Bus,
    queues: Vec<(u8, WorkQueue)>,
    waiting: Arc<Mutex<Waiting>>,
    /// Jobs of each priority, in the order of [`PRIORITIES`], that workers have taken from their queues and not begun.
    held: Arc<[AtomicU64; PRIORITIES.len()]>,
}

/// Count of those who wait.
#[derive(Default)]
struct Waiting {
    /// Time of the count; none before the first one.
    counted: Option<Instant>,
    /// Jobs of each priority, in the order of [`PRIORITIES`].
    jobs: Vec<u64>,
}

impl Line {
    /// Opens the queues of all priorities.
    ///
    /// # Errors
    /// When a queue cannot be set up.
    pub async fn open(bus: &Bus) -> Result<Self, BusError> {
        let mut queues = Vec::new();
        for priority in PRIORITIES {
            let queue = bus.work_queue(StreamName::Line, &queue_of(priority)).await?;
            queues.push((priority, queue));
        }
        Ok(Line { bus: bus.clone(), queues, waiting: Arc::default(), held: Arc::default() })
    }

    /// Queues of all priorities.
    pub fn queues(&self) -> Vec<WorkQueue> {
        self.queues.iter().map(|(_, queue)| queue.clone()).collect()
    }

    /// Time when the line's stream was made: another one if the broker has lost it since.
    ///
    /// # Errors
    /// When it is not there, or the broker does not answer.
    pub async fn made_at(&self) -> Result<MadeAt, BusError> {
        self.bus.made_at(StreamName::Line).await
    }

    /// Jobs that would be taken before a new one of this priority, which stands in line from now on. The broker is asked
    /// every now and then; in between jobs are only added.
    pub async fn ahead_of(&self, priority: u8) -> u64 {
        let mut waiting = self.waiting.lock().await;
        if waiting.counted.is_none_or(|counted| counted.elapsed() >= COUNT_EVERY) {
            let pending = |queue: &WorkQueue| {
                let queue = queue.clone();
                async move { queue.consumer().get_info().await.map_or(0, |info| info.num_pending) }
            };
            waiting.jobs = join_all(self.queues.iter().map(|(_, queue)| pending(queue))).await;
            for (jobs, held) in waiting.jobs.iter_mut().zip(self.held.iter()) {
                *jobs += held.load(Ordering::Relaxed);
            }
            waiting.counted = Some(Instant::now());
        }
        let mut ahead = 0;
        for ((of, _), jobs) in self.queues.iter().zip(&mut waiting.jobs) {
            ahead += if *of >= priority { *jobs } else { 0 };
            *jobs += u64::from(*of == priority);
        }
        ahead
    }

    /// Whether a job stands in line, or is in flight.
    pub async fn holds(&self, job: &JobId) -> bool {
        let look = PRIORITIES.map(|priority| async move {
            self.bus.last_on(StreamName::Line, &self.bus.subjects().waiting(priority, job)).await.is_some()
        });
        join_all(look).await.contains(&true)
    }

    /// Puts a job in line, once however often: its place is taken only if it does not stand there. `admission` tells this
    /// admission of the id from every other.
    pub async fn put(&self, request: &JobRequest, admission: u64, headers: HeaderMap, body: Bytes) {
        let subject = self.bus.subjects().waiting(request.priority, &request.job);
        let id = format!("{}/waiting/{admission}", request.job);
        // Refused means that it stands there.
        let _ = self.bus.store_behind(&Conditional { subject, id, headers, behind: 0, body }).await;
    }

    /// Notes how many jobs of each priority, in the order of [`PRIORITIES`], workers have taken and not begun: they wait as
    /// those in the queues do.
    pub fn note_held(&self, held: [u64; PRIORITIES.len()]) {
        for (noted, now) in self.held.iter().zip(held) {
            noted.store(now, Ordering::Relaxed);
        }
    }

    /// Subject of messages that announce jobs in line. A job that none announced is found by a look now and then.
    pub fn hints(&self) -> String {
        format!("{}.*.*", self.bus.subjects().jobs())
    }

    /// The job at the front, if there is one now of at least this priority. Where none stands in line, which is most of the time, one
    /// answer says so of all queues.
    pub async fn find(&self, least: u8) -> Option<Delivery> {
        match tokio::time::timeout(LOOK_WAIT, self.bus.messages_in(StreamName::Line)).await {
            Ok(Some(0)) | Err(_) => return None,
            // Gone with its queues, perhaps: a look at them finds out.
            Ok(_) => {}
        }
        for (priority, queue) in &self.queues {
            if *priority < least {
                return None;
            }
            if let Some(delivery) = self.look(queue).await {
                return Some(delivery);
            }
        }
        None
    }

    /// First job of a queue, if there is one now. Queues that are gone are made again: all at once, as they go together and
    /// nats-server 2.9.10 answers no look at one that is gone (ten waits of [`LOOK_WAIT`] one after the other).
    async fn look(&self, queue: &WorkQueue) -> Option<Delivery> {
        let look = async { queue.consumer().fetch().max_messages(1).messages().await.ok()?.next().await };
        // Without a limit, a look that a dying broker never answers would be the last one.
        match tokio::time::timeout(LOOK_WAIT, look).await {
            Ok(Some(Ok(message))) => Delivery::new(&self.bus, message),
            Ok(Some(Err(error))) => {
                tracing::debug!(%error, "look at a queue not answered");
                self.restore().await;
                None
            }
            Ok(None) => None,
            Err(_) => {
                self.restore().await;
                None
            }
        }
    }

    /// Makes the queues again that are gone.
    async fn restore(&self) {
        join_all(self.queues.iter().map(|(_, queue)| queue.restore(&self.bus))).await;
    }
}
