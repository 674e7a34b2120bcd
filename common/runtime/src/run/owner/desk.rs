//! The loop of a worker that owns several jobs: what it has, how far each is, and what happens next.
//!
//! A job comes from the line or from another worker, unclaimed, and is *held* while it waits here. It is *taken up* when
//! its turn comes, or when the engine is at another one about its video and its file has been looked into; then it is
//! *offered* to the engine. The engine is at those that it has taken, and each is settled in a task of its own as soon as
//! the engine is done with it.
//!
//! In reading order: this file (state, loop), [`work`] (what is on the desk), [`turn`] (which job is next, and the engine), [`ahead`] (jobs found in line, and
//! made ready beside those that the engine is at), [`share`] (what is told to the other workers, handed to them and given
//! back).

mod ahead;
mod share;
mod turn;
mod work;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::StreamExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinError, JoinSet};

use super::answer::{Outcome, Owned};
use super::company::{Offered, Said};
use super::held::Held;
use super::others::Others;
use super::worker::{Settled, Worker};
use crate::bus::{BusError, BusErrorKind};
use crate::run::line::Line;
use crate::run::service::Counters;
use crate::run::shutdown::{self, Shutdown};
use crate::subject::PRIORITIES;
use protocol::message::JobId;
use protocol::stage::{KeptVideo, Owner};
use protocol::workers::WorkerNews;
use work::{Done, Turn, Waiting};

/// Time between two looks at what waits here, and at what the others say.
const TICK: Duration = Duration::from_millis(250);
/// Ticks after which a waiting job is found that no hint announced (its worker died).
const LOOK_EVERY: u64 = 2;

/// A worker's jobs, and its loop.
pub struct Desk<O> {
    worker: Arc<Worker<O>>,
    line: Line,
    tasks: JoinSet<Done>,
    say: UnboundedSender<Said>,
    said: UnboundedReceiver<Said>,
    /// Every job that is here, however far: a second delivery of one is left alone, and comes again.
    known: HashSet<JobId>,
    held: Held<Waiting>,
    offered: Offered,
    owned: HashMap<JobId, Owned>,
    turn: Turn,
    /// Whether a look at the line goes on, and whether one is due.
    finding: bool,
    due: bool,
    /// Jobs that are made ready for the engine.
    preparing: usize,
    others: Others,
    /// Workers that are offered a job just now.
    asked: HashSet<String>,
    counting: bool,
    keeps: Vec<KeptVideo>,
    told: Option<(Instant, WorkerNews)>,
    draining: bool,
    ticks: u64,
}

