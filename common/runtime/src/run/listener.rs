//! One instance's listener for control messages: cancel and drain, heard by every instance and answered when done.

use std::time::Duration;

use futures::{FutureExt, StreamExt};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::control;
use super::ending;
use super::job_end::JobEnd;
use super::registry::{InFlight, Registry};
use super::shutdown::Shutdown;
use crate::bus::events::EventLog;
use crate::bus::{Bus, BusError, BusErrorKind};
use protocol::control::{ControlReply, ControlRequest, Verb};
use protocol::error::StageName;
use protocol::event::CancelledBy;
use protocol::message::JobId;
use protocol::wire::{self, Encoding};

/// Time that a process that leaves waits at most for the replies that it still owes.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Makes this instance finish what is in flight and leave.
#[derive(Clone)]
pub struct Draining(watch::Sender<bool>);

impl Draining {
    /// From now on no further message is taken.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }
}

/// Listener for control messages, and what it has heard.
pub struct Listener {
    bus: Bus,
    registry: Registry,
    draining: watch::Sender<bool>,
    /// Dropped once no further message is to be heard; then the task ends with its last reply.
    listening: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Starts listening. `shutdown` drains this instance as a `drain` message does.
    ///
    /// # Errors
    /// When the broker refuses the subscription.
    pub async fn start(bus: &Bus, stage: StageName, mut shutdown: Shutdown) -> Result<Self, BusError> {
        let mut messages = bus
            .client()
            .subscribe(bus.subjects().all_control())
            .await
            .map_err(|e| BusError::new(BusErrorKind::JetStream, format!("control: {e}")))?;
        let registry = Registry::default();
        let draining = watch::Sender::new(false);
        let mut handler = Handler {
            bus: bus.clone(),
            stage,
            registry: registry.clone(),
            draining: draining.clone(),
            replies: JoinSet::new(),
        };
        let on_shutdown = draining.clone();
        tokio::spawn(async move {
            if shutdown.wait_for(|&s| s).await.is_ok() {
                on_shutdown.send_replace(true);
            }
        });
        let (listening, mut over) = oneshot::channel();
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(message) = messages.next() => handler.hear(message),
                    Some(_) = handler.replies.join_next() => {}
                    _ = &mut over => break,
                }
            }
            while let Some(Some(message)) = messages.next().now_or_never() {
                handler.hear(message);
            }
            while handler.replies.join_next().await.is_some() {}
        });
        Ok(Listener { bus: bus.clone(), registry, draining, listening, task })
    }

    /// Turns true when this instance shall take no further message.
    pub fn shutdown(&self) -> Shutdown {
        self.draining.subscribe()
    }

    /// For whoever finds a reason of its own for this instance to leave.
    pub fn draining(&self) -> Draining {
        Draining(self.draining.clone())
    }

    /// Whether this instance shall take no further message.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Begins with a message of `job`, or with the job. Its signal is set already if the job has ended, or shall. The log is
    /// asked where this process may have missed the end (the job is new here, or the message comes `again`), and where it
    /// has heard of one: the id may be used again since.
    pub async fn begin(&self, job: &JobId, again: bool) -> InFlight {
        let (in_flight, new) = self.registry.begin(job);
        let heard_end = in_flight.end().get() == Some(JobEnd::Ended);
        if !(new || again || heard_end) {
            return in_flight;
        }
        if EventLog::open(&self.bus, job).await.ended().is_some() {
            in_flight.end().set(JobEnd::Ended);
        } else if heard_end {
            drop(in_flight);
            self.registry.forget(job);
            return self.registry.begin(job).0;
        }
        in_flight
    }

    /// What this instance knows of jobs.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Forgets a job whose signal was set though it has not ended.
    pub fn forget(&self, job: &JobId) {
        self.registry.forget(job);
    }

    /// Stops listening, once nothing is in flight any more, and waits for the replies that are owed.
    pub async fn drained(self) {
        drop(self.listening);
        if tokio::time::timeout(LAST_WORDS, self.task).await.is_err() {
            tracing::debug!(waited = ?LAST_WORDS, "control reply dropped, the process ends");
        }
        if let Err(error) = self.bus.client().flush().await {
            tracing::debug!(%error, "flush of the last replies failed");
        }
    }
}

