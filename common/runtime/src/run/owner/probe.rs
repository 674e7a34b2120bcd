//! What a file is, asked of any stage-decode worker until one answers.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use crate::bus::Bus;
use crate::run::job_end::EndSignal;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::{ProbeReply, ProbeRequest};
use protocol::plan::MediaInfo;
use protocol::stage::Stop;
use protocol::wire;

/// Time that one probe takes at most.
const PROBE_WAIT: Duration = Duration::from_secs(30);
/// Time after which an unanswered probe is asked for once more, and again after twice as long: whoever had it may have been
/// killed, or the broker with it. The earlier ones may be answered all the same.
const PROBE_AGAIN: Duration = Duration::from_secs(4);
/// Pause before a probe that nobody could take is asked for again.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause before a worker, or another one, is asked again that had too much to do.
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// Asks any stage-decode worker for a probe, until one answers or `end` says that nobody waits for the job.
///
/// # Errors
/// The worker's refusal; `worker_lost` when none answers for as long as `worker_patience_s`; [`Stop::Cancelled`].
pub async fn probe(bus: &Bus, end: &EndSignal, video: &str) -> Result<MediaInfo, Stop> {
    tokio::select! {
        biased;
        () = end.wait() => Err(Stop::Cancelled),
        info = media_info(bus, video) => info.map_err(Stop::Failed),
    }
}

/// Asks any stage-decode worker for the facts of a file, until one answers.
///
/// # Errors
/// The worker's refusal; `worker_lost` when none answers for as long as `worker_patience_s`.
pub async fn media_info(bus: &Bus, video: &str) -> Result<MediaInfo, JobError> {
    let body = Bytes::from(wire::encode(&ProbeRequest { v: wire::VERSION, video: video.to_owned() }));
    let give_up = Instant::now() + Duration::from_secs_f64(bus.config().worker_patience_s);
    loop {
        let (error, pause) = match ask(bus, &body).await {
            Ok(reply) => match wire::decode_any::<ProbeReply>(&reply.payload) {
                Ok(ProbeReply::Info(info)) => return Ok(info),
                Ok(ProbeReply::Refused { error }) if error.kind == ErrorKind::Busy => (error.to_string(), BUSY_PAUSE),
                Ok(ProbeReply::Refused { error }) => return Err(error.at(StageName::Decode)),
                Err(e) => return Err(JobError::new(ErrorKind::Internal, format!("probe: {e}"))),
            },
            Err(error) => (error, PAUSE),
        };
        if Instant::now() >= give_up {
            return Err(JobError::new(ErrorKind::WorkerLost, format!("no stage-decode answers a probe: {error}"))
                .at(StageName::Decode)
                .hint("look whether a stage-decode is running (`vidi status`), and at its log"));
        }
        tracing::debug!(error, "probe not answered, retrying");
        tokio::time::sleep(pause).await;
    }
}

/// Asks once, and again while there is no answer.
async fn ask(bus: &Bus, body: &Bytes) -> Result<async_nats::Message, String> {
    let mut asked = FuturesUnordered::new();
    let mut pause = PROBE_AGAIN;
    let answered = async {
        loop {
            let request = async_nats::Request::new().payload(body.clone()).timeout(Some(PROBE_WAIT));
            asked.push(bus.client().send_request(bus.subjects().probe(), request));
            let again = tokio::time::sleep(pause);
            tokio::pin!(again);
            pause *= 2;
            loop {
                tokio::select! {
                    Some(reply) = asked.next() => match reply {
                        Err(error) if asked.is_empty() => return Err(error.to_string()),
                        Err(error) => tracing::debug!(%error, "probe not answered, another is on its way"),
                        Ok(reply) => return Ok(reply),
                    },
                    () = &mut again => break,
                }
            }
        }
    };
    let late = |_| Err(format!("no answer for {PROBE_WAIT:?}"));
    tokio::time::timeout(PROBE_WAIT, answered).await.unwrap_or_else(late)
}
