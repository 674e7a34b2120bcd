//! The other workers of stage-llm, as each says that it is. What one has said holds for seconds: a worker that is gone costs
//! nobody more than that.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::subject::PRIORITIES;
use protocol::message::JobRequest;
use protocol::workers::WorkerNews;

/// Time after which a worker that says nothing counts as gone: three times that between two words of one that is there.
const GONE_AFTER: Duration = Duration::from_secs(3);
/// Time for which it holds that a worker is idle: it says so twice a second.
const IDLE_FOR: Duration = Duration::from_millis(1500);
/// Time for which a count of the workers holds.
const COUNT_HOLDS: Duration = Duration::from_secs(20);
/// Time between two counts; a shorter one while some say nothing.
const COUNT_EVERY: Duration = Duration::from_secs(10);
const COUNT_SOON: Duration = Duration::from_secs(2);

/// The other workers.
#[derive(Default)]
pub struct Others {
    own: String,
    heard: HashMap<String, Heard>,
    /// Names of all workers when they were counted last.
    counted: Option<(Instant, Vec<String>)>,
}

struct Heard {
    news: WorkerNews,
    at: Instant,
    /// Whether it has got a job since, or did not want one.
    busy: bool,
}

impl Others {
    /// None but `own` is known yet.
    pub fn new(own: &str) -> Self {
        Others { own: own.to_owned(), ..Others::default() }
    }

    /// Hears a worker; true if it is another one, and new.
    pub fn hear(&mut self, news: WorkerNews) -> bool {
        if news.instance == self.own {
            return false;
        }
        self.heard.retain(|_, heard| heard.at.elapsed() < GONE_AFTER);
        if news.leaves {
            self.heard.remove(&news.instance);
            return false;
        }
        self.heard.insert(news.instance.clone(), Heard { news, at: Instant::now(), busy: false }).is_none()
    }

    /// Forgets a worker that does not answer.
    pub fn forget(&mut self, instance: &str) {
        self.heard.remove(instance);
    }

    /// Notes that a worker has got a job, or wants none, until it says otherwise.
    pub fn note_busy(&mut self, instance: &str) {
        if let Some(heard) = self.heard.get_mut(instance) {
            heard.busy = true;
        }
    }

    fn live(&self) -> impl Iterator<Item = &Heard> {
        self.heard.values().filter(|heard| heard.at.elapsed() < GONE_AFTER)
    }

    /// Whether some worker is idle.
    pub fn is_any_idle(&self) -> bool {
        self.heard.values().any(|heard| heard.news.idle && !heard.busy && heard.at.elapsed() < IDLE_FOR)
    }

    /// Whether a worker keeps a request's video.
    pub fn keeps(&self, instance: &str, request: &JobRequest) -> bool {
        self.heard.get(instance).is_some_and(|heard| heard.keeps(request))
    }

    /// Worker that keeps a request's video: one that would take the job now, if there is one.
    pub fn keeper_of(&self, request: &JobRequest) -> Option<String> {
        let keepers = self.live().filter(|heard| heard.keeps(request));
        // Of equal ones always the same: those who have such jobs bring them together.
        let best = keepers.min_by_key(|heard| (!heard.would_take(request), &heard.news.instance))?;
        Some(best.news.instance.clone())
    }

    /// Whether a worker would take a job now, as far as it has said: it is idle, or answers about its video.
    pub fn would_take(&self, instance: &str, request: &JobRequest) -> bool {
        self.heard.get(instance).is_some_and(|heard| heard.would_take(request))
    }

    /// Jobs of each priority, in the order of [`PRIORITIES`], that the others have taken from the line and not begun.
    pub fn held(&self) -> [u64; PRIORITIES.len()] {
        PRIORITIES.map(|priority| {
            self.live().map(|heard| heard.news.held.get(usize::from(priority)).copied().unwrap_or(0)).sum()
        })
    }

    /// Whether the workers are to be counted.
    pub fn is_count_due(&self) -> bool {
        let every = if self.do_all_speak() { COUNT_EVERY } else { COUNT_SOON };
        self.counted.as_ref().is_none_or(|(at, _)| at.elapsed() >= every)
    }

    /// Notes the names of all workers, this one included.
    pub fn note_count(&mut self, instances: Vec<String>) {
        self.counted = Some((Instant::now(), instances));
    }

    /// Whether every worker says how it is. One of an earlier release does not: it may be idle, and nobody knows.
    pub fn do_all_speak(&self) -> bool {
        let speaks = |instance: &String| {
            *instance == self.own || self.heard.get(instance).is_some_and(|heard| heard.at.elapsed() < GONE_AFTER)
        };
        self.counted.as_ref().is_some_and(|(at, all)| at.elapsed() < COUNT_HOLDS && all.iter().all(speaks))
    }
}

impl Heard {
    fn keeps(&self, request: &JobRequest) -> bool {
        self.news.keeps.iter().chain(&self.news.answers).any(|video| video.is_of(request))
    }

    fn would_take(&self, request: &JobRequest) -> bool {
        let joins = self.news.answers.as_ref().is_some_and(|video| video.is_of(request));
        !self.busy && (self.news.idle || joins)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::message::JobId;
    use protocol::stage::KeptVideo;

    fn about(video: &str) -> JobRequest {
        JobRequest::new(JobId::new("j").unwrap(), video, "a dog")
    }

    fn news(instance: &str, idle: bool, keeps: &[&str]) -> WorkerNews {
        let keeps = keeps.iter().map(|video| KeptVideo::of(&about(video))).collect();
        WorkerNews { instance: instance.to_owned(), idle, keeps, held: vec![0, 2], ..WorkerNews::default() }
    }

    #[test]
    fn a_job_goes_to_a_worker_that_keeps_its_video_and_first_to_one_that_would_take_it() {
        let mut others = Others::new("own");
        assert!(!others.hear(news("own", true, &["a"])) && others.keeper_of(&about("a")).is_none());
        assert!(others.hear(news("busy", false, &["a", "b"])) && others.hear(news("idle", true, &["a"])));
        assert_eq!(others.keeper_of(&about("a")).as_deref(), Some("idle"));
        assert_eq!(others.keeper_of(&about("b")).as_deref(), Some("busy"));
        assert!(others.keeper_of(&about("c")).is_none() && others.is_any_idle());
        assert!(others.keeper_of(&JobRequest { fps: 2.0, ..about("a") }).is_none(), "looked at otherwise");
        assert_eq!(others.held()[8..], [4, 0]);
        others.note_busy("idle");
        assert!(!others.is_any_idle() && !others.would_take("idle", &about("a")));
        assert!(others.keeps("idle", &about("a")), "it keeps the video all the same");
        let answers = Some(KeptVideo::of(&about("d")));
        others.hear(WorkerNews { answers, ..news("busy", false, &[]) });
        assert!(others.would_take("busy", &about("d")) && others.keeps("busy", &about("d")));
        others.hear(WorkerNews { leaves: true, ..news("busy", false, &[]) });
        assert!(others.keeper_of(&about("d")).is_none());
    }

    #[test]
    fn a_worker_that_is_there_and_says_nothing_is_noticed() {
        let mut others = Others::new("own");
        assert!(!others.do_all_speak() && others.is_count_due());
        others.note_count(vec!["own".to_owned()]);
        assert!(others.do_all_speak() && !others.is_count_due());
        others.note_count(vec!["own".to_owned(), "silent".to_owned()]);
        assert!(!others.do_all_speak());
        others.hear(news("silent", false, &[]));
        assert!(others.do_all_speak());
        others.forget("silent");
        assert!(!others.do_all_speak());
    }
}
