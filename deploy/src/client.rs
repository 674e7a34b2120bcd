//! Client of a running pipeline: submits, follows and cancels jobs, loads and unloads stages, reads their status.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use async_nats::Subscriber;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::service::PingResponse;
use futures::future::try_join_all;
use futures::{FutureExt, StreamExt};
use model::config_json::Family;
use protocol::control::{ControlReply, ControlRequest, LoadReply, Verb};
use protocol::error::StageName;
use protocol::event::{CancelledBy, JobEvent};
use protocol::message::{JobId, JobRequest};
use protocol::wire::{self, Encoding};
use runtime::bus::{Bus, headers};
use runtime::run::control;
use runtime::run::ending;
use runtime::run::service::{self, Status};
use runtime::subject::StreamName;

/// Time without a reply after which a broadcast counts as answered.
const QUIET: Duration = Duration::from_millis(150);
/// Interval at which a job's events are looked for though none was heard of: what a subscriber hears may be lost.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time that a supervisor has to load or unload stages.
const LOAD_WAIT: Duration = Duration::from_secs(660);
/// Time besides twice `worker_patience_s` after which a job whose events the broker has lost is given up.
const LOST_WAIT: Duration = Duration::from_secs(3);
/// Time within which this client ends a job itself, where no stage is there to do it.
const END_WAIT: Duration = Duration::from_secs(20);

/// Submits a job; the same id twice is the same job. The broker has seconds to take it.
///
/// # Errors
/// When the broker does not take it, and whether it may have all the same.
pub async fn submit(bus: &Bus, request: &JobRequest) -> anyhow::Result<()> {
    // Without a message id: admission knows a request that it has admitted by its job's events. The broker would drop it as a
    // duplicate of an earlier one also where those events are gone, and nobody would ever answer it.
    let with = headers(&request.job);
    let js = async_nats::jetstream::new(bus.client().clone());
    let body = wire::encode(request);
    let ack = js.publish_with_headers(bus.subjects().jobs(), with, body.into()).await;
    ack.context("submitting the job failed")?.await.map_err(|error| {
        let why = match error.kind() {
            PublishErrorKind::StreamNotFound => {
                ": nobody keeps requests now: no stage-llm has made the streams yet, or too few servers of the cluster are \
                 there to elect a leader; the job is not submitted"
            }
            PublishErrorKind::TimedOut => {
                ": no answer in time: the job may be accepted all the same once the broker is back; the same id again does no harm"
            }
            _ => "",
        };
        anyhow::Error::new(error).context(format!("the broker did not accept the job{why}"))
    })?;
    Ok(())
}

/// All events of a job from the first one on, whenever reading starts.
///
/// They are read one by one, without a consumer on the broker: a user that may make one may have it deliver to any subject.
pub struct Events {
    bus: Bus,
    subject: String,
    /// Hears that there may be more to read; none before the first event.
    heard: Option<Subscriber>,
    /// Sequence on the stream from which the next event is looked for.
    from: u64,
    /// Number of the next event; earlier ones are skipped.
    seq: u64,
    /// Since when the stream has held none of the events that were read.
    lost: Option<Instant>,
}

impl Events {
    /// Starts to follow a job.
    pub fn new(bus: &Bus, job: &JobId) -> Self {
        Events { bus: bus.clone(), subject: bus.subjects().events(job), heard: None, from: 1, seq: 0, lost: None }
    }

    /// The next event; waits while the broker is away.
    ///
    /// # Errors
    /// When the broker does not let us hear of events; when it has lost those that were read, and no worker writes on.
    pub async fn next(&mut self) -> anyhow::Result<JobEvent> {
        if self.heard.is_none() {
            let heard = self.bus.client().subscribe(self.subject.clone()).await;
            self.heard = Some(heard.context("hearing of events failed")?);
        }
        loop {
            // What was heard of until now is read below.
            while self.heard.as_mut().and_then(|heard| heard.next().now_or_never().flatten()).is_some() {}
            while let Some(message) = self.bus.first_from(StreamName::Events, &self.subject, self.from).await {
                self.from = message.sequence + 1;
                match wire::decode_any::<JobEvent>(&message.payload) {
                    // An end counts whatever its number: who writes it behind lost events does not know how many were told.
                    Ok(event) if event.seq >= self.seq || event.event.is_terminal() => {
                        self.seq = self.seq.max(event.seq + 1);
                        return Ok(event);
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "decoding an event failed, skipped"),
                }
            }
            let heard = async {
                match self.heard.as_mut() {
                    Some(heard) => heard.next().await,
                    None => std::future::pending().await,
                }
            };
            // Late or early, the stream alone says what there is.
            let _ = tokio::time::timeout(LOOK_EVERY, heard).await;
            // Sequences count anew on a stream that was lost and made again.
            let last = self.bus.last_on(StreamName::Events, &self.subject).await;
            if last.as_ref().is_none_or(|last| last.sequence + 1 < self.from) {
                self.from = 1;
            }
            self.lost = if last.is_none() && self.seq > 0 { self.lost.or_else(|| Some(Instant::now())) } else { None };
            // Whoever has the job in flight would have written on, or asked again for what is missing, by now.
            let patience = Duration::from_secs_f64(2.0 * self.bus.config().worker_patience_s) + LOST_WAIT;
            if self.lost.is_some_and(|since| since.elapsed() > patience) {
                bail!(
                    "the broker has lost the events of {}, its end among them if it has one: submit it again",
                    self.subject
                );
            }
        }
    }
}

