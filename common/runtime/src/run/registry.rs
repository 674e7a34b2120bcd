//! What one instance knows of jobs: which have ended, and what of them is in flight here.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::job_end::{EndSignal, JobEnd};
use protocol::message::JobId;

/// Jobs remembered as known or ended; the oldest are forgotten first.
const REMEMBERED: usize = 4096;

/// Jobs that one instance has heard of. Cheap to clone; all clones share it.
#[derive(Clone, Default)]
pub struct Registry {
    known: Arc<Mutex<Known>>,
    /// Messages and jobs in flight; replies to a cancel wait on it.
    in_flight: watch::Sender<Vec<(JobId, EndSignal)>>,
}

#[derive(Default)]
struct Known {
    signals: HashMap<JobId, EndSignal>,
    order: VecDeque<JobId>,
    /// Time when a job's end was heard of.
    heard: HashMap<JobId, Instant>,
}

impl Known {
    /// Signal of a job, and whether the job is new to this process.
    fn signal(&mut self, job: &JobId) -> (EndSignal, bool) {
        if let Some(signal) = self.signals.get(job) {
            return (signal.clone(), false);
        }
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.signals.remove(&oldest);
            self.heard.remove(&oldest);
        }
        let signal = EndSignal::default();
        self.signals.insert(job.clone(), signal.clone());
        self.order.push_back(job.clone());
        (signal, true)
    }

    /// Notes the end of a job. What was known of its end before, that it shall be cancelled, say, ends with it: the id may
    /// be used again, and who begins with it then looks whether the job has ended.
    fn end(&mut self, job: &JobId, end: JobEnd) {
        let (signal, _) = self.signal(job);
        signal.set(end);
        self.heard.insert(job.clone(), Instant::now());
        if end == JobEnd::Ended && signal.get() != Some(end) {
            let ended = EndSignal::default();
            ended.set(end);
            self.signals.insert(job.clone(), ended);
        }
    }
}

impl Registry {
    /// Registers a message of a job, or the job, as in flight; true if the job is new to this process.
    pub fn begin(&self, job: &JobId) -> (InFlight, bool) {
        let (end, new) = self.known.lock().expect("no holder panics. This is a bug.").signal(job);
        self.in_flight.send_modify(|all| all.push((job.clone(), end.clone())));
        (InFlight { job: job.clone(), end, all: self.in_flight.clone() }, new)
    }

    /// Tells all who work on a job here to stop, now or when its next message comes; true if any of it is in flight.
    pub fn end(&self, job: &JobId, end: JobEnd) -> bool {
        self.known.lock().expect("no holder panics. This is a bug.").end(job, end);
        let mut stopped = false;
        for (_, signal) in self.in_flight.borrow().iter().filter(|(in_flight, _)| in_flight == job) {
            // Its registration may have been forgotten since it began.
            signal.set(end);
            stopped = true;
        }
        stopped
    }

    /// Whether this process has heard that a job has ended.
    pub fn has_ended(&self, job: &JobId) -> bool {
        let known = self.known.lock().expect("no holder panics. This is a bug.");
        known.signals.get(job).is_some_and(|signal| signal.get() == Some(JobEnd::Ended))
    }

    /// Whether anything of a job is in flight here.
    pub fn is_in_flight(&self, job: &JobId) -> bool {
        self.in_flight.borrow().iter().any(|(in_flight, _)| in_flight == job)
    }

    /// Notes that a job begins of which the log knows nothing. What was heard `age` ago or earlier, the time for which events are
    /// kept, was of an earlier job with its id: that it has ended, or shall be cancelled.
    pub fn begin_anew(&self, job: &JobId, age: Duration) {
        let heard = self.known.lock().expect("no holder panics. This is a bug.").heard.get(job).copied();
        if self.has_ended(job) || heard.is_some_and(|heard| heard.elapsed() >= age) {
            self.forget(job);
        }
    }

    /// Signal of a job, whether it is in flight here or not.
    pub fn signal(&self, job: &JobId) -> EndSignal {
        self.known.lock().expect("no holder panics. This is a bug.").signal(job).0
    }

    /// Notes that the job of a signal has ended, unless the id [was used again](Self::begin_anew) since.
    pub fn end_of(&self, job: &JobId, of: &EndSignal) {
        if self.signal(job).is(of) {
            self.end(job, JobEnd::Ended);
        }
    }

