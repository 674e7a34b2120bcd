//! `/v1/jobs`: submit, look, cancel.

use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use protocol::event::{Event, JobEvent};
use protocol::message::JobId;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::intake::{self, Asked};
use super::problem::{Kind, Problem};
use super::state::App;
use crate::export::clock;
use crate::{ask, client};

/// The last event of a job that was cancelled is waited for so long.
const END_WAIT: Duration = Duration::from_secs(5);
/// Pause between two looks for it.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// `POST /v1/jobs`: 202, the job's id and where it is to be found.
pub async fn submit(State(app): State<App>, request: Request) -> Result<Response, Problem> {
    let slot = app.jobs.slot()?;
    let asked = intake::read(&app, request).await?;
    app.lend(asked.held.as_ref(), Some(asked.pipeline.prefix())).await?;
    let job = asked.request.job.clone();
    let is_new = app.jobs.note(&asked.request, asked.pipeline.number, asked.detach)?;
    if is_new || app.jobs.is_in_flight(&job) {
        // The same id is the same job: once more does no harm, and helps where the broker has lost it.
        if let Err(error) = client::submit(&asked.pipeline.bus, &asked.request).await {
            if is_new {
                app.jobs.forget(&job);
            }
            return Err(Problem::unavailable(&error));
        }
    }
    if is_new {
        tokio::spawn(watch(app, asked, slot));
    }
    let place = format!("/v1/jobs/{job}");
    let body = json!({ "job": job, "state": "submitted", "url": place, "events": format!("{place}/events") });
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, place)], Json(body)).into_response())
}

/// Follows a job to its end, and keeps its video and its slot until then.
async fn watch(app: App, asked: Asked, slot: OwnedSemaphorePermit) {
    let job = asked.request.job.clone();
    match ask::to_its_end(&asked.pipeline.bus, &asked.request, |_| {}).await {
        Ok(end) => app.metrics.ended(&asked.request.task, &end),
        Err(error) => tracing::warn!(%job, error = format!("{error:#}"), "following a job failed"),
    }
    app.jobs.note_end(&job);
    drop((asked, slot));
}

/// `GET /v1/jobs/{id}`: its state, and its result once there is one.
pub async fn look(State(app): State<App>, Path(job): Path<String>) -> Result<Json<Value>, Problem> {
    let job = intake::job_id(&job)?;
    let known = app.jobs.request(&job).is_some();
    match app.job(&job).await?.1 {
        Some(event) => Ok(Json(shown(&event))),
        None if known => Ok(Json(json!({ "job": job, "state": "submitted" }))),
        None => Err(no_job(&job)),
    }
}

/// `DELETE /v1/jobs/{id}`: cancels it; which stages dropped work, and how it ended.
pub async fn cancel(State(app): State<App>, Path(job): Path<String>) -> Result<Json<Value>, Problem> {
    let job = intake::job_id(&job)?;
    let (pipeline, before) = app.job(&job).await?;
    if let Some(event) = before.as_ref().filter(|event| event.event.is_terminal()) {
        let mut body = shown(event);
        (body["stopped"], body["note"]) = (json!([]), json!("the job had ended before"));
        return Ok(Json(body));
    }
    if before.is_none() && app.jobs.request(&job).is_none() {
        return Err(no_job(&job));
    }
    let asked = Instant::now();
    let replies = client::cancel(&pipeline.bus, &job).await.map_err(|e| Problem::unavailable(&e))?;
    let stopped: Vec<Value> = replies
        .iter()
        .filter(|reply| reply.stopped)
        .map(|reply| json!({ "stage": reply.stage, "instance": reply.instance }))
        .collect();
    let mut body = json!({ "job": job, "state": "cancelling" });
    while asked.elapsed() < END_WAIT {
        if let Some(event) = pipeline.last_event(&job).await?.filter(|event| event.event.is_terminal()) {
            body = shown(&event);
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    (body["stopped"], body["took_ms"]) = (json!(stopped), json!(asked.elapsed().as_millis() as u64));
    Ok(Json(body))
}

/// A job as its last event shows it.
fn shown(event: &JobEvent) -> Value {
    let mut body = json!({ "job": event.job, "seq": event.seq, "at_ms": event.at_ms });
    body["state"] = json!(match &event.event {
        Event::Planned { .. } | Event::Progress { .. } | Event::Text { .. } => "running",
        Event::Result(_) => "done",
        told => told.kind(),
    });
    match &event.event {
        Event::Result(result) => {
            body["result"] = json!(result);
            body["resolution_s"] = json!(clock::resolution_of(result));
        }
        Event::Failed { error } => {
            let problem = Problem::from(error.clone());
            body["error"] = problem.body();
        }
        Event::Cancelled { by, stages_stopped, ms } => {
            body["cancelled"] = json!({ "by": by, "stages_stopped": stages_stopped, "ms": ms });
        }
        going_on => body["last"] = json!(going_on),
    }
    body
}

/// No such job.
pub fn no_job(job: &JobId) -> Problem {
    Problem::new(Kind::NotFound, format!("no job {job}: it was not submitted, or its events are gone"))
        .hint("events are kept for bus.event_age_s after a job's end; submit it again: the same id does no harm")
}
