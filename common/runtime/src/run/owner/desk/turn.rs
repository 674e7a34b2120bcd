//! Which job is next, and what the engine does with it.

use std::collections::HashSet;
use std::time::Instant;

use tracing::Instrument;

use super::Desk;
use super::ahead::{MOST_HELD, span_of};
use super::work::{Batch, Done, Turn, Waiting};
use crate::metrics::counts;
use crate::run::owner::answer::{Outcome, Ready};
use crate::run::owner::company::{Company, Said};
use crate::run::owner::held::Place;
use crate::run::owner::port::OwnerPort;
use crate::run::owner::worker::Settled;
use crate::run::service::Counters;
use crate::traces;
use protocol::error::StageName;
use protocol::message::JobId;
use protocol::stage::{KeptVideo, OwnedJob, Owner, Stop};
use protocol::workers::MOST_KEPT;

impl<O: Owner + Send + 'static> Desk<O> {
    /// Begins the next job. The line is looked at first, for one that goes before those that wait here: a more urgent one, or
    /// an older one that has come back.
    pub(super) fn next_turn(&mut self) {
        if self.finding {
            return;
        }
        let best = self.best();
        let is_full = self.held.len() >= MOST_HELD;
        if self.due && (best.is_some() || !is_full) {
            self.due = false;
            let least = best.map_or(0, |(place, _)| place.priority() + u8::from(is_full));
            return self.find(least);
        }
        if let Some((_, job)) = best {
            self.begin(&job);
        }
    }

    /// First of the jobs here that may be begun.
    pub(super) fn best(&self) -> Option<(Place, JobId)> {
        let held = self.held.first(|waiting| self.may_begin(waiting));
        held.into_iter().chain(self.offered.first()).min_by_key(|(place, _)| *place)
    }

    /// Whether a job need not wait for a worker that keeps its video.
    pub(super) fn may_begin(&self, waiting: &Waiting) -> bool {
        let waits = waiting.until.is_some_and(|until| Instant::now() < until);
        !waits || self.own_keeps(waiting) || self.others.keeper_of(&waiting.request).is_none()
    }

    /// Whether this worker keeps a job's video.
    pub(super) fn own_keeps(&self, waiting: &Waiting) -> bool {
        self.keeps.iter().any(|video| video.is_of(&waiting.request))
    }

    /// Begins a job that is here.
    pub(super) fn begin(&mut self, job: &JobId) {
        if let Some((place, job)) = self.offered.take_back(job) {
            return self.start(place, job, false);
        }
        let Some((place, waiting)) = self.held.take(job) else { return };
        let Waiting { request, delivery, suspect: alone, .. } = waiting;
        if alone {
            self.give_all_back();
        }
        self.turn = Turn::Beginning;
        let (worker, span, job) = (self.worker.clone(), traces::job(job, &delivery.message), job.clone());
        let taken_up = async move {
            let taken = worker.take_up(request, delivery, None).await.map(Box::new);
            Done::TakenUp { place, job, alone, taken }
        };
        self.tasks.spawn(taken_up.instrument(span));
    }

    pub(super) fn taken_up(&mut self, place: Place, job: &JobId, alone: bool, taken: Result<Box<Ready>, Settled>) {
        self.turn = Turn::Free;
        match taken {
            Ok(ready) => {
                let Ready { owned, job: with_port } = *ready;
                self.owned.insert(job.clone(), owned);
                self.start(place, with_port, alone);
            }
            Err(settled) => {
                self.settled(job, settled);
                self.due = true;
            }
        }
    }

    /// Hands a job to the engine, which is free.
    fn start(&mut self, place: Place, job: OwnedJob<OwnerPort>, alone: bool) {
        let id = job.request.job.clone();
        self.offered.reset();
        let (jobs, video) = (HashSet::from([id.clone()]), KeptVideo::of(&job.request));
        self.turn = Turn::At(Batch { jobs, video, alone, blocked: false, began: Instant::now() });
        let span = self.owned.get(&id).map_or_else(|| span_of(&id), |owned| owned.span.clone());
        let worker = self.worker.clone();
        let (offered, say) = (self.offered.clone(), self.say.clone());
        // From here on, whether its thread takes the job up or not.
        worker.pulse.begin(format!("job {id}"));
        let answering = async move {
            let (pulse, step_tokens) = (worker.pulse.clone(), worker.step_tokens);
            let run = worker.engine.run(move |owner: &mut O| {
                let mut company = Company::new((id, place), offered, say, pulse, step_tokens);
                owner.answer(job, &mut company);
                let (in_memory, on_disk) = owner.kept();
                counts::kept(in_memory, on_disk);
                Ok(())
            });
            Done::Returned(run.await)
        };
        self.tasks.spawn(answering.instrument(span));
    }

    /// Hears the engine.
    pub(super) fn hear(&mut self, said: Said) {
        match (said, &mut self.turn) {
            (Said::Joined(job), Turn::At(batch)) => drop(batch.jobs.insert(job)),
            (Said::Joined(_), _) => {}
            (Said::Ended(job, outcome), turn) => {
                if let Turn::At(batch) = turn {
                    batch.jobs.remove(&job);
                }
                self.end(job, *outcome);
                // There may be room for another one.
                self.due = true;
            }
            (Said::Keeps(mut videos), _) => {
                videos.truncate(MOST_KEPT);
                self.keeps = videos;
            }
        }
    }

    /// Notes that the engine has returned: what it has not ended of its jobs it has lost.
    pub(super) fn returned(&mut self, returned: Result<(), Stop>) {
        self.worker.pulse.pause();
        while let Ok(said) = self.said.try_recv() {
            self.hear(said);
        }
        self.offered.reset();
        self.due = true;
        let Turn::At(batch) = std::mem::replace(&mut self.turn, Turn::Free) else { return };
        Counters::add(&self.worker.counters.busy_us, batch.began.elapsed().as_micros() as u64);
        counts::batch(StageName::Llm, batch.began.elapsed());
        let why = match returned {
            Ok(()) => "the stage ended without an outcome of it. This is a bug.".to_owned(),
            Err(Stop::Unavailable(why)) => why,
            Err(other) => format!("{other:?}"),
        };
        for job in batch.jobs {
            self.end(job, Outcome { outcome: Err(Stop::Unavailable(why.clone())), gave_way: false });
        }
    }
}
