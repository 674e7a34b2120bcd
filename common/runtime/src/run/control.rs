//! Cancel and drain: core NATS requests that every stage instance hears and answers when done.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{FutureExt, StreamExt};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::{Shutdown, ending};
use crate::bus::events::EventLog;
use crate::bus::{Bus, BusError, BusErrorKind};
use protocol::control::{ControlReply, ControlRequest, LoadReply};
use protocol::error::StageName;
use protocol::event::CancelledBy;
use protocol::message::JobId;
use protocol::wire::{self, Encoding};

/// Jobs remembered as known or cancelled; the oldest are forgotten first.
const REMEMBERED: usize = 4096;
/// A stage that is unloaded finishes what it has in hand first.
const LOAD_WAIT: Duration = Duration::from_secs(60);
/// Verbs that a supervisor answers, not the stages.
const SUPERVISORS: [&str; 2] = ["load", "unload"];
/// Replies to a broadcast that come later than this after the last one are not waited for.
const QUIET: Duration = Duration::from_millis(300);
/// Replies to a broadcast are not waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(2);
/// A process that leaves waits at most this long for the replies that it still owes.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Set once nobody waits for a job any more. The registry, the engine and the publishers of one job share it.
#[derive(Clone, Debug, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets it, for good.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Known {
    flags: HashMap<JobId, CancelFlag>,
    order: VecDeque<JobId>,
}

impl Known {
    /// The job's flag, and whether the job is new to this process.
    fn flag(&mut self, job: &JobId) -> (CancelFlag, bool) {
        if let Some(flag) = self.flags.get(job) {
            return (flag.clone(), false);
        }
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.flags.remove(&oldest);
        }
        let flag = CancelFlag::default();
        self.flags.insert(job.clone(), flag.clone());
        self.order.push_back(job.clone());
        (flag, true)
    }
}

/// A message or job that is being worked on, until dropped.
pub struct InHand {
    job: JobId,
    flag: CancelFlag,
    all: watch::Sender<Vec<(JobId, CancelFlag)>>,
}

impl InHand {
    /// Set once nobody waits for it any more.
    pub fn flag(&self) -> &CancelFlag {
        &self.flag
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.all.send_modify(|all| {
            // Of two messages of one job either will do: their flags are one.
            if let Some(at) = all.iter().position(|(job, flag)| *job == self.job && Arc::ptr_eq(&flag.0, &self.flag.0))
            {
                all.swap_remove(at);
            }
        });
    }
}

/// One instance's ear for control messages.
pub struct Control {
    bus: Bus,
    known: Arc<Mutex<Known>>,
    /// What is in hand; control replies wait on it.
    in_hand: watch::Sender<Vec<(JobId, CancelFlag)>>,
    draining: watch::Sender<bool>,
    /// Dropped once no further message is to be heard; then the listener ends with its last reply.
    listening: oneshot::Sender<()>,
    listener: JoinHandle<()>,
}

