//! `POST /v1/load` and `POST /v1/unload`: take the GPU, or free it; answered when that is done.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use protocol::control::{LoadReply, Verb};
use protocol::error::StageName;
use protocol::json::unmarked;
use runtime::bus::Bus;
use serde::Deserialize;
use serde_json::{Value, json};

use super::pipelines::Pipeline;
use super::problem::{Kind, Problem};
use super::state::App;
use crate::client;
use crate::up::idle::COMPUTING;

/// Bytes of a body at most.
pub const BODY_BYTES: usize = 4096;
/// Pause between two looks whether stages are ready.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Body of both; none is all stages that compute.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    stage: Option<StageName>,
    /// Model whose stages are meant; the own one where it is left out.
    #[serde(default)]
    model: Option<String>,
}

/// `POST /v1/load`: starts stages, and waits until they are ready.
pub async fn load(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Result<Json<Value>, Problem> {
    let Wanted { stage, model } = wanted(body)?;
    let pipeline = app.pipelines.pipeline(model.as_deref()).await?;
    let started = Instant::now();
    let reply = told(&pipeline, Verb::Load, stage).await?;
    let awaited: BTreeSet<StageName> = stage.map_or(COMPUTING.to_vec(), |stage| vec![stage]).into_iter().collect();
    let limit = Duration::from_secs_f64(app.http.load_s);
    loop {
        let there = client::ready(&pipeline.bus).await.map_err(|e| Problem::unavailable(&e))?;
        let missing: Vec<&str> = awaited.difference(&there).map(|stage| stage.as_str()).collect();
        if missing.is_empty() {
            break;
        }
        if started.elapsed() >= limit {
            let text = format!("load not done: {} not ready after {limit:?} (http.load_s)", missing.join(", "));
            return Err(Problem::new(Kind::Unavailable, text).hint("look at the log of `vidi up`"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let used_bytes = used(&pipeline.bus, &awaited).await?;
    let ms = started.elapsed().as_millis() as u64;
    Ok(Json(json!({ "loaded": reply.stages, "processes": reply.processes, "used_bytes": used_bytes, "ms": ms })))
}

/// `POST /v1/unload`: ends stages' processes once jobs in flight are answered; the bytes that they held.
pub async fn unload(State(app): State<App>, body: Result<Bytes, BytesRejection>) -> Result<Json<Value>, Problem> {
    let Wanted { stage, model } = wanted(body)?;
    let pipeline = app.pipelines.pipeline(model.as_deref()).await?;
    let started = Instant::now();
    let stages = stage.map_or(COMPUTING.to_vec(), |stage| vec![stage]).into_iter().collect();
    let before = used(&pipeline.bus, &stages).await?;
    let reply = told(&pipeline, Verb::Unload, stage).await?;
    // A process that has ended holds nothing.
    let freed_bytes = if reply.processes > 0 { before } else { 0 };
    let ms = started.elapsed().as_millis() as u64;
    Ok(Json(json!({ "unloaded": reply.stages, "processes": reply.processes, "freed_bytes": freed_bytes, "ms": ms })))
}

fn wanted(body: Result<Bytes, BytesRejection>) -> Result<Wanted, Problem> {
    let body = body.map_err(|e| Problem::bad_request(format!("its body cannot be read: {}", e.body_text())))?;
    let body = unmarked(&body);
    if body.trim_ascii().is_empty() {
        return Ok(Wanted::default());
    }
    let wanted: Result<Wanted, _> = serde_json::from_slice(body);
    let hint = "send no body, or {\"stage\": \"llm\"} (decode, vision, audio, fuse or llm), or {\"model\": NAME}";
    wanted.map_err(|e| Problem::bad_request(e.to_string()).hint(hint))
}

/// Asks the supervisor.
async fn told(pipeline: &Pipeline, verb: Verb, stage: Option<StageName>) -> Result<LoadReply, Problem> {
    let bus = pipeline.operator().await?;
    let reply = client::load(&bus, verb, stage).await.map_err(|e| Problem::unavailable(&e))?;
    if let Some(error) = &reply.error {
        return Err(Problem::new(Kind::Conflict, format!("{verb} refused: {error}")));
    }
    pipeline.stages.note(&reply.stages, verb == Verb::Load);
    Ok(reply)
}

/// Bytes that the processes of these stages hold: of the GPU where they compute on one, else resident.
async fn used(bus: &Bus, stages: &BTreeSet<StageName>) -> Result<u64, Problem> {
    let mut bytes = 0;
    for &stage in stages {
        let instances = client::status(bus, stage).await.map_err(|e| Problem::unavailable(&e))?;
        bytes += instances.iter().map(|instance| instance.used_bytes).sum::<u64>();
    }
    Ok(bytes)
}
