//! An owner of jobs in place of the language model: it keeps videos, answers slowly, and takes jobs beside.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::error::{ErrorKind, JobError};
use protocol::event::{Event, JobResult};
use protocol::message::{JobId, JobRequest};
use protocol::stage::{Beside, JobPort, KeptVideo, OwnedJob, Owner, Stop};
use serde_json::json;

/// Time of one step, whatever the number of jobs.
const STEP: Duration = Duration::from_millis(20);
/// Time that a video takes that is not kept.
const PREFILL: Duration = Duration::from_millis(150);
/// Jobs at a time, and videos that are kept.
const ROOM: usize = 6;
const KEPT: usize = 2;

/// What comes of a job: its question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Answer,
    Fail,
    /// Answers until it is [released](Seen::released), however busy the machine is.
    Hold,
    /// Declined where it is offered beside others.
    Decline,
    /// The engine panics in its second step, the first time.
    PanicOnce,
}

impl Kind {
    pub fn query(self) -> String {
        format!("{self:?}")
    }
}

/// One begin of a job.
#[derive(Clone, Debug)]
struct Begin {
    job: JobId,
    by: String,
    joined: bool,
    hit: bool,
}

/// What the engines of all workers have seen.
#[derive(Debug, Default)]
pub struct Seen {
    begins: Vec<Begin>,
    /// Jobs in the order in which they were begun.
    pub order: Vec<JobId>,
    pub declined: usize,
    /// Held jobs that shall end.
    pub released: HashSet<JobId>,
}

impl Seen {
    fn of(&self, job: &JobId) -> impl Iterator<Item = &Begin> {
        self.begins.iter().filter(move |begin| begin.job == *job)
    }

    pub fn began(&self, job: &JobId) -> bool {
        self.begins(job) > 0
    }

    pub fn begins(&self, job: &JobId) -> usize {
        self.of(job).count()
    }

    pub fn joined(&self, job: &JobId) -> bool {
        self.of(job).any(|begin| begin.joined)
    }

    /// Whether the last worker that had it kept its video.
    pub fn hit(&self, job: &JobId) -> bool {
        self.of(job).last().is_some_and(|begin| begin.hit)
    }

    pub fn by(&self, job: &JobId) -> Option<&str> {
        self.of(job).last().map(|begin| begin.by.as_str())
    }
}

/// The engine of one worker.
pub struct Model {
    pub name: String,
    pub seen: Arc<Mutex<Seen>>,
    pub panicked: Arc<AtomicBool>,
    pub kept: VecDeque<KeptVideo>,
}

/// A job that it is at.
struct At<P> {
    job: OwnedJob<P>,
    left: u32,
    told: u64,
}

impl Model {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Begins with a job, whose file is looked into; the reason for which it ends at once.
    fn begin<P: JobPort>(&mut self, job: &mut OwnedJob<P>, joined: bool) -> Result<(), Stop> {
        let hit = self.kept.iter().any(|video| video.is_of(&job.request));
        let (name, id) = (self.name.clone(), job.request.job.clone());
        self.seen().begins.push(Begin { job: id.clone(), by: name, joined, hit });
        self.seen().order.push(id);
        let info = job.port.probe(&job.request.video)?;
        if !hit {
            std::thread::sleep(PREFILL);
        }
        job.port.event(planned(&info.content_id))
    }

    fn keep<P>(&mut self, request: &JobRequest, beside: &mut dyn Beside<P>) {
        self.kept.retain(|video| !video.is_of(request));
        self.kept.push_front(KeptVideo::of(request));
        self.kept.truncate(KEPT);
        beside.keeps(self.kept.iter().cloned().collect());
    }

    fn step<P: JobPort>(&mut self, at: &mut At<P>) -> Option<Result<JobResult, Stop>> {
        let query = at.job.request.query.clone();
        if at.job.port.cancelled() {
            return Some(Err(Stop::Cancelled));
        }
        if query == Kind::Fail.query() {
            return Some(Err(JobError::new(ErrorKind::Model, "as it was asked to").into()));
        }
        let second = at.told > 0;
        if second && query == Kind::PanicOnce.query() && !self.panicked.swap(true, Ordering::SeqCst) {
            panic!("as it was asked to");
        }
        let text = Event::Text { delta: "x".to_owned(), at: at.told, question: None };
        if let Err(stop) = at.job.port.event(text) {
            return Some(Err(stop));
        }
        at.told += 1;
        if query == Kind::Hold.query() {
            return self.seen().released.contains(&at.job.request.job).then(|| Ok(result(at.told)));
        }
        at.left -= 1;
        (at.left == 0).then(|| Ok(result(at.told)))
    }
}

impl Owner for Model {
    fn answer<P: JobPort>(&mut self, mut job: OwnedJob<P>, beside: &mut dyn Beside<P>) {
        if let Err(stop) = self.begin(&mut job, false) {
            return beside.end(job, Err(stop));
        }
        let request = job.request.clone();
        self.keep(&request, beside);
        let left = job.request.max_new_tokens;
        let mut at = vec![At { job, left, told: 0 }];
        while !at.is_empty() {
            while at.len() < ROOM
                && let Some(mut job) = beside.next(&request)
            {
                if job.request.query == Kind::Decline.query() {
                    self.seen().declined += 1;
                    beside.decline(job);
                    continue;
                }
                match self.begin(&mut job, true) {
                    Ok(()) => at.push(At { left: job.request.max_new_tokens, job, told: 0 }),
                    Err(stop) => beside.end(job, Err(stop)),
                }
            }
            std::thread::sleep(STEP);
            let mut going = Vec::new();
            for mut one in at {
                match self.step(&mut one) {
                    None => going.push(one),
                    Some(outcome) => beside.end(one.job, outcome),
                }
            }
            at = going;
        }
    }

    fn step_tokens(&self) -> u64 {
        1
    }
}

fn planned(content_id: &str) -> Event {
    let plan = json!({"content_id": content_id, "duration_s": 2.0, "image": null, "audio": null});
    serde_json::from_value(json!({"kind": "planned", "plan": plan, "mode": "streaming", "cached": false}))
        .expect("an event of the protocol")
}

fn result(tokens: u64) -> JobResult {
    serde_json::from_value(json!({
        "text": "x".repeat(tokens as usize), "token_ids": [], "finish": "stop", "ranges": [],
        "plan": {"content_id": "", "duration_s": 2.0, "image": null, "audio": null}, "cached": false,
        "timings": {"stages": {}, "first_token_s": 0.0, "tokens_per_s": 0.0}, "memory": {},
        "model": {"name": "", "dtype": "", "weights": "", "kv": ""},
    }))
    .expect("a result of the protocol")
}