impl Control {
    /// Starts listening. `shutdown` drains this instance as a `drain` message does.
    ///
    /// # Errors
    /// When the broker refuses the subscription.
    pub async fn start(bus: &Bus, stage: StageName, mut shutdown: Shutdown) -> Result<Self, BusError> {
        let mut messages = bus
            .client()
            .subscribe(bus.subjects().control("*"))
            .await
            .map_err(|e| BusError::new(BusErrorKind::JetStream, format!("control: {e}")))?;
        let known: Arc<Mutex<Known>> = Arc::default();
        let in_hand = watch::Sender::new(Vec::new());
        let draining = watch::Sender::new(false);
        let mut ear = Ear {
            bus: bus.clone(),
            stage,
            known: known.clone(),
            in_hand: in_hand.subscribe(),
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
        let listener = tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(message) = messages.next() => ear.hear(message),
                    Some(_) = ear.replies.join_next() => {}
                    _ = &mut over => break,
                }
            }
            while let Some(Some(message)) = messages.next().now_or_never() {
                ear.hear(message);
            }
            while ear.replies.join_next().await.is_some() {}
        });
        Ok(Control { bus: bus.clone(), known, in_hand, draining, listening, listener })
    }

    /// Turns true when this instance shall take no further message.
    pub fn shutdown(&self) -> Shutdown {
        self.draining.subscribe()
    }

    /// Whether this instance shall take no further message.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Takes a message of `job`, or the job, in hand. The flag is set already if the job has ended, as far as this process
    /// has heard; if it may have missed that (the job is new here, or the message comes `again`), the log is asked.
    pub async fn begin(&self, job: &JobId, again: bool) -> InHand {
        let (flag, new) = self.known.lock().expect("no holder panics. This is a bug.").flag(job);
        self.in_hand.send_modify(|all| all.push((job.clone(), flag.clone())));
        let hand = InHand { job: job.clone(), flag, all: self.in_hand.clone() };
        if (new || again) && EventLog::open(&self.bus, job).await.ended().is_some() {
            hand.flag.set();
        }
        hand
    }

    /// Forgets a job whose flag was set though it has not ended.
    pub fn forget(&self, job: &JobId) {
        let mut known = self.known.lock().expect("no holder panics. This is a bug.");
        known.flags.remove(job);
        known.order.retain(|j| j != job);
    }

    /// Stops listening, once nothing is in hand any more, and waits for the replies that are owed.
    pub async fn drained(self) {
        drop(self.listening);
        if tokio::time::timeout(LAST_WORDS, self.listener).await.is_err() {
            tracing::debug!("left without a reply to a control message");
        }
        if let Err(error) = self.bus.client().flush().await {
            tracing::debug!(%error, "last words not sent");
        }
    }
}

struct Ear {
    bus: Bus,
    stage: StageName,
    known: Arc<Mutex<Known>>,
    in_hand: watch::Receiver<Vec<(JobId, CancelFlag)>>,
    draining: watch::Sender<bool>,
    /// On their way.
    replies: JoinSet<()>,
}

impl Ear {
    fn hear(&mut self, message: async_nats::Message) {
        let verb = message.subject.rsplit('.').next().unwrap_or_default().to_owned();
        if SUPERVISORS.contains(&verb.as_str()) {
            return;
        }
        let encoding = Encoding::of(&message.payload);
        let request = wire::decode_any::<ControlRequest>(&message.payload);
        let mut reply = ControlReply {
            v: wire::VERSION,
            stage: self.stage,
            instance: self.bus.instance().to_owned(),
            stopped: false,
            error: None,
        };
        let me = |r: &ControlRequest| {
            r.stage.is_none_or(|s| s == self.stage) && r.instance.as_ref().is_none_or(|i| *i == reply.instance)
        };
        let request = match request {
            Ok(request) if !me(&request) => return,
            Ok(request) => request,
            Err(e) => {
                tracing::warn!(verb, error = %e, "control message not understood");
                self.bus.note_unreadable();
                reply.error = Some(e.to_string());
                return self.answer(message, encoding, reply, None);
            }
        };
        match (verb.as_str(), request.job) {
            ("cancel", Some(job)) => {
                let (flag, _) = self.known.lock().expect("no holder panics. This is a bug.").flag(&job);
                flag.set();
                for (_, flag) in self.in_hand.borrow().iter().filter(|(in_hand, _)| *in_hand == job) {
                    // Its registration may have been forgotten since it was taken in hand.
                    flag.set();
                    reply.stopped = true;
                }
                if !request.ended {
                    tokio::spawn(ending::ensure_ended(self.bus.clone(), self.stage, job.clone(), CancelledBy::Client));
                }
                self.answer(message, encoding, reply, Some(job));
            }
            ("drain", _) if request.stage.is_none() && request.instance.is_none() => {
                reply.error = Some("control.drain names an instance or a stage".to_owned());
                self.answer(message, encoding, reply, None);
            }
            ("drain", _) => {
                reply.stopped = true;
                let (bus, draining) = (self.bus.clone(), self.draining.clone());
                self.replies.spawn(async move {
                    // Told first: with nothing in hand this process leaves at once.
                    if let Some(to) = message.reply {
                        bus.tell(to.to_string(), wire::encode_as(encoding, &reply)).await;
                    }
                    draining.send_replace(true);
                });
            }
            (verb, _) => {
                self.bus.note_unreadable();
                reply.error = Some(format!(
                    "control.{verb} is not understood; there are cancel {{job}}, drain {{instance}} or {{stage}}, load and unload {{stage}}"
                ));
                self.answer(message, encoding, reply, None);
            }
        }
    }

