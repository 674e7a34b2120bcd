//! Control messages from whoever sends them: to all stages, and to a supervisor.

use std::time::{Duration, Instant};

use async_nats::{Request, RequestError, RequestErrorKind};
use bytes::Bytes;
use futures::StreamExt;

use crate::bus::{Bus, BusError, BusErrorKind, Role};
use protocol::control::{ControlReply, ControlRequest, LoadReply, Verb};
use protocol::error::StageName;
use protocol::message::JobId;
use protocol::wire;

/// Time within which a supervisor answers: a stage that is unloaded finishes what it has in flight first.
const LOAD_WAIT: Duration = Duration::from_secs(60);
/// Time that a supervisor has to be back behind a broker that was away.
const BACK_WAIT: Duration = Duration::from_secs(10);
/// Pause before it is asked again.
const AGAIN: Duration = Duration::from_millis(200);
/// Replies to a broadcast that come later than this after the last one are not waited for.
const QUIET: Duration = Duration::from_millis(300);
/// Replies to a broadcast are not waited for longer than this.
const PATIENCE: Duration = Duration::from_secs(2);

/// Replies of this project's processes, and of NATS clients, go to subjects that begin so.
const INBOX: &str = "_INBOX.";
/// Roles that may load, unload and drain.
const OPERATING: [Role; 2] = [Role::Operator, Role::Stage(StageName::Llm)];

/// Whether a control message was sent by who may load, unload and drain: it is a request of an operator, of stage-llm, or of
/// a client without a role. What the broker or a stage sends in another's place is none: a reply that was directed to the
/// subject has no inbox for a reply of its own, and what a consumer delivers has a subject for acknowledgements there.
///
/// # Errors
/// Who asks instead, in words. With an inbox, that may be told to who asked.
pub fn check_sender(message: &async_nats::Message) -> Result<(), String> {
    let verb = message.subject.rsplit('.').next().unwrap_or_default();
    let Some(inbox) = message.reply.as_ref().and_then(|reply| reply.strip_prefix(INBOX)) else {
        return Err(format!("control.{verb} was not asked for: it is a request, with an inbox for its answer"));
    };
    let role = inbox.split('.').next().unwrap_or_default();
    match Role::ALL.into_iter().find(|known| known.as_str() == role) {
        Some(role) if !OPERATING.contains(&role) => {
            Err(format!("control.{verb} is for operators and stage-llm; the role {role} asks"))
        }
        _ => Ok(()),
    }
}

/// Whether a message has an inbox for an answer.
pub fn has_inbox(message: &async_nats::Message) -> bool {
    message.reply.as_ref().is_some_and(|reply| reply.starts_with(INBOX))
}

/// Request that tells every stage to drop a job that has ended, or ends now.
pub fn dropped(job: &JobId) -> ControlRequest {
    ControlRequest { v: wire::VERSION, job: Some(job.clone()), ended: true, ..Default::default() }
}

/// Tells every stage to drop a job that has ended, without waiting.
pub async fn broadcast_end(bus: &Bus, job: &JobId) {
    bus.tell(bus.subjects().control(Verb::Cancel), wire::encode(&dropped(job))).await;
}

/// Asks a supervisor to [load](Verb::Load) or [unload](Verb::Unload) a stage's processes on a device for a job: what is unloaded
/// stays away until it is loaded, or no job is left. Who does not know its device (an empty name) asks for all of the stage.
///
/// # Errors
/// Why it was not done.
pub async fn load_or_unload(
    bus: &Bus,
    verb: Verb,
    stage: StageName,
    device: &str,
    job: &JobId,
) -> Result<LoadReply, String> {
    let device = Some(device.to_owned()).filter(|device| !device.is_empty());
    let (stage, job) = (Some(stage), Some(job.clone()));
    let request = ControlRequest { v: wire::VERSION, stage, device, job, ..Default::default() };
    let body = Bytes::from(wire::encode(&request));
    let reply =
        ask_supervisor(bus, verb, body).await.map_err(|e| format!("no supervisor answers control.{verb}: {e}"))?;
    let reply: LoadReply = wire::decode_any(&reply.payload).map_err(|e| e.to_string())?;
    reply.error.clone().map_or(Ok(reply), Err)
}

/// Asks a supervisor, and again where the broker went away meanwhile: the answer may be lost, and asking twice does no harm. Behind the
/// broker's return a supervisor has a few seconds to be back as well.
async fn ask_supervisor(bus: &Bus, verb: Verb, body: Bytes) -> Result<async_nats::Message, RequestError> {
    let before = bus.reconnects();
    let mut back = None;
    loop {
        let mut reconnects = bus.reconnects_from_now();
        let request = Request::new().payload(body.clone()).timeout(Some(LOAD_WAIT));
        let asked = bus.client().send_request(bus.subjects().control(verb), request);
        let outcome = tokio::select! {
            outcome = asked => outcome,
            _ = reconnects.changed() => {
                back = Some(Instant::now());
                continue;
            }
        };
        match outcome {
            Err(error) if error.kind() == RequestErrorKind::NoResponders && bus.reconnects() != before => {
                if back.get_or_insert_with(Instant::now).elapsed() > BACK_WAIT {
                    return Err(error);
                }
                tokio::time::sleep(AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

/// Sends a control message and gathers what the instances answer.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn gather(bus: &Bus, verb: Verb, request: &ControlRequest) -> Result<Vec<ControlReply>, BusError> {
    let failed = |e: String| BusError::new(BusErrorKind::Unreachable, format!("control.{verb}: {e}"));
    let inbox = bus.client().new_inbox();
    let mut replies = bus.client().subscribe(inbox.clone()).await.map_err(|e| failed(e.to_string()))?;
    bus.client()
        .publish_with_reply(bus.subjects().control(verb), inbox, wire::encode(request).into())
        .await
        .map_err(|e| failed(e.to_string()))?;
    let until = tokio::time::Instant::now() + PATIENCE;
    let mut gathered = Vec::new();
    loop {
        // Until the first reply there is no quiet, only patience.
        let quiet = if gathered.is_empty() { until } else { tokio::time::Instant::now() + QUIET };
        match tokio::time::timeout_at(quiet.min(until), replies.next()).await {
            Ok(Some(reply)) => match wire::decode_any(&reply.payload) {
                Ok(reply) => gathered.push(reply),
                Err(error) => tracing::debug!(%error, "control reply unreadable"),
            },
            Ok(None) | Err(_) => return Ok(gathered),
        }
    }
}
