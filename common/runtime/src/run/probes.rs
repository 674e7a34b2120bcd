//! Probes, answered beside the queue: each file is looked at once however many ask for it, and who comes when too many wait is
//! told so at once.
//!
//! How long a look takes is decided by the file. So an asker that says so is told every few seconds that it goes on, and asks
//! again; a look that takes long lets others begin beside it; and one that nobody has asked for lately is ended.
//!
//! Instances see different files. A request comes to any of them; the one that does not have its file finds one that has, passes
//! the request on to it and the answer back. Where nobody has it, the refusal names all who were asked.

mod waiting;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use async_nats::service::endpoint::Endpoint;
use futures::StreamExt;
use tokio::sync::Semaphore;
use tokio::task::JoinError;

use super::watchdog::Watchdog;
use super::whereabouts::{self, Whereabouts};
use crate::bus::Bus;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::{ProbeReply, ProbeRequest};
use protocol::plan::MediaInfo;
use protocol::stage::{Looked, Probe, Stop};
use protocol::wire::{self, Encoding};
use waiting::{ASKED_ONCE, Added, Asker, FILES, REQUESTS, TELL_AFTER, Waiting, respond};

/// Looks that begin at a time: one of these lasts until it is over, or takes long.
const AT_A_TIME: usize = 4;
/// Time after which a look takes long: it goes on, and the next begins.
const LONG: Duration = Duration::from_secs(2);
/// Bytes of a request at most: it has a path, and is kept until it is answered.
const REQUEST_BYTES: usize = 64 << 10;
/// Time between two looks at who waits.
const TICK: Duration = Duration::from_millis(200);
/// Time within which the instance that has a file answers one who asks again, with what it is or that the look goes on.
const PASSED_ON: Duration = TELL_AFTER.saturating_add(Duration::from_millis(1500));
/// Detail of a `busy` that names the instance which has the file, and does not answer.
pub const HOLDER: &str = "holder";

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
    /// Way to the other instances, where they may see other files.
    whereabouts: Option<Whereabouts>,
    /// Requests that are passed on.
    passing: Arc<Semaphore>,
}

/// Answers probes until the endpoints are closed: those to any instance, and those to this one alone.
pub async fn answer(
    bus: Bus,
    [any, own]: [Endpoint; 2],
    probe: Probe,
    whereabouts: Option<Whereabouts>,
    watchdog: Watchdog,
) {
    let (turns, passing) = (Arc::new(Semaphore::new(AT_A_TIME)), Arc::new(Semaphore::new(REQUESTS)));
    let probes = Probes { bus, probe, watchdog, turns, waiting: Arc::default(), whereabouts, passing };
    let mut requests = futures::stream::select(any.map(|r| (r, false)), own.map(|r| (r, true)));
    while let Some((request, addressed)) = requests.next().await {
        let encoding = Encoding::of(&request.message.payload);
        let read = read(&request.message.payload);
        let again = read.as_ref().is_ok_and(|asked| asked.again);
        let asker = Asker { request, encoding, since: Instant::now(), again, addressed };
        let asked = match read {
            Ok(asked) => asked,
            Err(why) => {
                probes.bus.note_unreadable();
                let error = JobError::new(ErrorKind::BadRequest, format!("probe: {why}"));
                asker.answer(&ProbeReply::Refused { error }).await;
                continue;
            }
        };
        let added = probes.waiting().add(&asked, probes.bus.instance(), asker);
        match added {
            Added::Begins => drop(tokio::spawn(probes.clone().look(asked.video))),
            Added::Waits => {}
            Added::Elsewhere(asker, at) => probes.pass_on(vec![*asker], &at).await,
            Added::TooMany(asker) => asker.answer(&ProbeReply::Refused { error: busy() }).await,
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
            let mut reply = self.look_once(&video).await;
            if let (Some(ProbeReply::Refused { error }), Some(whereabouts)) = (&reply, &self.whereabouts)
                && whereabouts::is_about_the_place(error.kind)
            {
                let error = error.clone();
                let own = self.waiting().take(&video, |asker| asker.addressed);
                self.tell_all(&own, reply.as_ref()).await;
                if self.waiting().is_asked(&video) {
                    reply = self.look_elsewhere(whereabouts, &video, &error).await;
                    if reply.is_none() {
                        if self.waiting().close(&video) {
                            return;
                        }
                        // Others have asked meanwhile.
                        continue;
                    }
                }
            }
            let asked = self.waiting().take(&video, |_| true);
            self.tell_all(&asked, reply.as_ref()).await;
            if self.waiting().close(&video) {
                return;
            }
        }
    }

    /// Answers requests; unanswered, they are made again to another worker.
    async fn tell_all(&self, askers: &[Asker], reply: Option<&ProbeReply>) {
        let Some(reply) = reply else { return };
        if let (ProbeReply::Info(info), Some(whereabouts)) = (reply, &self.whereabouts) {
            whereabouts.note_told(&info.content_id);
        }
        for asker in askers {
            asker.answer(reply).await;
        }
    }

    /// Passes the requests for a file that is not here on to who has it; the reply, where nobody has.
    async fn look_elsewhere(&self, whereabouts: &Whereabouts, video: &str, own: &JobError) -> Option<ProbeReply> {
        let (mut ticks, state) = (tokio::time::interval(TICK), State::default());
        let find = whereabouts.find(video, None, &[]);
        tokio::pin!(find);
        let found = loop {
            tokio::select! {
                found = &mut find => break found,
                _ = ticks.tick() => self.tell(video, &state).await,
            }
        };
        let error = match found.holder(None, &[]) {
            // It is here: what went wrong would go wrong elsewhere.
            Some(to) if to == self.bus.instance() => own.clone(),
            Some(to) => {
                let askers = self.waiting().take(video, |_| true);
                self.pass_on(askers, to).await;
                return None;
            }
            None if found.is_heard() => found.refusal(video, None, own),
            None => busy(),
        };
        Some(ProbeReply::Refused { error })
    }

    /// Passes requests on to another instance, and its answers back.
    async fn pass_on(&self, askers: Vec<Asker>, to: &str) {
        for asker in askers {
            let Ok(share) = self.passing.clone().try_acquire_owned() else {
                asker.answer(&ProbeReply::Refused { error: busy() }).await;
                continue;
            };
            let (bus, to) = (self.bus.clone(), to.to_owned());
            tokio::spawn(async move {
                let wait = if asker.again { PASSED_ON } else { ASKED_ONCE };
                let body = asker.request.message.payload.clone();
                let request = async_nats::Request::new().payload(body).timeout(Some(wait));
                match bus.client().send_request(bus.subjects().probe_of(&to), request).await {
                    Ok(reply) => respond(&asker.request, reply.payload).await,
                    Err(error) => {
                        tracing::debug!(%error, to, "a probe that was passed on is not answered");
                        asker.answer(&ProbeReply::Refused { error: away(&to) }).await;
                    }
                }
                drop(share);
            });
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

fn busy() -> JobError {
    let text = format!("{FILES} files or {REQUESTS} requests wait for a probe here already, or the broker is away");
    JobError::new(ErrorKind::Busy, text).at(StageName::Decode).hint("ask again later, or start another stage-decode")
}

/// The instance that looks at a file, or has it, does not answer.
fn away(instance: &str) -> JobError {
    let text = format!("{instance}, which has the file, does not answer");
    JobError::new(ErrorKind::Busy, text).at(StageName::Decode).hint("ask again later").detail(HOLDER, instance)
}