/// Events of a job that the broker holds, without waiting for more; none where it has none of it, or none any more.
pub async fn events_so_far(bus: &Bus, job: &JobId) -> Vec<JobEvent> {
    let subject = bus.subjects().events(job);
    let (mut events, mut from) = (Vec::new(), 1);
    while let Some(message) = bus.first_from(StreamName::Events, &subject, from).await {
        from = message.sequence + 1;
        match wire::decode_any(&message.payload) {
            Ok(event) => events.push(event),
            Err(error) => tracing::debug!(%error, "decoding an event failed, skipped"),
        }
    }
    events
}

/// Cancels a job in every stage; returns what each instance did. Where no stage is there to end it, this client does.
///
/// # Errors
/// When the broker cannot be asked, or does not let us end the job.
pub async fn cancel(bus: &Bus, job: &JobId) -> anyhow::Result<Vec<ControlReply>> {
    let request = ControlRequest { v: wire::VERSION, job: Some(job.clone()), ..Default::default() };
    let replies = control::gather(bus, Verb::Cancel, &request).await?;
    if replies.is_empty() {
        let end =
            ending::ensure_ended(bus.clone(), StageName::Llm, job.clone(), CancelledBy::Client, Encoding::default());
        let text =
            "cancel failed: no stage answers, and the broker does not let this user end the job; start a stage-llm";
        tokio::time::timeout(END_WAIT, end).await.context(text)?;
    }
    Ok(replies)
}

/// Asks a supervisor to load or unload a stage, or all that compute; returns what it did, once jobs in flight are
/// answered.
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
    let ours = |p: &&PingResponse| p.metadata.get("prefix").map(String::as_str) == Some(prefix);
    Ok(pinged(bus).await?.iter().filter(ours).filter_map(|p| p.metadata.get("stage")?.parse().ok()).collect())
}

/// What a stage-llm says of its model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Name of the checkpoint.
    pub model: String,
    /// Family of the model; none from a stage-llm of before there were two.
    pub family: Option<Family>,
}

/// What stage-llm says of the model that it answers with, by prefix: whichever pipelines of this broker have one there.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn models(bus: &Bus) -> anyhow::Result<BTreeMap<String, Said>> {
    let said = |p: PingResponse| {
        let of = |key: &str| p.metadata.get(key).cloned();
        let is_llm = of("stage").as_deref() == Some(StageName::Llm.as_str());
        let model = of("model").filter(|_| is_llm)?;
        Some((of("prefix")?, Said { model, family: of("family").and_then(|name| name.parse().ok()) }))
    };
    Ok(pinged(bus).await?.into_iter().filter_map(said).collect())
}

/// What the instances on this bus say of themselves, under whichever prefix.
async fn pinged(bus: &Bus) -> anyhow::Result<Vec<PingResponse>> {
    let pings = scatter(bus, "$SRV.PING".to_owned()).await?;
    Ok(pings.iter().filter_map(|body| serde_json::from_slice(body).ok()).collect())
}

/// Status of each instance of a stage under this prefix.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn status(bus: &Bus, stage: StageName) -> anyhow::Result<Vec<Status>> {
    let bodies = scatter(bus, format!("$SRV.STATS.{}", service::name_of(stage))).await?;
    Ok(bodies
        .iter()
        .filter_map(|body| serde_json::from_slice::<async_nats::service::Stats>(body).ok())
        .filter_map(|s| serde_json::from_value(s.endpoints.first()?.data.clone()?).ok())
        // Of an instance of before there were several pipelines on one broker, nobody knows it.
        .filter(|s: &Status| s.prefix.is_empty() || s.prefix == bus.subjects().prefix())
        .collect())
}

/// Status of every instance of every stage under this prefix, in the order of the data's flow.
///
/// # Errors
/// When the broker cannot be asked.
pub async fn statuses(bus: &Bus) -> anyhow::Result<Vec<Status>> {
    // Side by side: each question waits until nobody has answered for a while.
    let mut all = try_join_all(StageName::ALL.map(|stage| status(bus, stage))).await?.concat();
    all.sort_by(|a, b| (a.stage, &a.instance).cmp(&(b.stage, &b.instance)));
    Ok(all)
}

/// Broadcasts a request and gathers the replies until none comes for [`QUIET`].
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