    /// Forgets a job whose signal was set though it has not ended.
    pub fn forget(&self, job: &JobId) {
        let mut known = self.known.lock().expect("no holder panics. This is a bug.");
        known.signals.remove(job);
        known.heard.remove(job);
        known.order.retain(|j| j != job);
    }

    /// Waits until nothing of a job is in flight.
    pub async fn idle(&self, job: &JobId) {
        let mut in_flight = self.in_flight.subscribe();
        // The sender is held here: the channel stays open for as long as this waits.
        let _ = in_flight.wait_for(|all| all.iter().all(|(in_flight, _)| in_flight != job)).await;
    }
}

/// Message or job that is in flight, until dropped.
pub struct InFlight {
    job: JobId,
    end: EndSignal,
    all: watch::Sender<Vec<(JobId, EndSignal)>>,
}

impl InFlight {
    /// Signal that its job has come to its end.
    pub fn end(&self) -> &EndSignal {
        &self.end
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.all.send_modify(|all| {
            // Of two messages of one job either will do: their signals are one.
            if let Some(at) = all.iter().position(|(job, end)| *job == self.job && end.is(&self.end)) {
                all.swap_remove(at);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str) -> JobId {
        JobId::new(name).unwrap()
    }

    #[tokio::test]
    async fn the_end_of_a_job_reaches_what_is_in_flight_of_it_and_what_comes_later() {
        let registry = Registry::default();
        let (first, new) = registry.begin(&job("a"));
        let (other, _) = registry.begin(&job("b"));
        assert!(new && registry.end(&job("a"), JobEnd::Ended) && !other.end().is_set());
        assert!(first.end().is_set());
        let (later, new) = registry.begin(&job("a"));
        assert!(!new && later.end().is_set());
        assert!(!registry.end(&job("c"), JobEnd::Ended), "nothing of it is in flight");
        assert!(registry.begin(&job("c")).0.end().is_set());
    }

    #[tokio::test]
    async fn a_job_is_idle_once_the_last_of_its_messages_is_dropped() {
        let registry = Registry::default();
        let (first, _) = registry.begin(&job("a"));
        let (second, _) = registry.begin(&job("a"));
        let waiting = tokio::spawn({
            let registry = registry.clone();
            async move { registry.idle(&job("a")).await }
        });
        drop(first);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(second);
        waiting.await.unwrap();
    }

    #[test]
    fn that_a_job_shall_be_cancelled_is_forgotten_with_its_end() {
        let registry = Registry::default();
        let (in_flight, _) = registry.begin(&job("a"));
        registry.end(&job("a"), JobEnd::Cancelled(protocol::event::CancelledBy::Client));
        assert!(!registry.has_ended(&job("a")));
        registry.end(&job("a"), JobEnd::Ended);
        let later = registry.begin(&job("a")).0;
        assert_eq!(later.end().get(), Some(JobEnd::Ended));
        let cancelled = JobEnd::Cancelled(protocol::event::CancelledBy::Client);
        assert_eq!(in_flight.end().get(), Some(cancelled), "what was in flight keeps its reason");
        assert!(registry.has_ended(&job("a")));
    }

    #[test]
    fn a_cancel_of_an_earlier_job_with_its_id_is_not_of_a_job_and_one_that_comes_before_it_is() {
        let (registry, long) = (Registry::default(), Duration::from_secs(60));
        let cancelled = JobEnd::Cancelled(protocol::event::CancelledBy::Client);
        registry.end(&job("a"), cancelled);
        let of = registry.signal(&job("a"));
        registry.begin_anew(&job("a"), long);
        assert_eq!(registry.begin(&job("a")).0.end().get(), Some(cancelled), "a cancel that came before its job");
        registry.begin_anew(&job("a"), Duration::ZERO);
        registry.end_of(&job("a"), &of);
        assert!(!registry.begin(&job("a")).0.end().is_set(), "neither the cancel nor its end is of the later job");
    }

    #[test]
    fn a_forgotten_job_begins_anew_and_what_was_in_flight_of_it_hears_its_end_all_the_same() {
        let registry = Registry::default();
        let (old, _) = registry.begin(&job("a"));
        registry.forget(&job("a"));
        let (anew, new) = registry.begin(&job("a"));
        assert!(new && !anew.end().is(old.end()));
        assert!(registry.end(&job("a"), JobEnd::Ended) && old.end().is_set() && anew.end().is_set());
    }
}
