//! What the gateway counts, under [names] that all processes share, in the text format that Prometheus reads (OpenMetrics).

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use axum::extract::MatchedPath;
use axum::http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use protocol::error::StageName;
use runtime::metrics::{counts, names};

use super::spool::Usage;
use super::stages::{Condition, StageState};
use crate::ask::End;

/// Upper ends of the classes of durations, seconds.
const CLASSES_S: [f64; 9] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 600.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Asked {
    /// Path of the route, with its parameters' names.
    path: String,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    task: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: &'static str,
    state: &'static str,
    /// First part of its pipeline's subjects.
    prefix: String,
}

/// What the gateway counts.
pub struct Metrics {
    registry: Registry,
    requests: Family<Asked, Histogram, fn() -> Histogram>,
    jobs: Family<Ended, Counter>,
    in_flight: Gauge,
    upload_bytes: Counter,
    spool_bytes: Gauge,
    stages: Family<StageLabel, Gauge>,
    tasks: Vec<String>,
}

impl Metrics {
    /// Metrics of which nothing is counted yet; `tasks` are the names that are labels.
    pub fn new(tasks: Vec<String>) -> Self {
        let mut registry = Registry::default();
        let durations: fn() -> Histogram = || Histogram::new(CLASSES_S);
        let requests = Family::<Asked, Histogram, fn() -> Histogram>::new_with_constructor(durations);
        let (jobs, in_flight) = (Family::<Ended, Counter>::default(), Gauge::default());
        let (upload_bytes, spool_bytes) = (Counter::default(), Gauge::default());
        let stages = Family::<StageLabel, Gauge>::default();
        names::HTTP_REQUEST_SECONDS.register(&mut registry, requests.clone());
        names::HTTP_JOBS.register(&mut registry, jobs.clone());
        names::HTTP_IN_FLIGHT.register(&mut registry, in_flight.clone());
        names::HTTP_UPLOADED.register(&mut registry, upload_bytes.clone());
        names::HTTP_SPOOL.register(&mut registry, spool_bytes.clone());
        names::STAGE_STATE.register(&mut registry, stages.clone());
        Metrics { registry, requests, jobs, in_flight, upload_bytes, spool_bytes, stages, tasks }
    }

    /// Counts the end of a job of a task.
    pub fn ended(&self, task: &str, end: &End) {
        // Whoever asks may make names up; a label must not.
        let task = self.tasks.iter().find(|known| *known == task).map_or("other", String::as_str).to_owned();
        let outcome = match end {
            End::Answered(_) => "answered",
            End::Failed(_) => "failed",
            End::Cancelled { .. } => "cancelled",
        };
        self.jobs.get_or_create(&Ended { task, outcome }).inc();
    }

    /// Counts a request that was answered after so many seconds.
    pub fn asked(&self, path: Option<&MatchedPath>, method: &Method, status: StatusCode, seconds: f64) {
        let path = path.map_or("none", MatchedPath::as_str).to_owned();
        let method = match *method {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::DELETE => "DELETE",
            _ => "other",
        };
        let asked = Asked { path, method, status: status.as_u16() };
        self.requests.get_or_create(&asked).observe(seconds);
    }

    /// Text of all that is counted, with what is so now: jobs in flight, bytes of files, and the state of each stage below
    /// each prefix.
    ///
    /// # Errors
    /// Of the formatter.
    pub fn text(
        &self,
        in_flight: usize,
        usage: Usage,
        stages: &[(&str, BTreeMap<StageName, StageState>)],
    ) -> Result<String, std::fmt::Error> {
        for (prefix, (stage, state)) in
            stages.iter().flat_map(|(prefix, states)| states.iter().map(move |s| (prefix, s)))
        {
            for condition in Condition::ALL {
                let (stage, prefix) = (stage.as_str(), (*prefix).to_owned());
                let label = StageLabel { stage, state: condition.as_str(), prefix };
                self.stages.get_or_create(&label).set(i64::from(condition == state.state));
            }
        }
        let figure = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.in_flight.set(figure(in_flight as u64));
        self.spool_bytes.set(figure(usage.stored + usage.unfinished));
        self.upload_bytes.inner().store(usage.received, Ordering::Relaxed);
        // What this process counts besides: the stages too, where they run in it.
        counts::text(&[&self.registry])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::event::CancelledBy;

    #[test]
    fn names_that_clients_make_up_are_no_labels() {
        let metrics = Metrics::new(vec!["qa".to_owned()]);
        let end = End::Cancelled { by: CancelledBy::Client, stages_stopped: Vec::new(), ms: 1 };
        for task in ["qa", "a\"b\n", "x"] {
            metrics.ended(task, &end);
        }
        metrics.asked(None, &Method::from_bytes(b"MADEUP").unwrap(), StatusCode::NOT_FOUND, 0.01);
        let usage = Usage { stored: 1, unfinished: 2, received: 7 };
        let text = metrics.text(5, usage, &[]).unwrap();
        assert!(text.contains("vidi_http_jobs_in_flight 5\n") && text.contains("vidi_http_spool_bytes 3\n"), "{text}");
        assert!(text.contains("vidi_http_upload_bytes_total 7\n"), "{text}");
        assert!(text.contains("vidi_http_jobs_total{task=\"qa\",outcome=\"cancelled\"} 1\n"), "{text}");
        assert!(text.contains("vidi_http_jobs_total{task=\"other\",outcome=\"cancelled\"} 2\n"), "{text}");
        let asked = "vidi_http_request_seconds_count{path=\"none\",method=\"other\",status=\"404\"} 1\n";
        assert!(text.contains(asked) && !text.contains("MADEUP"), "{text}");
    }
}
