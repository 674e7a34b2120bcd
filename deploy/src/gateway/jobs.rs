//! Jobs that came through this gateway: what they asked, who reads their events, and how many may be in flight.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use protocol::error::ErrorKind;
use protocol::message::{JobId, JobRequest};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::{Kind, Problem};

/// Jobs that are remembered at most.
const REMEMBERED: usize = 10_000;

struct Known {
    request: JobRequest,
    /// Number of the pipeline that it was submitted to.
    pipeline: usize,
    /// Whether it goes on though nobody reads its events.
    detach: bool,
    noted: Instant,
    /// Last time that a client asked about it.
    seen: Instant,
    readers: usize,
    ended: bool,
}

/// Jobs that came through this gateway.
pub struct Jobs {
    known: Mutex<HashMap<JobId, Known>>,
    slots: Arc<Semaphore>,
    most: usize,
    age: Duration,
}

impl Jobs {
    /// Registry of jobs, `most` of them in flight, remembered for `age` after their end.
    pub fn new(most: usize, age: Duration) -> Self {
        Jobs { known: Mutex::default(), slots: Arc::new(Semaphore::new(most)), most, age }
    }

    /// Permission for one more job in flight, for as long as it is kept.
    ///
    /// # Errors
    /// `busy`, with the figure.
    pub fn slot(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.slots.clone().try_acquire_owned().map_err(|_| {
            let text = format!("job refused: {} jobs of this gateway are in flight (http.jobs)", self.most);
            Problem::new(Kind::Job(ErrorKind::Busy), text).hint("come again after Retry-After seconds")
        })
    }

    /// Jobs in flight.
    pub fn in_flight(&self) -> usize {
        self.most.saturating_sub(self.slots.available_permits())
    }

    /// Notes a job of a pipeline; returns whether it is new here.
    ///
    /// # Errors
    /// `conflict` for the id of a job that asked something else.
    pub fn note(&self, request: &JobRequest, pipeline: usize, detach: bool) -> Result<bool, Problem> {
        let mut known = self.known();
        known.retain(|_, job| !job.ended || job.noted.elapsed() < self.age);
        if let Some(job) = known.get_mut(&request.job) {
            job.seen = Instant::now();
            if job.request != *request || job.pipeline != pipeline {
                let text = format!("job not submitted: {} is the id of a job that asked something else", request.job);
                return Err(Problem::new(Kind::Conflict, text).hint("leave `job` out, or give another one"));
            }
            return Ok(false);
        }
        if known.len() >= REMEMBERED {
            let oldest = known.iter().filter(|(_, job)| job.ended).min_by_key(|(_, job)| job.noted);
            if let Some(id) = oldest.map(|(id, _)| id.clone()) {
                known.remove(&id);
            }
        }
        let now = Instant::now();
        let request = request.clone();
        let id = request.job.clone();
        let job = Known { request, pipeline, detach, noted: now, seen: now, readers: 0, ended: false };
        known.insert(id, job);
        Ok(true)
    }

    /// Forgets a job that the broker did not take.
    pub fn forget(&self, job: &JobId) {
        self.known().remove(job);
    }

    /// What a job asked; none for one that did not come this way. Whoever asks is there.
    pub fn request(&self, job: &JobId) -> Option<JobRequest> {
        let mut known = self.known();
        let job = known.get_mut(job)?;
        job.seen = Instant::now();
        Some(job.request.clone())
    }

    /// Number of the pipeline of a job; none for one that did not come this way.
    pub fn pipeline(&self, job: &JobId) -> Option<usize> {
        self.known().get(job).map(|job| job.pipeline)
    }

    /// Whether a job that came this way has not ended.
    pub fn is_in_flight(&self, job: &JobId) -> bool {
        self.known().get(job).is_some_and(|job| !job.ended)
    }

    /// Notes the end of a job.
    pub fn note_end(&self, job: &JobId) {
        if let Some(job) = self.known().get_mut(job) {
            (job.ended, job.noted) = (true, Instant::now());
        }
    }

    /// Notes a reader of a job's events.
    pub fn reader_came(&self, job: &JobId) {
        if let Some(job) = self.known().get_mut(job) {
            job.readers += 1;
            job.seen = Instant::now();
        }
    }

    /// Notes that a reader of a job's events left.
    pub fn reader_left(&self, job: &JobId) {
        if let Some(job) = self.known().get_mut(job) {
            job.readers = job.readers.saturating_sub(1);
            job.seen = Instant::now();
        }
    }

    /// Whether nobody has asked about a job for `patience`, nor reads its events, and it was not to go on alone.
    pub fn is_abandoned(&self, job: &JobId, patience: Duration) -> bool {
        let is = |job: &Known| !job.detach && !job.ended && job.readers == 0 && job.seen.elapsed() >= patience;
        self.known().get(job).is_some_and(is)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<JobId, Known>> {
        // Each change is one statement.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(query: &str) -> JobRequest {
        JobRequest::new(JobId::new("a").unwrap(), "/v.mp4", query)
    }

    #[test]
    fn an_id_is_one_job_and_never_another_one() {
        let jobs = Jobs::new(1, Duration::from_secs(60));
        assert_eq!(jobs.note(&request("x"), 0, false), Ok(true));
        assert_eq!(jobs.note(&request("x"), 0, false), Ok(false));
        assert_eq!(jobs.note(&request("y"), 0, false).unwrap_err().kind, Kind::Conflict);
        let elsewhere = jobs.note(&request("x"), 1, false).unwrap_err();
        assert_eq!((elsewhere.kind, jobs.pipeline(&request("x").job)), (Kind::Conflict, Some(0)), "of another model");
        jobs.forget(&request("x").job);
        assert_eq!(jobs.note(&request("y"), 1, false), Ok(true));
        assert_eq!(jobs.pipeline(&request("y").job), Some(1));
    }

    #[test]
    fn a_job_is_abandoned_when_its_last_reader_left_and_nobody_asks() {
        let jobs = Jobs::new(1, Duration::from_secs(60));
        let job = request("x").job;
        jobs.note(&request("x"), 0, false).unwrap();
        jobs.reader_came(&job);
        jobs.reader_came(&job);
        jobs.reader_left(&job);
        assert!(!jobs.is_abandoned(&job, Duration::ZERO));
        jobs.reader_left(&job);
        assert!(jobs.is_abandoned(&job, Duration::ZERO) && !jobs.is_abandoned(&job, Duration::from_secs(60)));
        jobs.note_end(&job);
        assert!(!jobs.is_abandoned(&job, Duration::ZERO));
        let jobs = Jobs::new(1, Duration::from_secs(60));
        jobs.note(&request("x"), 0, true).unwrap();
        assert!(!jobs.is_abandoned(&job, Duration::ZERO));
    }

    #[test]
    fn one_job_too_many_is_told_to_come_again() {
        let jobs = Jobs::new(1, Duration::ZERO);
        let first = jobs.slot().unwrap();
        assert_eq!(jobs.slot().unwrap_err().kind, Kind::Job(ErrorKind::Busy));
        drop(first);
        drop(jobs.slot().unwrap());
    }
}
