//! Jobs that are found in line, and those that are made ready beside the ones that the engine is at.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::{Instrument, Span};

use super::Desk;
use super::work::{Done, Found, Prepared, Turn, Waiting};
use crate::run::line::Line;
use crate::run::owner::answer::Ready;
use crate::run::owner::held::Place;
use crate::run::owner::probe::{self, Probed};
use crate::run::owner::worker::Worker;
use crate::traces;
use protocol::error::StageName;
use protocol::message::JobId;
use protocol::stage::Owner;

/// Jobs that are held at most: so far does a worker look ahead in line for those about the video that it is at.
pub(super) const MOST_HELD: usize = 16;
/// Jobs that are made ready at most while the engine is at others, or are ready and it has not taken them.
const MOST_READY: usize = 4;

/// Time after which a job about another video lets no further ones join before it.
const OVERTAKEN_FOR: Duration = Duration::from_secs(10);

/// Span, in the log, of what is done for a job beside answering it.
pub(super) fn span_of(job: &JobId) -> Span {
    tracing::info_span!("job", stage = "llm", job = job.as_str())
}

impl<O: Owner + Send + 'static> Desk<O> {
    /// Looks at the line beside the engine's work, if nobody else could take at once what is found there.
    pub(super) fn look_ahead(&mut self) {
        let Turn::At(batch) = &self.turn else { return };
        let here = self.held.len() + self.preparing + self.asked.len();
        let free = self.due && !self.finding && here < MOST_HELD;
        if free && !batch.alone && !batch.blocked && !self.others.is_any_idle() && self.others.do_all_speak() {
            self.due = false;
            self.find(0);
        }
    }

    /// Looks at the line for a job of at least this priority.
    pub(super) fn find(&mut self, least: u8) {
        self.finding = true;
        let (worker, line) = (self.worker.clone(), self.line.clone());
        self.tasks.spawn(async move { Done::Found(look(&worker, &line, least).await) });
    }

    /// Notes what was found in line.
    pub(super) fn found(&mut self, found: Found) {
        self.finding = false;
        match found {
            Found::Nothing => {}
            Found::Settled(settled) => {
                self.note_settled(settled);
                self.due = true;
            }
            Found::Job(waiting) => self.found_job(*waiting),
        }
        // Not looked at again before: those who announce jobs without end keep nobody from beginning one.
        if !self.draining
            && matches!(self.turn, Turn::Free)
            && let Some((_, job)) = self.best()
        {
            self.begin(&job);
        }
    }

    fn found_job(&mut self, waiting: Waiting) {
        let (job, place) = (waiting.request.job.clone(), place_of(&waiting));
        self.worker.counters.delivered(StageName::Llm, waiting.delivery.redeliveries);
        if !self.known.insert(job.clone()) {
            tracing::debug!(%job, "delivered again, though it is here: left alone");
            return;
        }
        self.due = true;
        match &mut self.turn {
            // It is to be answered alone, and is not what this worker shall die with.
            Turn::At(batch) if waiting.suspect => {
                batch.blocked = true;
                self.give_back(vec![(place, job, waiting.delivery)], Vec::new());
            }
            _ => {
                self.held.put(place, job.clone(), waiting);
                self.hand_over(&job);
            }
        }
    }

    /// Makes jobs ready that seem to be about the video that the engine is at.
    pub(super) fn prepare(&mut self) {
        let Turn::At(batch) = &self.turn else { return };
        while !batch.alone && self.preparing + self.offered.len() < MOST_READY {
            let joins = |waiting: &Waiting| !waiting.suspect && !waiting.unfit && batch.video.is_of(&waiting.request);
            let Some((place, job)) = self.held.first(joins) else { return };
            if !self.may_join(place.priority()) {
                return;
            }
            let Some((place, waiting)) = self.held.take(&job) else { return };
            self.preparing += 1;
            let (worker, span) = (self.worker.clone(), traces::job(&job, &waiting.delivery.message));
            let preparing = async move {
                let prepared = prepare(&worker, waiting).await;
                Done::Prepared { place, job, prepared }
            };
            self.tasks.spawn(preparing.instrument(span));
        }
    }

    /// Whether a job of this priority may join those that the engine is at, though others here wait for their turn: none is
    /// more urgent, and none has waited for long.
    pub(super) fn may_join(&self, priority: u8) -> bool {
        let Turn::At(batch) = &self.turn else { return false };
        let waits = |waiting: &Waiting| !batch.video.is_of(&waiting.request) && self.may_begin(waiting);
        let held = self.held.iter().filter(|(.., waiting)| waits(waiting));
        let mut others = held.map(|(place, _, waiting)| (*place, waiting.since)).chain(self.offered.declined());
        !batch.alone && others.all(|(place, since)| place.priority() <= priority && since.elapsed() < OVERTAKEN_FOR)
    }

    pub(super) fn prepared(&mut self, place: Place, job: JobId, prepared: Prepared) {
        self.preparing = self.preparing.saturating_sub(1);
        match prepared {
            Prepared::Ready(ready) => {
                let Ready { owned, job: with_port } = *ready;
                self.owned.insert(job, owned);
                self.offered.put(place, with_port);
            }
            Prepared::Settled(settled) => self.settled(&job, settled),
            Prepared::Unfit(waiting) => self.held.put(place, job, *waiting),
        }
    }

    /// Whether it is a while since the line was looked at and somebody waits there, as far as is known.
    pub(super) fn note_tick(&mut self) {
        self.ticks += 1;
        let waits = self.worker.counters.queue_depth.load(Ordering::Relaxed) > 0;
        self.due |= self.ticks.is_multiple_of(super::LOOK_EVERY) && (waits || matches!(self.turn, Turn::Free));
    }
}

/// Place of a job in line.
pub(super) fn place_of(waiting: &Waiting) -> Place {
    Place::new(waiting.request.priority, waiting.delivery.sequence)
}

/// Takes a job from the line, and reads it.
async fn look<O>(worker: &Worker<O>, line: &Line, least: u8) -> Found {
    let Some(delivery) = line.find(least).await else { return Found::Nothing };
    let (request, delivery) = match worker.read(delivery).await {
        Ok(read) => read,
        Err(settled) => return Found::Settled(settled),
    };
    // What was heard of an earlier job with this id does not count.
    let in_flight = worker.listener.begin(&request.job, delivery.redeliveries > 0).await;
    let end = in_flight.end().clone();
    drop(in_flight);
    let suspect = worker.is_suspect(&request.job, &delivery).await;
    Found::Job(Box::new(Waiting { request, delivery, end, suspect, unfit: false, until: None, since: Instant::now() }))
}

/// Makes a job ready beside others: its file is looked into, and it is taken up.
async fn prepare<O>(worker: &Worker<O>, waiting: Waiting) -> Prepared {
    let others_wait = || true;
    let known =
        match probe::probe(&worker.bus, &waiting.request.job, &waiting.end, &waiting.request.video, &others_wait).await
        {
            Ok(Probed::Info(info)) => *info,
            Ok(Probed::GoesOn { .. }) | Err(_) => return Prepared::Unfit(Box::new(Waiting { unfit: true, ..waiting })),
        };
    let Waiting { request, delivery, .. } = waiting;
    match worker.take_up(request, delivery, Some(known)).await {
        Ok(ready) => Prepared::Ready(Box::new(ready)),
        Err(settled) => Prepared::Settled(settled),
    }
}
