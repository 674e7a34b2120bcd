//! Jobs that the engine may take beside those that it is at, and what it says of each: the engine's side of a worker that
//! owns several.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::answer::Outcome;
use super::held::Place;
use super::port::OwnerPort;
use crate::run::watchdog::Pulse;
use protocol::event::JobResult;
use protocol::message::{JobId, JobRequest};
use protocol::stage::{Beside, KeptVideo, OwnedJob, Stop};

/// What the engine says while it is at work.
pub enum Said {
    /// It has taken a job that was offered.
    Joined(JobId),
    /// It is done with a job.
    Ended(JobId, Box<Outcome>),
    /// It keeps these videos now.
    Keeps(Vec<KeptVideo>),
}

/// A job that is ready for the engine.
struct Entry {
    place: Place,
    job: OwnedJob<OwnerPort>,
    /// Whether the engine, as it is occupied now, does not want it.
    declined: bool,
    since: Instant,
}

/// Jobs that are ready for the engine, in their order. Cheap to clone; all clones share them.
#[derive(Clone, Default)]
pub struct Offered(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    jobs: Vec<Entry>,
    /// Whether the engine has asked for one and there was none.
    hungry: bool,
}

impl Offered {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder panics. This is a bug.")
    }

    /// Adds a job.
    pub fn put(&self, place: Place, job: OwnedJob<OwnerPort>) {
        self.insert(Entry { place, job, declined: false, since: Instant::now() });
    }

    fn insert(&self, entry: Entry) {
        let mut inner = self.inner();
        let at = inner.jobs.partition_point(|other| other.place <= entry.place);
        inner.jobs.insert(at, entry);
    }

    /// Takes a job back that the engine has not taken.
    pub fn take_back(&self, job: &JobId) -> Option<(Place, OwnedJob<OwnerPort>)> {
        let mut inner = self.inner();
        let at = inner.jobs.iter().position(|entry| entry.job.request.job == *job)?;
        let entry = inner.jobs.remove(at);
        Some((entry.place, entry.job))
    }

    /// Job that is first in its order.
    pub fn first(&self) -> Option<(Place, JobId)> {
        self.inner().jobs.first().map(|entry| (entry.place, entry.job.request.job.clone()))
    }

    /// Jobs that the engine has left here for so long.
    pub fn left_for(&self, time: Duration) -> Vec<(Place, JobId)> {
        let inner = self.inner();
        let left = inner.jobs.iter().filter(|entry| entry.since.elapsed() >= time);
        left.map(|entry| (entry.place, entry.job.request.job.clone())).collect()
    }

    /// Number of jobs that the engine may take.
    pub fn len(&self) -> usize {
        self.inner().jobs.iter().filter(|entry| !entry.declined).count()
    }

    /// Places of the jobs that the engine did not want, and since when they wait for it.
    pub fn declined(&self) -> Vec<(Place, Instant)> {
        let inner = self.inner();
        inner.jobs.iter().filter(|entry| entry.declined).map(|entry| (entry.place, entry.since)).collect()
    }

    /// Whether the engine would take another one about its video at once.
    pub fn is_hungry(&self) -> bool {
        let inner = self.inner();
        inner.hungry && inner.jobs.iter().all(|entry| entry.declined)
    }

    /// Notes that the engine begins anew, or has nothing to do: what it did not want it may want the next time.
    pub fn reset(&self) {
        let mut inner = self.inner();
        inner.hungry = false;
        inner.jobs.iter_mut().for_each(|entry| entry.declined = false);
    }

    /// First job that seems to be about the same video as a request.
    fn beside(&self, request: &JobRequest) -> Option<(Place, OwnedJob<OwnerPort>)> {
        let video = KeptVideo::of(request);
        let mut inner = self.inner();
        let at = inner.jobs.iter().position(|entry| !entry.declined && video.is_of(&entry.job.request));
        inner.hungry = at.is_none();
        let entry = inner.jobs.remove(at?);
        Some((entry.place, entry.job))
    }
}

/// The jobs of one call of the engine.
pub struct Company {
    offered: Offered,
    said: UnboundedSender<Said>,
    pulse: Arc<Pulse>,
    step_tokens: u64,
    /// Jobs that the engine is at.
    at: Vec<(JobId, Place)>,
}

impl Company {
    /// Company of a first job. The engine's first step begins now.
    pub fn new(
        first: (JobId, Place),
        offered: Offered,
        said: UnboundedSender<Said>,
        pulse: Arc<Pulse>,
        step_tokens: u64,
    ) -> Self {
        let company = Company { offered, said, pulse, step_tokens, at: vec![first] };
        company.name();
        company.pulse.sized(company.step_tokens);
        company
    }

    /// Names the engine's work to the watchdog.
    fn name(&self) {
        let jobs: Vec<&str> = self.at.iter().map(|(job, _)| job.as_str()).collect();
        let what = if jobs.len() == 1 { "job" } else { "jobs" };
        self.pulse.name(format!("{what} {}", jobs.join(", ")));
    }

    /// Tells the worker, which may be gone.
    fn tell(&self, said: Said) {
        let _ = self.said.send(said);
    }

    /// Strikes off a job that the engine is done with.
    fn leave(&mut self, job: &JobId) -> Option<Place> {
        let at = self.at.iter().position(|(other, _)| other == job)?;
        let (_, place) = self.at.remove(at);
        self.name();
        Some(place)
    }
}

impl Beside<OwnerPort> for Company {
    fn next(&mut self, request: &JobRequest) -> Option<OwnedJob<OwnerPort>> {
        let (place, job) = self.offered.beside(request)?;
        self.at.push((job.request.job.clone(), place));
        self.name();
        self.tell(Said::Joined(job.request.job.clone()));
        Some(job)
    }

    fn decline(&mut self, job: OwnedJob<OwnerPort>) {
        match self.leave(&job.request.job) {
            Some(place) if !self.at.is_empty() => {
                self.offered.insert(Entry { place, job, declined: true, since: Instant::now() });
            }
            _ => self.end(job, Err(Stop::Unavailable("the stage declined its only job. This is a bug.".to_owned()))),
        }
    }

    fn end(&mut self, mut job: OwnedJob<OwnerPort>, outcome: Result<JobResult, Stop>) {
        let outcome = job.port.flush_text().and(outcome);
        let gave_way = job.port.gave_way();
        self.leave(&job.request.job);
        self.tell(Said::Ended(job.request.job, Box::new(Outcome { outcome, gave_way })));
    }

    fn keeps(&mut self, videos: Vec<KeptVideo>) {
        self.tell(Said::Keeps(videos));
    }
}
