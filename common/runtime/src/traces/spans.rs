//! Spans of commands, requests, jobs and messages, and what of them travels in headers.

use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::{HeaderMap, Message};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use protocol::error::StageName;
use protocol::message::JobId;

/// Headers of W3C Trace Context.
const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";
/// Field by which a span is exported, and its kinds.
pub(super) const EXPORTED: &str = "otel.kind";
const CONSUMER: &str = "consumer";
const CLIENT: &str = "client";
const SERVER: &str = "server";

/// Whether there is a collector.
pub(super) static ON: AtomicBool = AtomicBool::new(false);

/// Whether spans are exported.
pub fn are_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Headers of a message to be written.
struct Written<'a>(&'a mut HeaderMap);

impl Injector for Written<'_> {
    fn set(&mut self, key: &str, value: String) {
        if !value.is_empty() {
            self.0.insert(key, value);
        }
    }
}

/// Headers of a message that came.
struct Came<'a> {
    parent: &'a str,
    state: Option<&'a str>,
}

impl Extractor for Came<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            PARENT => Some(self.parent),
            STATE => self.state,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![PARENT, STATE]
    }
}

/// Writes which span a message comes of, the current one, where there is one.
pub(crate) fn write(headers: &mut HeaderMap) {
    if are_on() {
        TraceContextPropagator::new().inject_context(&Span::current().context(), &mut Written(headers));
    }
}

/// Makes a span part of the trace that it came with, if it came with one that is valid.
fn join(span: &Span, parent: Option<&str>, state: Option<&str>) {
    if let Some(parent) = parent {
        // A header that means nothing leaves the span the first of a trace; one that is not exported has no parent.
        let context = TraceContextPropagator::new().extract(&Came { parent, state });
        let _ = span.set_parent(context);
    }
}

/// Says what a span is about, once its parent is settled.
fn describe(span: &Span, name: String, attributes: &[(&'static str, &str)]) {
    for &(key, value) in attributes {
        span.set_attribute(key, value.to_owned());
    }
    span.context().span().update_name(name);
}

/// Subject with `{job}` in place of the job's id.
fn template(subject: &str, job: Option<&JobId>) -> String {
    let parts = subject.split('.').map(|part| if job.is_some_and(|job| job.as_str() == part) { "{job}" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

/// Makes a span that of a message that came, and that is worked on from now on.
fn consume(span: &Span, job: Option<&JobId>, message: &Message) {
    if !are_on() {
        return;
    }
    let of = |name: &str| Some(message.headers.as_ref()?.get(name)?.as_str());
    span.record(EXPORTED, CONSUMER);
    join(span, of(PARENT), of(STATE));
    let template = template(&message.subject, job);
    let about = [
        ("messaging.system", "nats"),
        ("messaging.operation.type", "process"),
        ("messaging.destination.template", &*template),
        ("vidi.job", job.map_or("", JobId::as_str)),
    ];
    describe(span, format!("process {template}"), &about);
}

/// Span of a stage's work on a message.
pub(crate) fn message(stage: StageName, job: Option<&JobId>, message: &Message) -> Span {
    let span = tracing::info_span!("message", stage = %stage, job = job.map(JobId::as_str), otel.kind = Empty);
    span.set_attribute("vidi.stage", stage.as_str());
    consume(&span, job, message);
    span
}

/// Span of all that is done for a job by the worker that takes it.
pub(crate) fn job(job: &JobId, message: &Message) -> Span {
    let span = tracing::info_span!("job", stage = "llm", job = job.as_str(), otel.kind = Empty);
    span.set_attribute("vidi.stage", StageName::Llm.as_str());
    consume(&span, Some(job), message);
    span
}

/// Span of the admission of a job.
pub(crate) fn admission(job: Option<&JobId>, message: &Message) -> Span {
    if !are_on() {
        return Span::none();
    }
    let span = tracing::info_span!("admission", otel.kind = Empty);
    consume(&span, job, message);
    span
}

/// Span of a command that asks, with which a trace begins.
pub fn command(name: &'static str) -> Span {
    if !are_on() {
        return Span::none();
    }
    let span = tracing::info_span!("command", otel.kind = CLIENT);
    describe(&span, name.to_owned(), &[]);
    span
}

/// Span of an HTTP request to a route, in the trace that the request's headers name.
pub fn request(method: &str, route: &str, traceparent: Option<&str>, tracestate: Option<&str>) -> Span {
    if !are_on() {
        return Span::none();
    }
    let span = tracing::info_span!("request", otel.kind = SERVER);
    join(&span, traceparent, tracestate);
    describe(&span, format!("{method} {route}"), &[("http.request.method", method), ("http.route", route)]);
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_names_no_job_and_a_subject_without_one_is_its_own() {
        let job = JobId::new("a-1").unwrap();
        assert_eq!(template("vidi.v1.frames.a-1", Some(&job)), "vidi.v1.frames.{job}");
        assert_eq!(template("vidi.v1.jobs.5.a-1", Some(&job)), "vidi.v1.jobs.5.{job}");
        assert_eq!(template("vidi.v1.jobs", None), "vidi.v1.jobs");
    }

    #[test]
    fn without_a_collector_no_header_is_written() {
        let mut headers = HeaderMap::new();
        tracing::info_span!("any", otel.kind = CONSUMER).in_scope(|| write(&mut headers));
        assert!(headers.is_empty());
    }
}