impl<O: Owner + Send + 'static> Desk<O> {
    /// Desk of a worker, with nothing on it.
    pub fn new(worker: Worker<O>, line: Line) -> Self {
        let (say, said) = unbounded_channel();
        let others = Others::new(worker.bus.instance());
        Desk {
            worker: Arc::new(worker),
            line,
            tasks: JoinSet::new(),
            say,
            said,
            known: HashSet::new(),
            held: Held::default(),
            offered: Offered::default(),
            owned: HashMap::new(),
            turn: Turn::Free,
            finding: false,
            due: true,
            preparing: 0,
            others,
            asked: HashSet::new(),
            counting: false,
            keeps: Vec::new(),
            told: None,
            draining: false,
            ticks: 0,
        }
    }

    /// Takes jobs and answers them until `shutdown`, and then until all that the engine is at are settled; the worker, which
    /// nobody shares any more.
    ///
    /// # Errors
    /// When the broker refuses a subscription.
    pub async fn run(mut self, mut shutdown: Shutdown) -> Result<Option<Worker<O>>, BusError> {
        let bus = self.worker.bus.clone();
        let subscribe = async |subject: String| {
            let failed = |e| BusError::new(BusErrorKind::JetStream, format!("{subject}: {e}"));
            bus.client().subscribe(subject.clone()).await.map_err(failed)
        };
        let mut hints = subscribe(self.line.hints()).await?;
        let mut news = subscribe(bus.subjects().workers()).await?;
        let mut offers = subscribe(bus.subjects().offers(bus.instance())).await?;
        let mut ticks = tokio::time::interval(TICK);
        loop {
            self.go_on();
            self.tell_news().await;
            if self.draining && matches!(self.turn, Turn::Free) && self.tasks.is_empty() {
                return Ok(Arc::into_inner(self.worker));
            }
            tokio::select! {
                Some(said) = self.said.recv() => self.hear(said),
                Some(done) = self.tasks.join_next() => self.note(done),
                Some(message) = news.next() => self.hear_worker(&message.payload),
                Some(message) = offers.next() => self.hear_offer(message).await,
                Some(_) = hints.next() => self.due = true,
                _ = ticks.tick() => self.look_around(),
                () = shutdown::begun(&mut shutdown), if !self.draining => self.draining = true,
            }
        }
    }

    /// Begins what can be begun.
    fn go_on(&mut self) {
        match &self.turn {
            _ if self.draining => self.give_all_back(),
            Turn::Free => self.next_turn(),
            Turn::Beginning => {}
            Turn::At(_) => {
                self.look_ahead();
                self.prepare();
            }
        }
        self.count();
    }

    /// Notes what a task has come to.
    fn note(&mut self, done: Result<Done, JoinError>) {
        match done {
            Ok(Done::Found(found)) => self.found(found),
            Ok(Done::TakenUp { place, job, alone, taken }) => self.taken_up(place, &job, alone, taken),
            Ok(Done::Prepared { place, job, prepared }) => self.prepared(place, job, prepared),
            Ok(Done::Returned(returned)) => self.returned(returned),
            Ok(Done::Settled(job, settled)) => self.settled(&job, settled),
            Ok(Done::Offered { place, waiting, to, answered }) => self.offer_answered(place, *waiting, &to, answered),
            Ok(Done::Counted(counted)) => {
                self.counting = false;
                match counted {
                    Ok(instances) => self.others.note_count(instances),
                    Err(error) => tracing::debug!(%error, "workers not counted, retrying"),
                }
            }
            Ok(Done::Left) => {}
            Err(panicked) => {
                tracing::error!(%panicked, "a job's task panicked, the job comes again. This is a bug.");
                self.recover();
            }
        }
    }

    /// Goes on without a task that is gone, and with it a job: what is still here is known, and the rest may come again.
    fn recover(&mut self) {
        let offered = self.offered.left_for(Duration::ZERO);
        self.known = self.held.iter().map(|(_, job, _)| job.clone()).collect();
        self.known.extend(self.owned.keys().cloned());
        self.known.extend(offered.into_iter().map(|(_, job)| job));
        if matches!(self.turn, Turn::Beginning) {
            self.turn = Turn::Free;
        }
        (self.finding, self.counting, self.preparing, self.due) = (false, false, 0, true);
        self.asked.clear();
    }

    /// Ends a job that the engine is done with, or that it will not get.
    fn end(&mut self, job: JobId, outcome: Outcome) {
        let Some(owned) = self.owned.remove(&job) else { return };
        let worker = self.worker.clone();
        self.tasks.spawn(async move {
            let settled = worker.finish(owned, outcome).await;
            Done::Settled(job, settled)
        });
    }

    fn settled(&mut self, job: &JobId, settled: Settled) {
        self.known.remove(job);
        self.note_settled(settled);
    }

    fn note_settled(&self, settled: Settled) {
        let counters = &self.worker.counters;
        let counter = match settled {
            Settled::Processed => &counters.processed,
            Settled::Failed => &counters.failed,
        };
        Counters::add(counter, 1);
    }

    /// Tells others of this process how many jobs are where.
    fn count(&self) {
        let counters = &self.worker.counters;
        counters.in_flight.store(self.owned.len() as u64, Ordering::Relaxed);
        let mut held = self.others.held();
        for (held, own) in held.iter_mut().zip(self.own_held()) {
            *held += own;
        }
        counters.held.store(held.iter().sum(), Ordering::Relaxed);
        self.line.note_held(held);
    }

    /// Jobs of each priority, in the order of [`PRIORITIES`], that wait here.
    fn own_held(&self) -> [u64; PRIORITIES.len()] {
        let mut held = [0; PRIORITIES.len()];
        for (place, ..) in self.held.iter() {
            let at = PRIORITIES.iter().position(|priority| *priority == place.priority());
            held[at.unwrap_or_default()] += 1;
        }
        held
    }
}