/// Handler of control messages, in the listener's task.
struct Handler {
    bus: Bus,
    stage: StageName,
    registry: Registry,
    draining: watch::Sender<bool>,
    /// Replies on their way.
    replies: JoinSet<()>,
}

impl Handler {
    fn hear(&mut self, message: async_nats::Message) {
        let name = message.subject.rsplit('.').next().unwrap_or_default().to_owned();
        let verb = name.parse::<Verb>().ok();
        if matches!(verb, Some(Verb::Load | Verb::Unload)) {
            // A supervisor answers those.
            return;
        }
        let mut reply = ControlReply {
            v: wire::VERSION,
            stage: self.stage,
            instance: self.bus.instance().to_owned(),
            stopped: false,
            error: None,
        };
        let request = match wire::decode_any::<ControlRequest>(&message.payload) {
            Ok(request) if !self.is_meant(&request) => return,
            Ok(request) => request,
            Err(error) => {
                tracing::warn!(verb = name, %error, "control message unreadable");
                self.bus.note_unreadable();
                reply.error = Some(error.to_string());
                return self.answer(message, reply, None);
            }
        };
        if verb == Some(Verb::Drain)
            && let Err(why) = control::check_sender(&message)
        {
            tracing::warn!(why, "drain refused");
            self.bus.note_unreadable();
            reply.error = Some(why);
            return if control::has_inbox(&message) {
                self.answer(message, reply, None)
            };
        }
        match (verb, request.job) {
            (Some(Verb::Cancel), Some(job)) => self.cancel(message, reply, job, request.ended),
            (Some(Verb::Drain), _) if request.stage.is_none() && request.instance.is_none() => {
                reply.error = Some("control.drain names an instance or a stage".to_owned());
                self.answer(message, reply, None);
            }
            (Some(Verb::Drain), _) => self.drain(message, reply),
            _ => {
                self.bus.note_unreadable();
                reply.error = Some(format!(
                    "control.{name} is not understood; there are cancel {{job}}, drain {{instance}} or {{stage}}, load and unload {{stage}}"
                ));
                self.answer(message, reply, None);
            }
        }
    }

    /// Whether a request is for this instance.
    fn is_meant(&self, request: &ControlRequest) -> bool {
        request.stage.is_none_or(|stage| stage == self.stage)
            && request.instance.as_ref().is_none_or(|instance| instance == self.bus.instance())
    }

    fn cancel(&mut self, message: async_nats::Message, mut reply: ControlReply, job: JobId, ended: bool) {
        let by = CancelledBy::Client;
        reply.stopped = self.registry.end(&job, if ended { JobEnd::Ended } else { JobEnd::Cancelled(by) });
        if !ended {
            let (bus, stage, registry, job) = (self.bus.clone(), self.stage, self.registry.clone(), job.clone());
            let (encoding, signal) = (Encoding::of(&message.payload), self.registry.signal(&job));
            tokio::spawn(async move {
                ending::ensure_ended(bus, stage, job.clone(), by, encoding).await;
                // It has ended, or nobody has heard of it: a job that is submitted with the id later is not cancelled.
                registry.end_of(&job, &signal);
            });
        }
        self.answer(message, reply, Some(job));
    }

    fn drain(&mut self, message: async_nats::Message, mut reply: ControlReply) {
        reply.stopped = true;
        let (bus, draining) = (self.bus.clone(), self.draining.clone());
        self.replies.spawn(async move {
            // Told first: with nothing in flight this process leaves at once.
            send(&bus, message, &reply).await;
            draining.send_replace(true);
        });
    }

    /// Replies, for a cancel once its work is dropped and nothing of it is in flight.
    fn answer(&mut self, message: async_nats::Message, reply: ControlReply, job: Option<JobId>) {
        let (bus, stage, registry) = (self.bus.clone(), self.stage, self.registry.clone());
        self.replies.spawn(async move {
            if let Some(job) = job {
                bus.purge(stage, &job).await;
                registry.idle(&job).await;
            }
            send(&bus, message, &reply).await;
        });
    }
}

/// Sends a reply in the encoding of its request, if the sender wants one.
async fn send(bus: &Bus, request: async_nats::Message, reply: &ControlReply) {
    let encoding = Encoding::of(&request.payload);
    if let Some(to) = request.reply {
        bus.tell(to.to_string(), wire::encode_as(encoding, reply)).await;
    }
}
