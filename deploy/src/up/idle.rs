//! Loading and unloading of stages: on request (`control.load`, `control.unload`), after an idle time, and for new work.
//!
//! A stage that is unloaded has no process at all, so that it holds no memory, on a GPU least of all. Every job lies in
//! VIDI_JOBS or VIDI_LINE from its submission to its end: while those streams hold something there is work, and what was unloaded is
//! started again.

use std::time::{Duration, Instant};

use async_nats::Message;
use config::Device;
use futures::StreamExt;
use protocol::control::{ControlRequest, LoadReply, Verb};
use protocol::error::StageName;
use protocol::wire::{self, Encoding};
use runtime::bus::{Bus, BusError, BusErrorKind};
use runtime::run::control;
use runtime::subject::StreamName;

use super::desired::Desired;

/// Stages that compute, in the order in which they are unloaded: the owner of jobs first, so that a job in flight still
/// finds the others.
pub const COMPUTING: [StageName; 4] = [StageName::Llm, StageName::Vision, StageName::Audio, StageName::Fuse];
/// Interval at which jobs are counted, beside being heard of as they come.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Task that loads and unloads stages, until dropped.
pub struct Idle(tokio::task::JoinHandle<()>);

impl Idle {
    /// Starts the task. Stages that had nothing to do for `unload_after` are unloaded; none: never.
    ///
    /// # Errors
    /// When the broker refuses the subscriptions.
    pub async fn start(bus: &Bus, desired: Desired, unload_after: Option<Duration>) -> Result<Self, BusError> {
        let subscribe = async |subject: String| {
            let refused = |e| BusError::new(BusErrorKind::JetStream, format!("{subject}: {e}"));
            bus.client().subscribe(subject.clone()).await.map_err(refused)
        };
        let mut load = subscribe(bus.subjects().control(Verb::Load)).await?;
        let mut unload = subscribe(bus.subjects().control(Verb::Unload)).await?;
        let mut jobs = subscribe(bus.subjects().jobs()).await?;
        let mut state = State { bus: bus.clone(), desired, unload_after, last_work: Instant::now(), pinned: false };
        Ok(Idle(tokio::spawn(async move {
            let mut look = tokio::time::interval(LOOK_EVERY);
            loop {
                tokio::select! {
                    Some(message) = load.next() => state.answer(message, Verb::Load).await,
                    Some(message) = unload.next() => state.answer(message, Verb::Unload).await,
                    Some(_) = jobs.next() => state.work_came().await,
                    _ = look.tick() => state.count_jobs().await,
                }
            }
        })))
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// State of the task.
struct State {
    bus: Bus,
    desired: Desired,
    unload_after: Option<Duration>,
    /// Last time that there was work.
    last_work: Instant,
    /// Set while a job's owner has the GPU to itself: unloaded stages then stay so, whatever work comes.
    pinned: bool,
}

impl State {
    async fn answer(&mut self, message: Message, verb: Verb) {
        if let Err(why) = control::check_sender(&message) {
            tracing::warn!(%verb, why, "refused");
            if control::has_inbox(&message)
                && let Some(to) = message.reply
            {
                let reply = LoadReply { error: Some(why), ..LoadReply::new(self.bus.instance()) };
                self.bus.tell(to.to_string(), wire::encode_as(Encoding::of(&message.payload), &reply)).await;
            }
            return;
        }
        let started = Instant::now();
        let encoding = Encoding::of(&message.payload);
        let asked = match message.payload.is_empty() {
            true => Ok(ControlRequest::default()),
            false => wire::decode_any::<ControlRequest>(&message.payload).map_err(|e| e.to_string()),
        };
        let mut reply = LoadReply::new(self.bus.instance());
        match asked {
            Ok(ControlRequest { stage: Some(stage), .. }) if !self.desired.has(stage) => {
                reply.error = Some(format!("no process of stage-{stage} is supervised here"));
            }
            Ok(ControlRequest { stage, device, job, .. }) => {
                match device.map(|name| name.parse::<Device>()).transpose() {
                    Ok(device) => {
                        self.pinned = verb == Verb::Unload && job.is_some();
                        let stages = stage.map_or(COMPUTING.to_vec(), |s| vec![s]);
                        (reply.stages, reply.processes) = match verb {
                            Verb::Unload => self.unload(&stages, device).await,
                            _ => self.load(&stages, device),
                        };
                    }
                    Err(unknown) => reply.error = Some(unknown),
                }
            }
            Err(error) => reply.error = Some(error),
        }
        reply.ms = started.elapsed().as_millis() as u64;
        if let Some(to) = message.reply {
            self.bus.tell(to.to_string(), wire::encode_as(encoding, &reply)).await;
        }
    }

    /// Ends the processes of stages, on one device or on all, one stage after the other; says which had some, and how many.
    async fn unload(&mut self, stages: &[StageName], device: Option<Device>) -> (Vec<StageName>, u64) {
        let (mut ended, mut processes) = (Vec::new(), 0);
        for &stage in stages {
            let n = self.desired.unload(stage, device).await;
            if n > 0 {
                tracing::info!(%stage, device = device.map(tracing::field::display), processes = n, "unloaded");
                ended.push(stage);
                processes += n;
            }
        }
        (ended, processes)
    }

    /// Starts the processes of stages that are unloaded, on one device or on all; says which, and how many.
    fn load(&mut self, stages: &[StageName], device: Option<Device>) -> (Vec<StageName>, u64) {
        self.last_work = Instant::now();
        let (mut started, mut processes) = (Vec::new(), 0);
        for &stage in stages {
            let n = self.desired.load(stage, device);
            if n > 0 {
                tracing::info!(%stage, processes = n, "loading");
                started.push(stage);
                processes += n;
            }
        }
        (started, processes)
    }

    /// Loads what is unloaded, unless a job needs it to stay so.
    async fn work_came(&mut self) {
        if self.pinned {
            return;
        }
        self.load(&self.desired.unloaded(), None);
    }

    /// Loads what is unloaded if there is work; unloads what computes if there was none for `unload_after`.
    async fn count_jobs(&mut self) {
        if self.desired.unloaded().is_empty() && self.unload_after.is_none() {
            return;
        }
        let count = async |stream| self.bus.stream(stream).await.get_info().await.map(|info| info.state.messages);
        let (requests, line) = (count(StreamName::Jobs).await, count(StreamName::Line).await);
        match requests.and_then(|requests| line.map(|line| requests + line)) {
            Ok(0) => {
                // No job is left that needs the GPU to itself.
                self.pinned = false;
                let all_unloaded = COMPUTING.iter().all(|&s| self.desired.is_unloaded(s));
                if !all_unloaded && self.unload_after.is_some_and(|after| self.last_work.elapsed() >= after) {
                    self.unload(&COMPUTING, None).await;
                }
            }
            Ok(_) => self.work_came().await,
            Err(error) => tracing::debug!(%error, "counting jobs failed, retrying"),
        }
    }
}
