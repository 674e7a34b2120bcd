//! `GET /v1/jobs/{id}/events`: a job's events as they come, as server-sent events that a reader who was cut off resumes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use protocol::event::JobEvent;
use protocol::message::JobId;
use runtime::bus::Bus;
use tokio::sync::mpsc;

use super::intake;
use super::job_routes::no_job;
use super::pipelines::Pipeline;
use super::problem::Problem;
use super::state::App;
use crate::client::{self, Events};

/// Pieces that wait for a reader at most.
const WAITING: usize = 16;
/// Interval at which a reader without news is sent a comment, which shows whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(10);

/// Pieces of a response on their way to its reader.
pub type Pieces = mpsc::Sender<Result<Bytes, Infallible>>;

/// A response that streams what is sent; once its reader is gone, or has taken nothing for too long, sending fails.
pub fn streamed() -> (Pieces, Response) {
    let (sender, mut receiver) = mpsc::channel(WAITING);
    let body = Body::from_stream(stream::poll_fn(move |context| receiver.poll_recv(context)));
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // nginx would keep events back.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (sender, (headers, body).into_response())
}

/// Sends a piece; false where the reader is gone, or has taken nothing for `idle_s` seconds.
pub async fn send(pieces: &Pieces, piece: String, idle_s: f64) -> bool {
    let taken = pieces.send_timeout(Ok(Bytes::from(piece)), Duration::from_secs_f64(idle_s));
    taken.await.is_ok()
}

/// Streams events behind `Last-Event-ID`, or all; 204 where none will come.
pub async fn events(State(app): State<App>, Path(job): Path<String>, headers: HeaderMap) -> Result<Response, Problem> {
    let job = intake::job_id(&job)?;
    let after =
        match headers.get("last-event-id").map(|value| value.to_str().unwrap_or_default().trim()) {
            None | Some("") => None,
            Some(text) => {
                let number = text.parse::<u64>();
                Some(number.map_err(|_| {
                    Problem::bad_request(format!("Last-Event-ID is the number of an event, not {text:?}"))
                })?)
            }
        };
    let (pipeline, last) = app.job(&job).await?;
    match last {
        // A browser that hears of no more events asks again, until it is told that there are none.
        Some(last) if last.event.is_terminal() && after.is_some_and(|after| after >= last.seq) => {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        None if app.jobs.request(&job).is_none() => return Err(no_job(&job)),
        _ => {}
    }
    let (pieces, response) = streamed();
    let reader = Reader::new(&app, &pipeline, &job);
    tokio::spawn(async move {
        feed(&pipeline.bus, app.http.idle_s, &job, after, &pieces).await;
        drop(reader);
    });
    Ok(response)
}

/// Sends a job's events behind number `after` until its end, or until nobody takes them.
async fn feed(bus: &Bus, idle_s: f64, job: &JobId, after: Option<u64>, pieces: &Pieces) {
    let mut events = Events::new(bus, job);
    loop {
        let goes_on = tokio::select! {
            next = events.next() => match next {
                Ok(event) if after.is_some_and(|after| event.seq <= after) => continue,
                Ok(event) => {
                    let is_last = event.event.is_terminal();
                    send(pieces, shown(&event), idle_s).await && !is_last
                }
                Err(error) => {
                    let problem = Problem::unavailable(&error).body();
                    send(pieces, format!("event: error\ndata: {problem}\n\n"), idle_s).await;
                    false
                }
            },
            () = tokio::time::sleep(PING_EVERY) => send(pieces, ":\n\n".to_owned(), idle_s).await,
            () = pieces.closed() => false,
        };
        if !goes_on {
            return;
        }
    }
}

fn shown(event: &JobEvent) -> String {
    // JSON has no line breaks outside of texts, where they are escaped.
    let data = serde_json::to_string(event).unwrap_or_default();
    format!("id: {}\ndata: {data}\n\n", event.seq)
}

/// Reader of a job's events, until dropped. The last one of a job that was not to go on alone has some time to come back.
struct Reader {
    app: App,
    pipeline: Arc<Pipeline>,
    job: JobId,
}

impl Reader {
    fn new(app: &App, pipeline: &Arc<Pipeline>, job: &JobId) -> Self {
        app.jobs.reader_came(job);
        Reader { app: app.clone(), pipeline: pipeline.clone(), job: job.clone() }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.app.jobs.reader_left(&self.job);
        if !self.app.jobs.is_abandoned(&self.job, Duration::ZERO) {
            return;
        }
        let (app, pipeline, job) = (self.app.clone(), self.pipeline.clone(), self.job.clone());
        let patience = Duration::from_secs_f64(app.http.resume_s);
        tokio::spawn(async move {
            tokio::time::sleep(patience).await;
            if !app.jobs.is_abandoned(&job, patience) {
                return;
            }
            tracing::info!(%job, ?patience, "cancelling: the reader of its events was cut off, and has not come back");
            if let Err(error) = client::cancel(&pipeline.bus, &job).await {
                tracing::warn!(%job, error = format!("{error:#}"), "cancel failed");
            }
        });
    }
}
