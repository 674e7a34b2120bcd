//! Where a job's time went, from its events.
//!
//! In reading order: this file (what the events say), [`text`](mod@text) and [`gantt`] (how it is shown). All times are by the
//! broker's clock. A result has each stage's times; of a job without one, the events of progress say when a stage was first and
//! last heard of.

pub mod gantt;
pub mod text;

use std::collections::BTreeMap;

use protocol::error::StageName;
use protocol::event::{Cached, CancelledBy, Event, JobEvent, JobResult, StageTiming};
use protocol::message::JobId;

/// Course of one job.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The job.
    pub job: JobId,
    /// How it stands, as the rest of a sentence about it.
    pub state: String,
    /// Seconds from its admission to its end, or to its last event.
    pub total_s: f64,
    /// What there is to say besides.
    pub notes: Vec<String>,
    /// Parts, in the order of data flow; those of stages overlap.
    pub rows: Vec<Row>,
}

/// Part of a job's time.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Name of a stage, or of what the job waited for.
    pub name: &'static str,
    /// Start, seconds from the job's admission on.
    pub from_s: f64,
    /// End, seconds from the job's admission on.
    pub to_s: f64,
    /// What was done in between.
    pub kind: Kind,
}

/// What a part of a job's time is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// The job waited, and nothing was done for it.
    Queue,
    /// A part of the work without figures of its own.
    Part,
    /// Work of a stage, with seconds that it computed, and that it waited for others, both summed over its processes.
    Stage {
        /// Seconds computing.
        busy_s: f64,
        /// Seconds waiting: the language model for tokens, other stages for whoever takes what they make.
        wait_s: f64,
    },
}

impl Trace {
    /// Course of a job, from all its events so far; none without any.
    pub fn of(events: &[JobEvent]) -> Option<Self> {
        let (first, last) = (events.first()?, events.last()?);
        let course = Course { start_ms: first.at_ms, events };
        let (state, mut notes) = state(&last.event);
        let rows = match &last.event {
            Event::Result(result) => {
                notes.extend(answer(result));
                course.of_result(result)
            }
            _ => {
                notes.push("parts are as events of progress told them, at most four a second".to_owned());
                course.of_progress(last.at_ms)
            }
        };
        if first.seq > 0 {
            notes.push(format!("the broker has lost its first {} events: times count from the next one on", first.seq));
        }
        Some(Trace { job: first.job.clone(), state, total_s: course.seconds(last.at_ms), notes, rows })
    }

    /// Seconds from its admission to the last thing of it.
    pub fn length_s(&self) -> f64 {
        self.rows.iter().fold(self.total_s, |most, row| most.max(row.to_s))
    }
}

/// Events of a job, and the time from which its seconds count.
struct Course<'a> {
    start_ms: u64,
    events: &'a [JobEvent],
}

impl Course<'_> {
    /// Seconds from the start to a time, Unix milliseconds.
    fn seconds(&self, at_ms: u64) -> f64 {
        at_ms.saturating_sub(self.start_ms) as f64 / 1e3
    }

    /// Time of the plan, Unix milliseconds.
    fn planned_ms(&self) -> Option<u64> {
        self.events.iter().rfind(|e| matches!(e.event, Event::Planned { .. })).map(|e| e.at_ms)
    }

    fn row(&self, name: &'static str, from_ms: u64, to_ms: u64, kind: Kind) -> Row {
        Row { name, from_s: self.seconds(from_ms), to_s: self.seconds(to_ms.max(from_ms)), kind }
    }

    /// Parts of an answered job.
    fn of_result(&self, result: &JobResult) -> Vec<Row> {
        let stages = &result.timings.stages;
        let mut rows = Vec::new();
        let owner = stages.get(&StageName::Llm);
        if let Some(owner) = owner {
            rows.push(self.row("queue", self.start_ms, owner.first_at_ms, Kind::Queue));
            let planned_ms = self.planned_ms().filter(|&at_ms| at_ms >= owner.first_at_ms);
            rows.extend(planned_ms.map(|at_ms| self.row("probe", owner.first_at_ms, at_ms, Kind::Part)));
        }
        let worked = |timing: &&StageTiming| timing.last_at_ms > 0;
        for stage in StageName::ALL {
            if let Some(StageTiming { busy_s, wait_s, first_at_ms, last_at_ms }) = stages.get(&stage).filter(worked) {
                let kind = Kind::Stage { busy_s: *busy_s, wait_s: *wait_s };
                rows.push(self.row(stage.as_str(), *first_at_ms, *last_at_ms, kind));
            }
        }
        if let Some(owner) = owner {
            let first_token_ms = owner.first_at_ms + (result.timings.first_token_s * 1e3).round().max(0.0) as u64;
            rows.push(self.row("answer", first_token_ms, owner.last_at_ms, Kind::Part));
        }
        rows
    }

    /// Parts of a job without an answer, which was last heard of at `end_ms`.
    fn of_progress(&self, end_ms: u64) -> Vec<Row> {
        let queued_until = self.planned_ms().unwrap_or(end_ms);
        let mut rows = vec![self.row("queue, probe", self.start_ms, queued_until, Kind::Queue)];
        let mut heard: BTreeMap<StageName, [u64; 2]> = BTreeMap::new();
        for event in self.events {
            if let Event::Progress { stage, .. } = event.event {
                heard.entry(stage).or_insert([event.at_ms; 2])[1] = event.at_ms;
            }
        }
        rows.extend(heard.into_iter().map(|(stage, [from, to])| self.row(stage.as_str(), from, to, Kind::Part)));
        rows
    }
}

