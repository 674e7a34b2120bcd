//! What a file is, asked of any stage-decode worker until one answers.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::renewal;
use crate::bus::Bus;
use crate::run::job_end::EndSignal;
use crate::run::probes::HOLDER;
use crate::run::whereabouts::is_about_the_place;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::{JobId, ProbeReply, ProbeRequest};
use protocol::plan::MediaInfo;
use protocol::stage::Stop;
use protocol::wire;

/// Time that one request is waited for at most: who looks into a file for longer says that it does.
const PROBE_WAIT: Duration = Duration::from_secs(30);
/// Time after which an unanswered probe is asked for once more, and again after twice as long: whoever had it may have been
/// killed, or the broker with it. The earlier ones may be answered all the same.
const PROBE_AGAIN: Duration = Duration::from_secs(4);
/// Pause before a probe that nobody could take is asked for again.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause before a worker, or another one, is asked again that had too much to do.
const BUSY_PAUSE: Duration = Duration::from_millis(500);
/// Time after which a worker that has said that it looks into the file, and says nothing more, counts as gone.
const GONE_AFTER: Duration = Duration::from_secs(20);
/// Time after which a job whose file is still looked into lets those behind it go first.
const GIVE_WAY_AFTER: Duration = Duration::from_secs(10);

/// Outcome of a probe for a job.
pub enum Probed {
    /// What the file is.
    Info(Box<MediaInfo>),
    /// How far the look into it is, which takes long while others wait, and the instance that looks.
    GoesOn { how_far: String, instance: String },
}

/// Asks any stage-decode worker for a probe, until one answers or `end` says that nobody waits for the job. Where that takes
/// long and others wait, it goes on without the job, for which it is asked on until that has ended.
///
/// # Errors
/// The worker's refusal; `worker_lost` when none answers for as long as `worker_patience_s`; [`Stop::Cancelled`].
pub async fn probe(
    bus: &Bus,
    job: &JobId,
    end: &EndSignal,
    video: &str,
    others_wait: &(dyn Fn() -> bool + Sync),
) -> Result<Probed, Stop> {
    let began = Instant::now();
    let gives_way = || began.elapsed() >= GIVE_WAY_AFTER && others_wait();
    let probed = tokio::select! {
        biased;
        () = end.wait() => Err(Stop::Cancelled),
        probed = ask_until(bus, video, &gives_way) => probed.map_err(Stop::Failed),
    }?;
    if let Probed::GoesOn { instance, .. } = &probed {
        let (by, of) = (bus.clone(), video.to_owned());
        let asks = async move {
            let known = ask_until(&by, &of, &|| false).await.is_ok();
            tracing::debug!(file = of, known, "the look into the file of a job that waits is over");
        };
        renewal::begin(bus, job, video, instance.clone(), asks);
    }
    Ok(probed)
}

/// Asks any stage-decode worker for the facts of a file, until one answers.
///
/// # Errors
/// The worker's refusal; `worker_lost` when none answers for as long as `worker_patience_s`.
pub async fn media_info(bus: &Bus, video: &str) -> Result<MediaInfo, JobError> {
    loop {
        if let Probed::Info(info) = ask_until(bus, video, &|| false).await? {
            return Ok(*info);
        }
    }
}

/// Asks any worker until one answers, or while one looks into the file `gives_way` says that it is not waited for.
async fn ask_until(bus: &Bus, video: &str, gives_way: &(dyn Fn() -> bool + Sync)) -> Result<Probed, JobError> {
    let patience = Duration::from_secs_f64(bus.config().worker_patience_s);
    let mut request = ProbeRequest { again: true, at: renewal::instance(video), ..ProbeRequest::new(video) };
    let mut heard = Instant::now();
    // Whether an instance was seen to have the file: one that has gone since may come back.
    let mut is_known = false;
    loop {
        if heard.elapsed() >= GONE_AFTER {
            request.at = None;
        }
        let (error, pause) = match ask(bus, &Bytes::from(wire::encode(&request))).await {
            Ok(reply) => match wire::decode_any::<ProbeReply>(&reply.payload) {
                Ok(ProbeReply::Info(info)) => return Ok(Probed::Info(Box::new(info))),
                Ok(ProbeReply::Working { working, read_bytes, size_bytes }) => {
                    renewal::note(video, &working);
                    // Its size is known once it is open.
                    is_known |= size_bytes > 0;
                    if gives_way() {
                        let how_far = format!("{read_bytes} of {size_bytes} bytes of {video} are read");
                        return Ok(Probed::GoesOn { how_far, instance: working });
                    }
                    request.at = Some(working);
                    heard = Instant::now();
                    continue;
                }
                Ok(ProbeReply::Refused { error }) if error.kind == ErrorKind::Busy => {
                    is_known |= error.details.contains_key(HOLDER);
                    (error.to_string(), BUSY_PAUSE)
                }
                Ok(ProbeReply::Refused { error })
                    if is_known && is_about_the_place(error.kind) && heard.elapsed() < patience =>
                {
                    request.at = None;
                    (error.to_string(), BUSY_PAUSE)
                }
                Ok(ProbeReply::Refused { error }) => return Err(error.at(StageName::Decode)),
                Err(e) => return Err(JobError::new(ErrorKind::Internal, format!("probe: {e}"))),
            },
            Err(error) => (error, PAUSE),
        };
        if heard.elapsed() >= patience {
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
