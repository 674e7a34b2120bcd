//! The HTTP gateway, against a real broker and five processes with the demo model, by a client that writes its own requests.
//!
//! In reading order: `client` (that client), `rig` (the pipeline that tests share, and gateways of their own), this file (jobs and
//! their ends), `uploads` (files and forms), `on_bus` (files that stage-decode does not see), `fetched` (videos of other hosts), `shapes` (the wires of others), `access` (who may
//! ask, and what is asked of the stages), `models` (two models on one broker), `many` (clients at once, and memory), `described` (what it says of itself), `page` (in a
//! browser), `programs` (the examples of the README), `figures` (what stands in BENCHMARKS.md).

mod access;
mod client;
mod described;
mod fetched;
mod figures;
mod many;
mod models;
mod on_bus;
mod page;
mod programs;
mod rig;
mod shapes;
mod uploads;

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use client::Client;
use demo_video::truth::{Answer, Question, Truth};
use protocol::error::StageName;
use protocol::event::{CancelledBy, Event, JobResult};
use protocol::message::JobId;
use serde_json::{Value, json};
use tests::harness::{Rig, signal, terminal};

use rig::{clip, own, with_pipeline};

/// Length of the videos, seconds.
const SECONDS: u32 = 12;
/// What happens at once happens within this time on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// The first question of a task.
fn question<'a>(truth: &'a Truth, task: &str) -> anyhow::Result<&'a Question> {
    let is_asked = |q: &&Question| q.task == task && !matches!(&q.answer, Answer::Ranges(ranges) if ranges.is_empty());
    truth.questions.iter().find(is_asked).with_context(|| format!("no question of {task}"))
}

/// Checks a result against the truth.
fn ensure_true(question: &Question, result: &Value) -> anyhow::Result<()> {
    let result: JobResult = serde_json::from_value(result.clone())?;
    let verdict = question.answer.judge(&result);
    ensure!(verdict.is_true(), "{:?}: {:?} and not {}", question.query, result.text, question.answer);
    Ok(())
}

/// All events of a job from a number on: their ids, and the last one.
async fn events(client: &Client, job: &str, last: Option<u64>) -> anyhow::Result<(Vec<u64>, Value)> {
    let mut stream = client.events(&format!("/v1/jobs/{job}/events"), last).await?;
    ensure!(stream.head.status == 200, "{:?}", stream.head);
    ensure!(stream.head.header("content-type") == "text/event-stream", "{:?}", stream.head);
    let (mut ids, mut event) = (Vec::new(), Value::Null);
    while let Some((id, data)) = stream.next().await? {
        event = serde_json::from_str(&data)?;
        ensure!(id.is_some() && event["seq"].as_u64() == id, "id {id:?} of {data}");
        ids.extend(id);
    }
    Ok((ids, event))
}