/// How a job stands after its last event, and what there is to say of its end.
fn state(last: &Event) -> (String, Vec<String>) {
    match last {
        Event::Result(_) => ("answered".to_owned(), Vec::new()),
        Event::Failed { error } => ("failed".to_owned(), vec![error.to_string()]),
        Event::Cancelled { by, ms, .. } => {
            let by = match by {
                CancelledBy::Client => "a client",
                CancelledBy::Deadline => "its deadline",
                CancelledBy::Operator => "an operator",
            };
            (format!("cancelled by {by}"), vec![format!("work on it stopped within {ms} ms")])
        }
        _ => ("not ended".to_owned(), vec!["it goes on: ask again for the rest".to_owned()]),
    }
}

/// What there is to say of an answer.
fn answer(result: &JobResult) -> Vec<String> {
    let timings = &result.timings;
    let mut notes = vec![format!(
        "first token after {:.3} s, {} tokens, {:.1} tokens a second",
        timings.first_token_s,
        result.token_ids.len(),
        timings.tokens_per_s
    )];
    match result.cached {
        Cached::No => {}
        Cached::Memory => notes.push("the video was known: no stage had to look at it".to_owned()),
        Cached::Disk => notes.push("the video was known and read from disk: no stage had to look at it".to_owned()),
    }
    notes
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use protocol::error::{ErrorKind, JobError};
    use protocol::event::{Finish, ModelName, Timings};
    use protocol::plan::MediaPlan;

    pub fn at(at_ms: u64, event: Event) -> JobEvent {
        JobEvent { v: 1, job: JobId::new("a-job").unwrap(), seq: at_ms - 1000, at_ms, event }
    }

    fn timing(first_at_ms: u64, last_at_ms: u64, busy_s: f64, wait_s: f64) -> StageTiming {
        StageTiming { busy_s, wait_s, first_at_ms, last_at_ms }
    }

    /// A job that is admitted at 1000, taken at 1500, and answered at 5000.
    pub fn answered() -> Vec<JobEvent> {
        let plan =
            MediaPlan { content_id: String::new(), duration_s: 10.0, image: None, audio: None, notes: Vec::new() };
        let stages = [
            (StageName::Decode, timing(1700, 2700, 0.75, 0.25)),
            (StageName::Vision, timing(1800, 3800, 2.0, 0.0)),
            (StageName::Llm, timing(1500, 4990, 1.0, 2.49)),
        ];
        let timings = Timings { stages: stages.into(), first_token_s: 3.0, tokens_per_s: 20.0 };
        let result = JobResult {
            text: String::new(),
            token_ids: vec![1; 11],
            finish: Finish::Stop,
            ranges: Vec::new(),
            plan: plan.clone(),
            cached: Cached::No,
            timings,
            memory: BTreeMap::new(),
            model: ModelName::default(),
            task: "qa".to_owned(),
            supported: None,
            parser: "text".to_owned(),
            resolution_s: None,
            boxes: Vec::new(),
            reason: None,
            reference_text: None,
            pad_s: 0.0,
            join_s: 0.0,
            notes: Vec::new(),
            answers: Vec::new(),
        };
        let mode = protocol::event::Mode::Streaming;
        vec![
            at(1000, Event::Accepted {}),
            at(1001, Event::Queued { rank: 1 }),
            at(1600, Event::Planned { plan, mode, cached: Cached::No, pass_rows: None }),
            at(1900, Event::Progress { stage: StageName::Decode, done: 1, total: 2 }),
            at(2700, Event::Progress { stage: StageName::Decode, done: 2, total: 2 }),
            at(5000, Event::Result(Box::new(result))),
        ]
    }

    fn spans(trace: &Trace) -> Vec<(&str, f64, f64)> {
        trace.rows.iter().map(|row| (row.name, row.from_s, row.to_s)).collect()
    }

    #[test]
    fn an_answered_job_has_its_queue_apart_and_each_stages_own_times() {
        let trace = Trace::of(&answered()).unwrap();
        let due = [
            ("queue", 0.0, 0.5),
            ("probe", 0.5, 0.6),
            ("decode", 0.7, 1.7),
            ("vision", 0.8, 2.8),
            ("llm", 0.5, 3.99),
            ("answer", 3.5, 3.99),
        ];
        assert_eq!((spans(&trace), trace.total_s, trace.length_s()), (due.to_vec(), 4.0, 4.0));
        assert_eq!(trace.rows[2].kind, Kind::Stage { busy_s: 0.75, wait_s: 0.25 });
        assert_eq!((trace.rows[0].kind, trace.state.as_str()), (Kind::Queue, "answered"));
        assert_eq!(trace.notes, ["first token after 3.000 s, 11 tokens, 20.0 tokens a second"]);
    }

    #[test]
    fn a_job_without_an_answer_has_what_its_progress_told() {
        let mut events = answered();
        events.pop();
        let going = Trace::of(&events).unwrap();
        assert_eq!((spans(&going), going.total_s), (vec![("queue, probe", 0.0, 0.6), ("decode", 0.9, 1.7)], 1.7));
        assert_eq!(going.state, "not ended");
        let error = JobError::new(ErrorKind::UnsupportedMedia, "no video in it");
        events.push(at(3000, Event::Failed { error }));
        let failed = Trace::of(&events).unwrap();
        assert_eq!((failed.state.as_str(), failed.total_s), ("failed", 2.0));
        assert!(failed.notes[0].contains("no video in it"), "{failed:?}");
        let late = Trace::of(&events[2..]).unwrap();
        assert!(late.notes.last().unwrap().contains("lost its first 600 events"), "{late:?}");
        assert_eq!(Trace::of(&[]), None);
    }
}