    /// Replies, for a cancel once its work is dropped and nothing of it is in hand.
    fn answer(&mut self, message: async_nats::Message, encoding: Encoding, reply: ControlReply, job: Option<JobId>) {
        let (bus, stage, mut in_hand) = (self.bus.clone(), self.stage, self.in_hand.clone());
        self.replies.spawn(async move {
            if let Some(job) = job {
                bus.purge(stage, &job).await;
                let idle = in_hand.wait_for(|all| all.iter().all(|(in_hand, _)| *in_hand != job));
                // The sender ends with the process; then nothing is in hand either.
                let _ = idle.await;
            }
            if let Some(to) = message.reply {
                bus.tell(to.to_string(), wire::encode_as(encoding, &reply)).await;
            }
        });
    }
}

/// Tells every stage to drop a job that has ended, without waiting.
pub async fn broadcast_end(bus: &Bus, job: &JobId) {
    let request = ControlRequest { v: wire::VERSION, job: Some(job.clone()), ended: true, ..Default::default() };
    bus.tell(bus.subjects().control("cancel"), wire::encode(&request)).await;
}

/// Asks a supervisor to `load` or `unload` a stage. With a job, what is unloaded stays away until it is loaded, or no job
/// is left.
///
/// # Errors
/// Why it was not done.
pub async fn load_or_unload(bus: &Bus, verb: &str, stage: StageName, job: Option<&JobId>) -> Result<LoadReply, String> {
    let request = ControlRequest { v: wire::VERSION, stage: Some(stage), job: job.cloned(), ..Default::default() };
    let request = async_nats::Request::new().payload(wire::encode(&request).into()).timeout(Some(LOAD_WAIT));
    let reply = bus.client().send_request(bus.subjects().control(verb), request).await;
    let reply = reply.map_err(|e| format!("no supervisor answers control.{verb}: {e}"))?;
    let reply: LoadReply = wire::decode_any(&reply.payload).map_err(|e| e.to_string())?;
    reply.error.clone().map_or(Ok(reply), Err)
}

/// Sends a control message and gathers what the instances answer.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn gather(bus: &Bus, verb: &str, request: &ControlRequest) -> Result<Vec<ControlReply>, BusError> {
    let failed = |e: String| BusError::new(BusErrorKind::Unreachable, format!("control.{verb}: {e}"));
    let inbox = bus.client().new_inbox();
    let mut replies = bus.client().subscribe(inbox.clone()).await.map_err(|e| failed(e.to_string()))?;
    bus.client()
        .publish_with_reply(bus.subjects().control(verb), inbox, wire::encode(request).into())
        .await
        .map_err(|e| failed(e.to_string()))?;
    let until = tokio::time::Instant::now() + PATIENCE;
    let mut gathered = Vec::new();
    loop {
        // Until the first reply there is no quiet, only patience.
        let quiet = if gathered.is_empty() { until } else { tokio::time::Instant::now() + QUIET };
        match tokio::time::timeout_at(quiet.min(until), replies.next()).await {
            Ok(Some(reply)) => match wire::decode_any(&reply.payload) {
                Ok(reply) => gathered.push(reply),
                Err(error) => tracing::debug!(%error, "reply not understood"),
            },
            Ok(None) | Err(_) => return Ok(gathered),
        }
    }
}
