//! Probes, answered beside the queue: a few files are looked at at a time, each once however many ask for it, and who comes
//! when too many wait is told so at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use async_nats::service::Request;
use async_nats::service::endpoint::Endpoint;
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::Semaphore;

use super::watchdog::Watchdog;
use crate::bus::Bus;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::{ProbeReply, ProbeRequest};
use protocol::stage::Probe;
use protocol::wire::{self, Encoding};

/// Files that are looked at at a time.
const AT_A_TIME: usize = 4;
/// Files that are looked at or wait for their turn at most: more are `busy`.
const FILES: usize = 64;
/// Requests that wait for an answer at most, for whichever file: more are `busy`.
const REQUESTS: usize = 512;
/// Bytes of a request at most: it has a path, and is kept until it is answered.
const REQUEST_BYTES: usize = 64 << 10;
/// Time that one probe may take, in steps of the watchdog: a long file's index is read to its end.
const STEPS: u32 = 10;

/// Requests that wait, by the file that they ask about.
#[derive(Default)]
struct Waiting {
    files: HashMap<String, Vec<(Request, Encoding)>>,
    requests: usize,
}

impl Waiting {
    /// Adds a request; true if its file is to be looked at now.
    ///
    /// # Errors
    /// The request, if too many wait.
    fn add(&mut self, video: &str, request: Request, encoding: Encoding) -> Result<bool, Box<Request>> {
        let known = self.files.contains_key(video);
        if self.requests >= REQUESTS || (!known && self.files.len() >= FILES) {
            return Err(Box::new(request));
        }
        self.requests += 1;
        self.files.entry(video.to_owned()).or_default().push((request, encoding));
        Ok(!known)
    }

    /// Takes the requests for a file, which is looked at no more.
    fn take(&mut self, video: &str) -> Vec<(Request, Encoding)> {
        let asked = self.files.remove(video).unwrap_or_default();
        self.requests -= asked.len();
        asked
    }
}

/// Answerer of probes of one instance.
#[derive(Clone)]
struct Probes {
    bus: Bus,
    probe: Probe,
    watchdog: Watchdog,
    turns: Arc<Semaphore>,
    waiting: Arc<Mutex<Waiting>>,
}

/// Answers probes until the endpoint is closed.
pub async fn answer(bus: Bus, mut endpoint: Endpoint, probe: Probe, watchdog: Watchdog) {
    let turns = Arc::new(Semaphore::new(AT_A_TIME));
    let probes = Probes { bus, probe, watchdog, turns, waiting: Arc::default() };
    while let Some(request) = endpoint.next().await {
        let encoding = Encoding::of(&request.message.payload);
        let video = match read(&request.message.payload) {
            Ok(video) => video,
            Err(why) => {
                probes.bus.note_unreadable();
                let error = JobError::new(ErrorKind::BadRequest, format!("probe: {why}"));
                respond(&request, encoding, &ProbeReply::Refused { error }).await;
                continue;
            }
        };
        let added = probes.waiting().add(&video, request, encoding);
        match added {
            Ok(true) => drop(tokio::spawn(probes.clone().look(video))),
            Ok(false) => {}
            Err(request) => respond(&request, encoding, &ProbeReply::Refused { error: busy() }).await,
        }
    }
}

/// File that a request asks about.
fn read(body: &[u8]) -> Result<String, String> {
    if body.len() > REQUEST_BYTES {
        return Err(format!("the request has {} bytes, more than {REQUEST_BYTES}", body.len()));
    }
    wire::decode_any::<ProbeRequest>(body).map(|asked| asked.video).map_err(|error| error.to_string())
}

impl Probes {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no holder panics. This is a bug.")
    }

    /// Looks at a file once it is its turn, and answers all who asked for it until then.
    async fn look(self, video: String) {
        let turn = self.turns.acquire().await;
        let (probe, watchdog, path) = (self.probe.clone(), self.watchdog.clone(), video.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let _pulse = watchdog.watch(format!("a probe of {path:?}")).times(STEPS);
            probe(&path)
        });
        let reply = match looked.await {
            Ok(Ok(info)) => Some(ProbeReply::Info(info)),
            Ok(Err(error)) => Some(ProbeReply::Refused { error }),
            Err(panicked) => {
                tracing::error!(%panicked, "probe panicked. This is a bug.");
                None
            }
        };
        drop(turn);
        let asked = self.waiting().take(&video);
        // Unanswered, it is asked again of another worker.
        let Some(reply) = reply else { return };
        for (request, encoding) in asked {
            respond(&request, encoding, &reply).await;
        }
    }
}

fn busy() -> JobError {
    let text = format!("{FILES} files or {REQUESTS} requests wait for a probe here already");
    JobError::new(ErrorKind::Busy, text).at(StageName::Decode).hint("ask again later, or start another stage-decode")
}

async fn respond(request: &Request, encoding: Encoding, reply: &ProbeReply) {
    if let Err(error) = request.respond(Ok(Bytes::from(wire::encode_as(encoding, reply)))).await {
        tracing::debug!(%error, "probe reply failed");
    }
}