/// Waits until something is so.
async fn until(what: &str, mut is: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let started = Instant::now();
    while !is().await? {
        ensure!(started.elapsed() < SOON, "{what}: not so after {SOON:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// How a job was cancelled.
async fn cancelled_by(rig: &Rig, job: &str) -> anyhow::Result<CancelledBy> {
    let events = rig.events(&JobId::new(job)?).await?;
    match terminal(&events)? {
        Event::Cancelled { by, .. } => Ok(*by),
        other => anyhow::bail!("{job} was not cancelled: {other:?}"),
    }
}

#[test]
fn a_path_is_asked_about_once_however_often_it_is_submitted_and_its_answer_is_true() -> anyhow::Result<()> {
    with_pipeline(path_and_resubmission)
}

async fn path_and_resubmission(rig: &Rig, client: &Client) -> anyhow::Result<()> {
    let (video, truth) = clip(rig).await?;
    let asked = question(&truth, "retrieval")?;
    let body = json!({ "job": "path-1", "video": video, "query": asked.query, "max_new_tokens": 24 });
    let taken = client.post("/v1/jobs", &body).await?.expect(202)?;
    ensure!(taken.header("location") == "/v1/jobs/path-1" && taken.json()["job"] == "path-1", "{taken:?}");
    let (ids, last) = events(client, "path-1", None).await?;
    ensure!(ids == (0..ids.len() as u64).collect::<Vec<_>>(), "{ids:?}");
    ensure!(last["kind"] == "result", "{last}");
    let done = client.get("/v1/jobs/path-1").await?.expect(200)?.json();
    ensure!(done["state"] == "done" && done["resolution_s"].as_f64().is_some_and(|s| s > 0.0), "{done}");
    ensure_true(asked, &done["result"])?;

    // The same again is the same job; another question under its id is refused.
    client.post("/v1/jobs", &body).await?.expect(202)?;
    ensure!(client.get("/v1/jobs/path-1").await?.json() == done, "it was asked again");
    let mut other = body.clone();
    other["query"] = json!("something else");
    client.post("/v1/jobs", &other).await?.problem(409, "conflict")?;

    let table = client.get("/v1/jobs/path-1/export?format=csv").await?.expect(200)?;
    let ranges = done["result"]["ranges"].as_array().map_or(0, Vec::len);
    ensure!(table.text().starts_with("start_s,") && table.text().lines().count() == 1 + ranges, "{}", table.text());
    ensure!(table.text().contains(&asked.query), "{}", table.text());
    let known = client.get("/v1/jobs/path-1/export?format=gif").await?.problem(400, "bad_request")?;
    ensure!(known["hint"].as_str().is_some_and(|hint| hint.contains("edl-markers")), "{known}");

    client.get("/v1/jobs/never").await?.problem(404, "not_found")?;
    client.get("/v1/jobs/never/events").await?.problem(404, "not_found")?;
    client.delete("/v1/jobs/never").await?.problem(404, "not_found")?;
    client.get("/v1/jobs/no%20id").await?.problem(400, "bad_request")?;
    Ok(())
}

#[test]
fn events_that_were_cut_off_go_on_where_they_were() -> anyhow::Result<()> {
    with_pipeline(cut_and_resumed)
}

async fn cut_and_resumed(rig: &Rig, client: &Client) -> anyhow::Result<()> {
    let (video, truth) = clip(rig).await?;
    let asked = question(&truth, "retrieval")?;
    let body = json!({ "job": "cut", "video": video, "query": asked.query, "max_new_tokens": 24 });
    client.post("/v1/jobs", &body).await?.expect(202)?;
    let mut stream = client.events("/v1/jobs/cut/events", None).await?;
    for expected in 0..2 {
        let (id, _) = stream.next().await?.context("the stream ended")?;
        ensure!(id == Some(expected), "{id:?}");
    }
    drop(stream);
    let (ids, last) = events(client, "cut", Some(1)).await?;
    ensure!(ids == (2..2 + ids.len() as u64).collect::<Vec<_>>(), "{ids:?}");
    ensure!(last["kind"] == "result", "{last}");
    // A browser that comes back for more is told that there is none.
    let after = client.events("/v1/jobs/cut/events", ids.last().copied()).await?;
    ensure!(after.head.status == 204, "{:?}", after.head);
    let wrong = client.stream("GET", "/v1/jobs/cut/events", &[("last-event-id", "x")], &[]).await?;
    ensure!(wrong.head.status == 400, "{:?}", wrong.head);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ends_when_it_is_deleted_or_its_client_hangs_up_and_goes_on_where_that_was_asked_for()
-> anyhow::Result<()> {
    let (rig, client) = own().await?;
    let (video, truth) = rig.demo_video(3, SECONDS)?;
    let asked = question(&truth, "retrieval")?;
    let [vision] = rig.pids(StageName::Vision)[..] else { anyhow::bail!("not one stage-vision") };
    // With it paused no job gets its answer.
    signal(vision, "STOP")?;
    let is_planned = async |job: &str| {
        let state = client.get(&format!("/v1/jobs/{job}")).await?.json();
        anyhow::Ok(state["state"] == "running")
    };
    let body = |job: &str, detach: bool| json!({ "job": job, "video": video, "query": asked.query, "max_new_tokens": 24, "detach": detach });

    client.post("/v1/jobs", &body("deleted", false)).await?.expect(202)?;
    until("deleted runs", async || is_planned("deleted").await).await?;
    let gone = client.delete("/v1/jobs/deleted").await?.expect(200)?.json();
    ensure!(gone["state"] == "cancelled" && gone["cancelled"]["by"] == "client", "{gone}");
    let again = client.delete("/v1/jobs/deleted").await?.expect(200)?.json();
    ensure!(again["state"] == "cancelled" && again["stopped"] == json!([]), "{again}");

    // A reader of events who does not come back.
    client.post("/v1/jobs", &body("left", false)).await?.expect(202)?;
    let mut stream = client.events("/v1/jobs/left/events", None).await?;
    stream.next().await?.context("the stream ended")?;
    drop(stream);
    ensure!(cancelled_by(&rig, "left").await? == CancelledBy::Client);

    // A request that waits for its answer, once for each: given up, and given up with detach.
    let path = video.to_string_lossy().into_owned();
    let texts = [("video_path", path.as_str()), ("question", &asked.query), ("task", "retrieval")];
    let kind = client::form_type();
    for (job, detach) in [("hung-up", "false"), ("detached", "true")] {
        let with = [&texts[..], &[("job", job), ("detach", detach), ("max_new_tokens", "24")]].concat();
        let form = client::form(&with, None);
        let socket = client.send("POST", "/inference", &[("content-type", &kind)], &form, form.len()).await?;
        until("it runs", async || is_planned(job).await).await?;
        drop(socket);
    }
    ensure!(cancelled_by(&rig, "hung-up").await? == CancelledBy::Client);
    signal(vision, "CONT")?;
    let (_, last) = events(&client, "detached", None).await?;
    ensure!(last["kind"] == "result", "{last}");
    ensure_true(asked, &client.get("/v1/jobs/detached").await?.json()["result"])
}

#[test]
fn a_video_that_does_not_fit_is_refused_with_the_figures() -> anyhow::Result<()> {
    with_pipeline(async |rig, client| {
        let (video, _) = clip(rig).await?;
        // Every picture of it: more tokens than the stream of the tests has a capacity for.
        let body = json!({ "job": "large", "video": video, "query": "a beep", "fps": 10 });
        client.post("/v1/jobs", &body).await?.expect(202)?;
        let (_, last) = events(client, "large", None).await?;
        ensure!(last["kind"] == "failed" && last["error"]["kind"] == "does_not_fit", "{last}");
        let state = client.get("/v1/jobs/large").await?.expect(200)?.json();
        let needed = state["error"]["details"]["needed_bytes"].as_u64();
        ensure!(state["error"]["status"] == 413 && needed.is_some_and(|bytes| bytes > rig::TOKEN_BYTES), "{state}");

        let path = video.to_string_lossy().into_owned();
        let texts = [("video_path", path.as_str()), ("question", "a beep"), ("task", "retrieval"), ("fps", "10")];
        let refused = client.form("/inference", &texts, None).await?.problem(413, "does_not_fit")?;
        ensure!(refused["details"]["needed_bytes"].as_u64() == needed, "{refused}");
        Ok(())
    })
}
