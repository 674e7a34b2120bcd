//! What is known of the instances: what each said last, and what changed since it said so before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use protocol::error::StageName;
use runtime::bus::Bus;
use runtime::run::service::Status;

/// Time for which an instance that answers no more is still shown.
const GONE_FOR: Duration = Duration::from_secs(10);

/// State of an instance, from what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has something in flight.
    Busy,
    /// It waits for work.
    Idle,
    /// It answers no more.
    Gone,
}

impl State {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Busy => "busy",
            State::Idle => "idle",
            State::Gone => "gone",
        }
    }
}

/// Instance of a stage.
#[derive(Clone, Debug)]
pub struct Instance {
    /// What it said last.
    pub status: Status,
    /// Its state.
    pub state: State,
    /// Messages a second that it worked off between its last two words, failed ones among them; none before the second.
    pub rate: Option<f64>,
    /// Share of that time with a message in flight, 0 to 1; messages may overlap.
    pub busy: Option<f64>,
    /// When it said so.
    at: Instant,
}

/// What is known of all instances.
#[derive(Clone, Debug, Default)]
pub struct View {
    broker: String,
    prefix: String,
    instances: BTreeMap<(StageName, String), Instance>,
    trouble: Option<String>,
}

impl View {
    /// View of a pipeline of which nothing is known yet.
    pub fn new(bus: &Bus) -> Self {
        View::of(&bus.config().url.to_string(), bus.subjects().prefix())
    }

    /// View of the pipeline of a prefix on a broker.
    pub fn of(broker: &str, prefix: &str) -> Self {
        View { broker: broker.to_owned(), prefix: prefix.to_owned(), ..View::default() }
    }

    /// Notes what the instances say now.
    pub fn note(&mut self, statuses: Vec<Status>, now: Instant) {
        self.trouble = None;
        for status in statuses {
            let key = (status.stage, status.instance.clone());
            let before = self.instances.get(&key);
            let (mut rate, mut busy) = (before.and_then(|b| b.rate), before.and_then(|b| b.busy));
            let seconds = before.map_or(0.0, |before| now.duration_since(before.at).as_secs_f64());
            if let Some(Instance { status: before, .. }) = before.filter(|_| seconds > 0.0) {
                let done = |s: &Status| s.processed + s.failed;
                rate = Some(done(&status).saturating_sub(done(before)) as f64 / seconds);
                busy = Some(status.busy_us.saturating_sub(before.busy_us) as f64 / 1e6 / seconds);
            }
            let state = if status.in_flight > 0 { State::Busy } else { State::Idle };
            self.instances.insert(key, Instance { status, state, rate, busy, at: now });
        }
        self.instances.retain(|_, instance| now.duration_since(instance.at) < GONE_FOR);
        for instance in self.instances.values_mut().filter(|instance| instance.at < now) {
            (instance.state, instance.rate, instance.busy) = (State::Gone, None, None);
        }
    }

    /// Notes that the broker could not be asked: what was known stays.
    pub fn note_trouble(&mut self, error: &anyhow::Error) {
        self.trouble = Some(format!("{error:#}"));
    }

    /// Why the broker could not be asked; none if it could.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The broker, and the first part of the pipeline's subjects.
    pub fn pipeline(&self) -> (&str, &str) {
        (&self.broker, &self.prefix)
    }

    /// Instances in the order of the data's flow.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }

    /// Stages of which no instance answers.
    pub fn missing(&self) -> Vec<StageName> {
        let is_there = |stage| self.instances().any(|i| i.status.stage == stage && i.state != State::Gone);
        StageName::ALL.into_iter().filter(|&stage| !is_there(stage)).collect()
    }

    /// Jobs that wait, and those that workers own.
    pub fn jobs(&self) -> (u64, u64) {
        let owners = || self.instances().filter(|i| i.status.stage == StageName::Llm && i.state != State::Gone);
        let waiting = owners().map(|i| i.status.queue_depth).max().unwrap_or(0);
        (waiting, owners().map(|i| i.status.in_flight).sum())
    }

    /// Lines of a frame that has place for all.
    pub fn lines(&self) -> u16 {
        let errors = self.instances().filter(|i| !i.status.last_error.is_empty()).count();
        u16::try_from(self.instances.len() + self.missing().len() + errors * 2 + 6).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Status of an instance that has done nothing.
    pub fn status(stage: StageName, instance: &str) -> Status {
        serde_json::from_value(serde_json::json!({
            "stage": stage, "instance": instance, "prefix": "vidi.v1", "device": "cpu", "used_bytes": 64 << 20,
            "peak_bytes": 128 << 20, "reserved_bytes": 0, "budget_bytes": 0, "processed": 0, "failed": 0, "unreadable": 0,
            "redelivered": 0, "dropped": 0, "in_flight": 0, "busy_us": 0, "bytes_in": 0, "queue_depth": 0, "reconnects": 0,
        }))
        .unwrap()
    }

    #[test]
    fn rates_are_of_the_time_between_two_words_and_who_is_silent_is_gone() {
        let mut view = View::of("nats://a", "vidi.v1");
        let start = Instant::now();
        let mut vision = status(StageName::Vision, "vision-1");
        view.note(vec![vision.clone(), status(StageName::Llm, "llm-1")], start);
        let (rate, busy) = view.instances().next().map(|i| (i.rate, i.busy)).unwrap();
        assert_eq!((rate, busy), (None, None));
        (vision.processed, vision.failed, vision.busy_us, vision.in_flight) = (7, 1, 1_500_000, 2);
        view.note(vec![vision], start + Duration::from_secs(2));
        let first = view.instances().next().unwrap();
        assert_eq!((first.rate, first.busy, first.state), (Some(4.0), Some(0.75), State::Busy));
        assert_eq!(view.instances().nth(1).unwrap().state, State::Gone);
        assert_eq!(view.missing(), [StageName::Decode, StageName::Audio, StageName::Fuse, StageName::Llm]);
        view.note(Vec::new(), start + Duration::from_secs(60));
        assert_eq!(view.instances().count(), 0);
    }

    #[test]
    fn jobs_that_wait_are_counted_once_and_those_that_run_by_each_worker() {
        let mut view = View::of("nats://a", "vidi.v1");
        let mut workers = ["llm-1", "llm-2"].map(|name| status(StageName::Llm, name));
        workers.iter_mut().for_each(|worker| (worker.queue_depth, worker.in_flight) = (5, 2));
        view.note(workers.to_vec(), Instant::now());
        assert_eq!(view.jobs(), (5, 4));
    }
}
