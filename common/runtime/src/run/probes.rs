//! Probes, answered beside the queue: each file is looked at once however many ask for it, and who comes when too many wait is
//! told so at once.
//!
//! How long a look takes is decided by the file. So an asker that says so is told every few seconds that it goes on, and asks
//! again; a look that takes long lets others begin beside it; and one that nobody has asked for lately is ended.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_nats::service::Request;
use async_nats::service::endpoint::Endpoint;
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::Semaphore;
use tokio::task::JoinError;

use super::watchdog::Watchdog;
use crate::bus::Bus;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::{ProbeReply, ProbeRequest};
use protocol::plan::MediaInfo;
use protocol::stage::{Looked, Probe, Stop};
use protocol::wire::{self, Encoding};

/// Looks that begin at a time: one of these lasts until it is over, or takes long.
const AT_A_TIME: usize = 4;
/// Time after which a look takes long: it goes on, and the next begins.
const LONG: Duration = Duration::from_secs(2);
/// Files that are looked at or wait for their turn at most: more are `busy`.
const FILES: usize = 64;
/// Requests that wait for an answer at most, for whichever file: more are `busy`.
const REQUESTS: usize = 512;
/// Bytes of a request at most: it has a path, and is kept until it is answered.
const REQUEST_BYTES: usize = 64 << 10;
/// Time between two looks at who waits.
const TICK: Duration = Duration::from_millis(200);
/// Time after which one who asks again is told that the look goes on.
const TELL_AFTER: Duration = Duration::from_secs(2);
/// Time that one who does not ask again waits for an answer.
const ASKED_ONCE: Duration = Duration::from_secs(30);
/// Time without a request after which a look is ended. For a job that goes back to its queue meanwhile, its last owner asks on.
const FORGOTTEN: Duration = Duration::from_secs(20);

/// Request that waits.
struct Asker {
    request: Request,
    encoding: Encoding,
    since: Instant,
    again: bool,
}

impl Asker {
    /// Whether it is to be told by now that the look goes on.
    fn is_due(&self) -> bool {
        self.again && self.since.elapsed() >= TELL_AFTER
    }

    /// Whether it waits no longer for an answer.
    fn is_gone(&self) -> bool {
        !self.again && self.since.elapsed() >= ASKED_ONCE
    }
}

/// Requests that wait for one file.
struct Asked {
    askers: Vec<Asker>,
    last: Instant,
}

/// Requests that wait, by the file that they ask about.
#[derive(Default)]
struct Waiting {
    files: HashMap<String, Asked>,
    requests: usize,
}

impl Waiting {
    /// Adds a request; true if its file is to be looked at now.
    ///
    /// # Errors
    /// The request, if too many wait, or another instance looks at the file.
    fn add(&mut self, asked: &ProbeRequest, own: &str, asker: Asker) -> Result<bool, Box<Asker>> {
        let known = self.files.contains_key(&asked.video);
        let is_elsewhere = !known && asked.at.as_deref().is_some_and(|at| at != own);
        if self.requests >= REQUESTS || (!known && self.files.len() >= FILES) || is_elsewhere {
            return Err(Box::new(asker));
        }
        self.requests += 1;
        let now = Instant::now();
        let file = self.files.entry(asked.video.clone()).or_insert(Asked { askers: Vec::new(), last: now });
        file.askers.push(asker);
        file.last = now;
        Ok(!known)
    }

    /// Takes the requests for a file that `wanted` picks.
    fn take(&mut self, video: &str, wanted: impl Fn(&Asker) -> bool) -> Vec<Asker> {
        let Some(file) = self.files.get_mut(video) else { return Vec::new() };
        let (taken, left): (Vec<Asker>, Vec<Asker>) = std::mem::take(&mut file.askers).into_iter().partition(wanted);
        file.askers = left;
        self.requests -= taken.len();
        taken
    }

    /// Whether nobody has asked for a file lately, and nobody waits.
    fn is_forgotten(&self, video: &str) -> bool {
        self.files.get(video).is_none_or(|file| file.askers.is_empty() && file.last.elapsed() >= FORGOTTEN)
    }

    /// Takes a file off that is looked at no more; false if somebody waits for it still.
    fn close(&mut self, video: &str) -> bool {
        let is_over = self.files.get(video).is_none_or(|file| file.askers.is_empty());
        if is_over {
            self.files.remove(video);
        }
        is_over
    }
}

/// How far a look is, and whether it is to end.
#[derive(Default)]
struct State {
    read_bytes: AtomicU64,
    size_bytes: AtomicU64,
    ended: AtomicBool,
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
        let asked = match read(&request.message.payload) {
            Ok(asked) => asked,
            Err(why) => {
                probes.bus.note_unreadable();
                let error = JobError::new(ErrorKind::BadRequest, format!("probe: {why}"));
                respond(&request, encoding, &ProbeReply::Refused { error }).await;
                continue;
            }
        };
        let asker = Asker { request, encoding, since: Instant::now(), again: asked.again };
        let added = probes.waiting().add(&asked, probes.bus.instance(), asker);
        match added {
            Ok(true) => drop(tokio::spawn(probes.clone().look(asked.video))),
            Ok(false) => {}
            Err(asker) => asker.answer(&ProbeReply::Refused { error: busy() }).await,
        }
    }
}

