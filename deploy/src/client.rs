//! A client of a running pipeline: submit a job, follow its events, cancel it, see who is there.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use async_nats::service::PingResponse;
use futures::StreamExt;
use protocol::control::{ControlReply, ControlRequest, LoadReply, Verb};
use protocol::error::StageName;
use protocol::event::{CancelledBy, JobEvent};
use protocol::message::{JobId, JobRequest};
use protocol::wire;
use runtime::bus::{Bus, headers};
use runtime::run::control;
use runtime::run::ending;
use runtime::run::service::{self, Status};
use runtime::subject::StreamName;
use tokio::sync::mpsc;

/// Instances that answer later than this after the last one are not waited for.
const QUIET: Duration = Duration::from_millis(150);
/// A supervisor has done what it was asked to within this time.
const LOAD_WAIT: Duration = Duration::from_secs(660);
/// A job without a stage is ended from here within this time.
const ALONE: Duration = Duration::from_secs(20);

/// Submits a job; the same id twice is the same job.
///
/// # Errors
/// When the broker does not take it.
pub async fn submit(bus: &Bus, request: &JobRequest) -> anyhow::Result<()> {
    let mut with = headers(&request.job);
    with.insert("Nats-Msg-Id", format!("{}/job/0", request.job).as_str());
    let js = async_nats::jetstream::new(bus.client().clone());
    let body = wire::encode(request);
    let ack = js.publish_with_headers(bus.subjects().jobs(), with, body.into()).await;
    ack.context("job not submitted")?.await.context("job not accepted by the broker")?;
    Ok(())
}

/// A job's events from the first one on, whenever one starts to read.
pub struct Events {
    messages: mpsc::Receiver<async_nats::jetstream::Message>,
    /// The event that is next; what was read before is skipped.
    seq: u64,
}

impl Events {
    /// Follows a job.
    pub fn new(bus: &Bus, job: &JobId) -> Self {
        Events { messages: bus.follow(StreamName::Events, bus.subjects().events(job)), seq: 0 }
    }

    /// The next event; waits for a broker that is away.
    ///
    /// # Errors
    /// When the reader is gone, which only the end of the process brings about.
    pub async fn next(&mut self) -> anyhow::Result<JobEvent> {
        loop {
            let message = self.messages.recv().await.context("the reader of events is gone")?;
            match wire::decode_any::<JobEvent>(&message.payload) {
                Ok(event) if event.seq >= self.seq => {
                    self.seq = event.seq + 1;
                    return Ok(event);
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "event not understood"),
            }
        }
    }
}

/// Cancels a job everywhere and says who stopped. Where no stage is there to end it, it is ended from here.
///
/// # Errors
/// When the broker cannot be asked, or does not let us end the job.
pub async fn cancel(bus: &Bus, job: &JobId) -> anyhow::Result<Vec<ControlReply>> {
    let request = ControlRequest { v: wire::VERSION, job: Some(job.clone()), ..Default::default() };
    let replies = control::gather(bus, Verb::Cancel, &request).await?;
    if replies.is_empty() {
        let end = ending::ensure_ended(bus.clone(), StageName::Llm, job.clone(), CancelledBy::Client);
        let text = "no stage is there to end the job, and the broker does not let this user: start a stage-llm";
        tokio::time::timeout(ALONE, end).await.context(text)?;
    }
    Ok(replies)
}

/// Asks a supervisor to load or unload a stage, or all that compute, and says what it did. It answers once jobs in
/// flight are answered.
///
/// # Errors
/// When no supervisor is there.
pub async fn load(bus: &Bus, verb: Verb, stage: Option<StageName>) -> anyhow::Result<LoadReply> {
    let request = ControlRequest { v: wire::VERSION, stage, ..Default::default() };
    let request = async_nats::Request::new().payload(wire::encode(&request).into()).timeout(Some(LOAD_WAIT));
    let reply = bus.client().send_request(bus.subjects().control(verb), request).await;
    let reply = reply.context("no supervisor answers: `vidi up` loads and unloads stages that it runs as processes")?;
    Ok(wire::decode_any(&reply.payload)?)
}

/// The stages that are ready on this bus, under this prefix.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn ready(bus: &Bus) -> anyhow::Result<BTreeSet<StageName>> {
    let prefix = bus.subjects().prefix();
    let pings = scatter(bus, "$SRV.PING".to_owned()).await?;
    Ok(pings
        .iter()
        .filter_map(|body| serde_json::from_slice::<PingResponse>(body).ok())
        .filter(|p| p.metadata.get("prefix").map(String::as_str) == Some(prefix))
        .filter_map(|p| p.metadata.get("stage")?.parse().ok())
        .collect())
}

/// How each instance of a stage fares.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn status(bus: &Bus, stage: StageName) -> anyhow::Result<Vec<Status>> {
    let bodies = scatter(bus, format!("$SRV.STATS.{}", service::name_of(stage))).await?;
    Ok(bodies
        .iter()
        .filter_map(|body| serde_json::from_slice::<async_nats::service::Stats>(body).ok())
        .filter_map(|s| serde_json::from_value(s.endpoints.first()?.data.clone()?).ok())
        .collect())
}

/// Asks every instance and gathers the answers until it is quiet.
async fn scatter(bus: &Bus, subject: String) -> anyhow::Result<Vec<bytes::Bytes>> {
    let inbox = bus.client().new_inbox();
    let mut replies = bus.client().subscribe(inbox.clone()).await?;
    bus.client().publish_with_reply(subject, inbox, bytes::Bytes::new()).await?;
    let mut bodies = Vec::new();
    while let Ok(Some(reply)) = tokio::time::timeout(QUIET, replies.next()).await {
        if reply.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
            break;
        }
        bodies.push(reply.payload);
    }
    Ok(bodies)
}
