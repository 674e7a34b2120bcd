//! Stages that leave and come back: `control.unload`, `control.load`, and what happens of itself when nobody asks.
//!
//! A stage that is unloaded has no process at all, so that it holds no memory, on a GPU least of all. Every job lies in
//! VIDI_JOBS from its submission to its end; so while that stream holds something there is work, and once it does, what
//! was unloaded is started again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use async_nats::Message;
use futures::StreamExt;
use protocol::control::{ControlRequest, LoadReply};
use protocol::error::StageName;
use protocol::wire::{self, Encoding};
use runtime::bus::{Bus, BusError, BusErrorKind};
use runtime::subject::StreamName;

use crate::up::supervisor::Roster;

/// The stages that compute, in the order in which they leave: the owner of jobs first, so that a job in hand still finds
/// the others.
pub const COMPUTING: [StageName; 4] = [StageName::Llm, StageName::Vision, StageName::Audio, StageName::Fuse];
/// Jobs are looked for this often, beside being heard of as they come.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Loads and unloads stages for whoever asks, until dropped.
pub struct Idle(tokio::task::JoinHandle<()>);

impl Idle {
    /// Starts listening. Stages that had nothing to do for `unload_after` are unloaded; none: never.
    ///
    /// # Errors
    /// When the broker refuses the subscriptions.
    pub async fn start(bus: &Bus, roster: Roster, unload_after: Option<Duration>) -> Result<Self, BusError> {
        let subscribe = async |subject: String| {
            let refused = |e| BusError::new(BusErrorKind::JetStream, format!("{subject}: {e}"));
            bus.client().subscribe(subject.clone()).await.map_err(refused)
        };
        let mut load = subscribe(bus.subjects().control("load")).await?;
        let mut unload = subscribe(bus.subjects().control("unload")).await?;
        let mut jobs = subscribe(bus.subjects().jobs()).await?;
        let mut warden = Warden {
            bus: bus.clone(),
            roster,
            unload_after,
            worked: Instant::now(),
            away: BTreeSet::new(),
            held: false,
        };
        Ok(Idle(tokio::spawn(async move {
            let mut look = tokio::time::interval(LOOK_EVERY);
            loop {
                tokio::select! {
                    Some(message) = load.next() => warden.answer(message, Verb::Load).await,
                    Some(message) = unload.next() => warden.answer(message, Verb::Unload).await,
                    Some(_) = jobs.next() => warden.work_came().await,
                    _ = look.tick() => warden.look().await,
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

#[derive(Clone, Copy)]
enum Verb {
    Load,
    Unload,
}

/// What the task that listens knows.
struct Warden {
    bus: Bus,
    roster: Roster,
    unload_after: Option<Duration>,
    /// When there was work last.
    worked: Instant,
    /// Stages that were unloaded.
    away: BTreeSet<StageName>,
    /// Set while a job's owner has the card to itself: what is away then stays away, whatever work comes.
    held: bool,
}

impl Warden {
    async fn answer(&mut self, message: Message, verb: Verb) {
        let started = Instant::now();
        let encoding = Encoding::of(&message.payload);
        let asked = match message.payload.is_empty() {
            true => Ok(ControlRequest::default()),
            false => wire::decode_any::<ControlRequest>(&message.payload).map_err(|e| e.to_string()),
        };
        let mut reply = LoadReply::new(self.bus.instance());
        match asked {
            Ok(ControlRequest { stage: Some(stage), .. }) if !self.roster.has(stage) => {
                reply.error = Some(format!("no stage-{stage} is kept here"));
            }
            Ok(ControlRequest { stage, job, .. }) => {
                self.held = matches!(verb, Verb::Unload) && job.is_some();
                let stages = stage.map_or(COMPUTING.to_vec(), |s| vec![s]);
                (reply.stages, reply.processes) = match verb {
                    Verb::Load => self.load(&stages),
                    Verb::Unload => self.unload(&stages).await,
                };
            }
            Err(error) => reply.error = Some(error),
        }
        reply.ms = started.elapsed().as_millis() as u64;
        if let Some(to) = message.reply {
            self.bus.tell(to.to_string(), wire::encode_as(encoding, &reply)).await;
        }
    }

    /// Ends the processes of stages, one stage after the other; says which had some, and how many.
    async fn unload(&mut self, stages: &[StageName]) -> (Vec<StageName>, u64) {
        let (mut ended, mut processes) = (Vec::new(), 0);
        for &stage in stages {
            let n = self.roster.unload(stage).await;
            if n > 0 {
                tracing::info!(%stage, processes = n, "unloaded");
                ended.push(stage);
                processes += n;
            }
            self.away.insert(stage);
        }
        (ended, processes)
    }

    /// Starts the processes of stages that have none; says which, and how many.
    fn load(&mut self, stages: &[StageName]) -> (Vec<StageName>, u64) {
        self.worked = Instant::now();
        let (mut started, mut processes) = (Vec::new(), 0);
        for &stage in stages {
            self.away.remove(&stage);
            let n = self.roster.load(stage);
            if n > 0 {
                tracing::info!(%stage, processes = n, "loading");
                started.push(stage);
                processes += n;
            }
        }
        (started, processes)
    }

    /// Loads what is away, unless a job needs it to stay so.
    async fn work_came(&mut self) {
        if self.held {
            return;
        }
        let away: Vec<StageName> = self.away.iter().copied().collect();
        self.load(&away);
    }

    /// Loads what is away if there is work, unloads what computes if there was none for long.
    async fn look(&mut self) {
        if self.away.is_empty() && self.unload_after.is_none() {
            return;
        }
        let jobs = match self.bus.stream(StreamName::Jobs).await {
            Ok(stream) => stream.get_info().await.map(|info| info.state.messages),
            Err(error) => return tracing::debug!(%error, "jobs cannot be counted yet"),
        };
        match jobs {
            Ok(0) => {
                // Whoever held it has nothing to hold it for.
                self.held = false;
                let all_away = COMPUTING.iter().all(|s| self.away.contains(s));
                if !all_away && self.unload_after.is_some_and(|after| self.worked.elapsed() >= after) {
                    self.unload(&COMPUTING).await;
                }
            }
            Ok(_) => self.work_came().await,
            Err(error) => tracing::debug!(%error, "jobs cannot be counted yet"),
        }
    }
}