/// What a request asks.
fn read(body: &[u8]) -> Result<ProbeRequest, String> {
    if body.len() > REQUEST_BYTES {
        return Err(format!("the request has {} bytes, more than {REQUEST_BYTES}", body.len()));
    }
    wire::decode_any::<ProbeRequest>(body).map_err(|error| error.to_string())
}

impl Probes {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no holder panics. This is a bug.")
    }

    /// Looks at a file until nobody waits for it, once in most cases.
    async fn look(self, video: String) {
        loop {
            let reply = self.look_once(&video).await;
            let asked = self.waiting().take(&video, |_| true);
            for asker in asked {
                match &reply {
                    Some(reply) => asker.answer(reply).await,
                    // Unanswered, it is asked again of another worker.
                    None => drop(asker),
                }
            }
            if self.waiting().close(&video) {
                return;
            }
        }
    }

    /// Looks at a file once it is its turn; nothing comes of it if that was ended or went wrong.
    async fn look_once(&self, video: &str) -> Option<ProbeReply> {
        let state = Arc::new(State::default());
        let mut ticks = tokio::time::interval(TICK);
        let waits = self.turns.clone().acquire_owned();
        tokio::pin!(waits);
        let turn = loop {
            tokio::select! {
                taken = &mut waits => break taken.ok()?,
                _ = ticks.tick() => self.tell(video, &state).await,
            }
            if self.waiting().is_forgotten(video) {
                return None;
            }
        };
        let (mut turn, began) = (Some(turn), Instant::now());
        let mut looked = self.start(video, &state);
        loop {
            tokio::select! {
                outcome = &mut looked => return reply(outcome),
                _ = ticks.tick() => self.tell(video, &state).await,
            }
            if began.elapsed() >= LONG {
                drop(turn.take());
            }
            if self.waiting().is_forgotten(video) {
                state.ended.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Starts a look in a thread of its own.
    fn start(&self, video: &str, state: &Arc<State>) -> tokio::task::JoinHandle<Result<MediaInfo, Stop>> {
        let (probe, watchdog, path, state) =
            (self.probe.clone(), self.watchdog.clone(), video.to_owned(), state.clone());
        tokio::task::spawn_blocking(move || {
            let pulse = watchdog.watch(format!("a probe of {path:?}"));
            probe(&path, &mut |Looked { read_bytes, size_bytes }| {
                pulse.step();
                state.read_bytes.store(read_bytes, Ordering::Relaxed);
                state.size_bytes.store(size_bytes, Ordering::Relaxed);
                !state.ended.load(Ordering::Relaxed)
            })
        })
    }

    /// Tells those who ask again that a look goes on, and forgets those who wait no longer.
    async fn tell(&self, video: &str, state: &State) {
        let due = {
            let mut waiting = self.waiting();
            drop(waiting.take(video, Asker::is_gone));
            waiting.take(video, Asker::is_due)
        };
        let reply = ProbeReply::Working {
            working: self.bus.instance().to_owned(),
            read_bytes: state.read_bytes.load(Ordering::Relaxed),
            size_bytes: state.size_bytes.load(Ordering::Relaxed),
        };
        for asker in due {
            asker.answer(&reply).await;
        }
    }
}

/// Reply to what came of a look, if anything did.
fn reply(outcome: Result<Result<MediaInfo, Stop>, JoinError>) -> Option<ProbeReply> {
    match outcome {
        Ok(Ok(info)) => Some(ProbeReply::Info(info)),
        Ok(Err(Stop::Failed(error))) => Some(ProbeReply::Refused { error }),
        Ok(Err(Stop::Cancelled | Stop::Unavailable(_))) => None,
        Err(panicked) => {
            tracing::error!(%panicked, "probe panicked. This is a bug.");
            None
        }
    }
}

impl Asker {
    async fn answer(&self, reply: &ProbeReply) {
        respond(&self.request, self.encoding, reply).await;
    }
}

fn busy() -> JobError {
    let text =
        format!("{FILES} files or {REQUESTS} requests wait for a probe here already, or another one looks at the file");
    JobError::new(ErrorKind::Busy, text).at(StageName::Decode).hint("ask again later, or start another stage-decode")
}

async fn respond(request: &Request, encoding: Encoding, reply: &ProbeReply) {
    if let Err(error) = request.respond(Ok(Bytes::from(wire::encode_as(encoding, reply)))).await {
        tracing::debug!(%error, "probe reply failed");
    }
}
