//! What a worker tells the others, the jobs that it hands to one that keeps their video, and those that it gives back.

use std::time::{Duration, Instant};

use super::Desk;
use super::ahead::{place_of, span_of};
use super::work::{Done, Turn, Waiting};
use crate::bus::events::EventLog;
use crate::run::inbox::Delivery;
use crate::run::owner::answer::{Outcome, Owned};
use crate::run::owner::held::Place;
use crate::run::owner::offers::{self, Answered, Offer};
use crate::run::peers;
use crate::subject::PRIORITIES;
use protocol::error::StageName;
use protocol::message::JobId;
use protocol::stage::{Owner, Stop};
use protocol::wire;
use protocol::workers::WorkerNews;
use tracing::Instrument;

/// Time between two words of a worker that is busy; one that is idle says so twice as often.
const TELL_EVERY: Duration = Duration::from_secs(1);
const TELL_IDLE: Duration = Duration::from_millis(500);

impl<O: Owner + Send + 'static> Desk<O> {
    /// Looks at all that waits here, now and then: what has ended leaves, and what another worker keeps may go to it.
    pub(super) fn look_around(&mut self) {
        self.note_tick();
        self.drop_ended();
        let ended = |(_, job): &(Place, JobId)| self.owned.get(job).is_some_and(|owned| owned.state.end().is_set());
        let ended: Vec<(Place, JobId)> = self.offered.left_for(Duration::ZERO).into_iter().filter(ended).collect();
        for (_, job) in ended {
            if self.offered.take_back(&job).is_some() {
                self.end(job, Outcome { outcome: Err(Stop::Cancelled), gave_way: false });
            }
        }
        let waiting: Vec<JobId> = self.held.iter().map(|(_, job, _)| job.clone()).collect();
        waiting.iter().for_each(|job| self.hand_over(job));
        if !self.counting && self.others.is_count_due() && matches!(self.turn, Turn::At(_)) {
            self.counting = true;
            let worker = self.worker.clone();
            self.tasks.spawn(async move { Done::Counted(peers::instances(&worker.bus, StageName::Llm).await) });
        }
    }

    /// Lets go of jobs that have ended while they waited here.
    fn drop_ended(&mut self) {
        for (_, job, waiting) in self.held.take_all(|waiting| waiting.end.is_set()) {
            self.known.remove(&job);
            let (worker, span) = (self.worker.clone(), span_of(&job));
            let dropped = async move {
                // Not yet in the log, its end is written just now: it comes again, to whoever finds it there.
                if EventLog::open(&worker.bus, &job).await.ended().is_some() {
                    waiting.delivery.done().await;
                }
                Done::Left
            };
            self.tasks.spawn(dropped.instrument(span));
        }
    }

    /// Offers a job that waits here to a worker that keeps its video, if that would take it or has not been asked yet.
    pub(super) fn hand_over(&mut self, job: &JobId) {
        let Some((_, _, waiting)) = self.held.iter().find(|(_, other, _)| other == job) else { return };
        let own = match &self.turn {
            Turn::At(batch) => batch.video.is_of(&waiting.request),
            _ => false,
        };
        if self.draining || waiting.suspect || waiting.delivery.handed || own || self.own_keeps(waiting) {
            return;
        }
        let Some(to) = self.others.keeper_of(&waiting.request) else { return };
        let (first, would) = (waiting.until.is_none(), self.others.would_take(&to, &waiting.request));
        let until = waiting.until.unwrap_or_else(|| Instant::now() + self.worker.info.affinity_wait);
        let late = Instant::now() >= until && !first;
        if let Some((_, waiting)) = self.held.iter_mut().find(|(other, _)| *other == job) {
            waiting.until = Some(until);
        }
        if !late && (first || would) {
            self.offer(job, to);
        }
    }

    /// Offers a job that waits here to a worker.
    fn offer(&mut self, job: &JobId, to: String) {
        if !self.asked.insert(to.clone()) {
            return;
        }
        let Some((place, waiting)) = self.held.take(job) else { return };
        let (worker, span) = (self.worker.clone(), span_of(job));
        let offering = async move {
            let answered = offers::offer(&worker.bus, &to, &waiting.delivery).await;
            Done::Offered { place, waiting: Box::new(waiting), to, answered }
        };
        self.tasks.spawn(offering.instrument(span));
    }

    pub(super) fn offer_answered(&mut self, place: Place, waiting: Waiting, to: &str, answered: Answered) {
        self.asked.remove(to);
        let job = waiting.request.job.clone();
        match answered {
            Answered::Taken => {
                tracing::info!(%job, to, "job handed to the worker that keeps its video");
                self.known.remove(&job);
                self.others.note_busy(to);
                self.due = true;
                return;
            }
            Answered::Refused => self.others.note_busy(to),
            Answered::Silent => self.others.forget(to),
        }
        self.held.put(place, job, waiting);
    }

    /// Hears an offer of another worker: it is taken where this one is idle, or where its engine asks for more about that
    /// video.
    pub(super) async fn hear_offer(&mut self, message: async_nats::Message) {
        let bus = self.worker.bus.clone();
        let offer = match Offer::read(&bus, message) {
            Ok(offer) => offer,
            Err(why) => {
                tracing::warn!(why, "offer of a job unreadable");
                return bus.note_unreadable();
            }
        };
        let joins = match &self.turn {
            Turn::At(batch) => batch.video.is_of(&offer.request) && self.offered.is_hungry() && self.preparing == 0,
            _ => false,
        };
        let takes = (joins && self.may_join(offer.request.priority)) || self.is_idle();
        let taken = takes && !self.draining && !self.known.contains(&offer.request.job);
        let Some((request, delivery)) = offer.answer(&bus, taken).await else { return };
        let end = self.worker.listener.registry().signal(&request.job);
        let job = request.job.clone();
        let waiting =
            Waiting { request, delivery, end, suspect: false, unfit: false, until: None, since: Instant::now() };
        self.known.insert(job.clone());
        self.held.put(place_of(&waiting), job, waiting);
        self.due = false;
    }

    /// Whether this worker would begin any job at once.
    fn is_idle(&self) -> bool {
        !self.draining && matches!(self.turn, Turn::Free) && self.best().is_none()
    }

    /// Hears how another worker is. One that is idle gets a job that waits here: the first that it keeps the video of, or the
    /// first of all that do not wait for a third one.
    pub(super) fn hear_worker(&mut self, body: &[u8]) {
        let news = match wire::decode_any::<WorkerNews>(body) {
            Ok(news) => news,
            Err(error) => {
                tracing::debug!(%error, "news of a worker unreadable");
                return self.worker.bus.note_unreadable();
            }
        };
        let (from, idle, asks) = (news.instance.clone(), news.idle, news.asks);
        let is_new = self.others.hear(news);
        if asks && is_new {
            self.told = None;
        }
        if idle && from != self.worker.bus.instance() && !matches!(self.turn, Turn::Free) {
            self.relieve(&from);
        }
    }

    /// Lets a worker that is idle have a job that waits here.
    fn relieve(&mut self, idle: &str) {
        let kept = self.held.first(|waiting| !waiting.suspect && self.others.keeps(idle, &waiting.request));
        if let Some((_, job)) = kept {
            return self.offer(&job, idle.to_owned());
        }
        let joins = |waiting: &Waiting| match &self.turn {
            Turn::At(batch) => batch.video.is_of(&waiting.request),
            _ => false,
        };
        let wait = self.worker.info.affinity_wait;
        let leaves = |waiting: &Waiting| {
            !waiting.suspect && self.may_begin(waiting) && (!joins(waiting) || waiting.since.elapsed() >= wait)
        };
        let first = self.held.first(leaves);
        if let Some((place, waiting)) = first.and_then(|(_, job)| self.held.take(&job)) {
            self.others.note_busy(idle);
            return self.give_back(vec![(place, waiting.request.job, waiting.delivery)], Vec::new());
        }
        let left = self.offered.left_for(wait);
        if let Some((place, job)) = left.into_iter().next()
            && self.offered.take_back(&job).is_some()
            && let Some(owned) = self.owned.remove(&job)
        {
            self.others.note_busy(idle);
            self.give_back(Vec::new(), vec![(place, owned)]);
        }
    }

    /// Gives all jobs back that the engine is not at.
    pub(super) fn give_all_back(&mut self) {
        let held = self.held.take_all(|_| true);
        let held: Vec<_> = held.into_iter().map(|(place, job, waiting)| (place, job, waiting.delivery)).collect();
        let mut taken_up = Vec::new();
        for (place, job) in self.offered.left_for(Duration::ZERO) {
            if self.offered.take_back(&job).is_some() {
                taken_up.extend(self.owned.remove(&job).map(|owned| (place, owned)));
            }
        }
        if !(held.is_empty() && taken_up.is_empty()) {
            self.give_back(held, taken_up);
        }
    }

    /// Gives jobs back to the line, in order: they are the next ones there. None counts as tried.
    pub(super) fn give_back(&mut self, held: Vec<(Place, JobId, Delivery)>, taken_up: Vec<(Place, Owned)>) {
        for job in held.iter().map(|(_, job, _)| job).chain(taken_up.iter().map(|(_, owned)| &owned.job)) {
            self.known.remove(job);
        }
        let worker = self.worker.clone();
        self.tasks.spawn(async move {
            let mut leaving = held;
            for (place, owned) in taken_up {
                let job = owned.job.clone();
                leaving.push((place, job, owned.release().await));
            }
            leaving.sort_by_key(|(place, ..)| *place);
            for (_, job, _) in &leaving {
                worker.bus.note_returned(job).await;
            }
            for (_, job, delivery) in leaving {
                tracing::debug!(%job, "job given back, not begun");
                delivery.give_back(Duration::ZERO).await;
            }
            Done::Left
        });
    }

    /// Tells the others how this worker is, if that has changed or it is time to.
    pub(super) async fn tell_news(&mut self) {
        let news = self.news();
        let told = self.told.as_ref();
        let changed = told.is_none_or(|(_, told)| {
            (told.idle, told.leaves, &told.answers, &told.keeps) != (news.idle, news.leaves, &news.answers, &news.keeps)
        });
        let every = if news.idle { TELL_IDLE } else { TELL_EVERY };
        if changed || told.is_some_and(|(at, _)| at.elapsed() >= every) {
            let bus = &self.worker.bus;
            let body = wire::encode(&news);
            self.told = Some((Instant::now(), WorkerNews { asks: false, ..news }));
            bus.tell(bus.subjects().workers(), body).await;
        }
    }

    fn news(&self) -> WorkerNews {
        let answers = match &self.turn {
            Turn::At(batch) if !batch.alone => Some(batch.video.clone()),
            _ => None,
        };
        let own = self.own_held();
        let mut held = vec![0; own.len()];
        for (priority, jobs) in PRIORITIES.into_iter().zip(own) {
            held[usize::from(priority)] = jobs;
        }
        WorkerNews {
            v: wire::VERSION,
            instance: self.worker.bus.instance().to_owned(),
            idle: self.is_idle(),
            asks: self.ticks == 0,
            leaves: self.draining,
            answers,
            keeps: self.keeps.clone(),
            held,
        }
    }
}
