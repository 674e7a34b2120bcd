//! Which instances of stage-decode have a file: each sees what lies below its own media roots, on its own host. All are asked at
//! once, and each answers for itself: it opens the file, and reads three samples of it. `found`: what they said.

mod found;

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::Semaphore;

use super::peers;
use crate::bus::{Bus, BusError, BusErrorKind};
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::{WhereReply, WhereRequest};
use protocol::stage::Files;
use protocol::wire;

use found::ANSWERS;
pub use found::Found;

/// Files that are opened at a time for others.
const AT_A_TIME: usize = 8;
/// Contents that an instance remembers to have told of, the last ones.
const TOLD: usize = 4096;

/// Whether a refusal is about the place where stage-decode runs: another instance may have the file.
pub fn is_about_the_place(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::MediaNotFound | ErrorKind::ForbiddenPath)
}

/// Contents that were told of, the oldest first.
#[derive(Default)]
struct Told {
    order: VecDeque<String>,
    all: HashSet<String>,
}

impl Told {
    fn note(&mut self, content_id: &str) {
        if content_id.is_empty() || !self.all.insert(content_id.to_owned()) {
            return;
        }
        self.order.push_back(content_id.to_owned());
        if self.order.len() > TOLD
            && let Some(oldest) = self.order.pop_front()
        {
            self.all.remove(&oldest);
        }
    }
}

/// One instance's way to find out who has a file, and to say whether it has one.
#[derive(Clone)]
pub struct Whereabouts {
    bus: Bus,
    files: Files,
    host: Arc<str>,
    told: Arc<Mutex<Told>>,
    /// Instances that were there when they were asked last: one of them that says nothing is waited for.
    known: Arc<Mutex<BTreeSet<String>>>,
}

impl Whereabouts {
    /// Begins to answer the others.
    ///
    /// # Errors
    /// When the broker refuses the subscription.
    pub async fn start(bus: &Bus, files: Files) -> Result<Self, BusError> {
        let refused = |e: &dyn std::fmt::Display| BusError::new(BusErrorKind::JetStream, format!("whereabouts: {e}"));
        let asked = bus.client().subscribe(bus.subjects().whereabouts()).await.map_err(|e| refused(&e))?;
        let host = host().into();
        let whereabouts = Whereabouts { bus: bus.clone(), files, host, told: Arc::default(), known: Arc::default() };
        tokio::spawn(whereabouts.clone().answer(asked));
        Ok(whereabouts)
    }

    /// Notes that this instance has told of a content: plans are made from that.
    pub fn note_told(&self, content_id: &str) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).note(content_id);
    }

    async fn answer(self, mut asked: Subscriber) {
        let turns = Arc::new(Semaphore::new(AT_A_TIME));
        while let Some(Message { payload, reply, .. }) = asked.next().await {
            let Some(to) = reply else { continue };
            let request = match wire::decode_any::<WhereRequest>(&payload) {
                Ok(request) => request,
                Err(error) => {
                    tracing::debug!(%error, "question for a file unreadable");
                    self.bus.note_unreadable();
                    continue;
                }
            };
            // Closed never.
            let Ok(turn) = turns.clone().acquire_owned().await else { return };
            let here = self.clone();
            tokio::spawn(async move {
                let reply = here.look(request).await;
                drop(turn);
                here.bus.tell(to.to_string(), wire::encode(&reply)).await;
            });
        }
    }

    /// This instance's own answer.
    async fn look(&self, request: WhereRequest) -> WhereReply {
        let (content, video) = (self.files.content.clone(), request.video);
        let looked = tokio::task::spawn_blocking(move || content(&video)).await;
        let looked = looked.unwrap_or_else(|panicked| {
            tracing::error!(%panicked, "a look for a file panicked. This is a bug.");
            Err(JobError::new(ErrorKind::Internal, "the look for the file panicked. This is a bug."))
        });
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let told = request.content_id.is_some_and(|wanted| told.all.contains(&wanted));
        let (content_id, error) = looked.map_or_else(|error| (None, Some(error)), |id| (Some(id), None));
        WhereReply {
            v: wire::VERSION,
            instance: self.bus.instance().to_owned(),
            host: self.host.to_string(),
            media_roots: self.files.roots.clone(),
            content_id,
            told,
            error,
        }
    }

    /// Whether this instance has a file.
    pub async fn has(&self, video: &str, content_id: Option<&str>) -> bool {
        self.look(question(video, content_id)).await.has(content_id)
    }

    /// Asks all instances for a file, until one has it that is not among `but`, or all that are there have answered.
    pub async fn find(&self, video: &str, content_id: Option<&str>, but: &[String]) -> Found {
        let request = question(video, content_id);
        let mut found = Found { own: self.bus.instance().to_owned(), answers: Vec::new(), silent: Vec::new() };
        if let Err(error) = tokio::time::timeout(ANSWERS, self.gather(&request, but, &mut found)).await {
            tracing::debug!(%error, silent = ?found.silent, "not every stage-decode says whether it has a file");
        }
        let Found { answers, silent, .. } = &mut found;
        silent.retain(|name| answers.iter().all(|answer| answer.instance != *name));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(answers.iter().map(|answer| answer.instance.clone()));
        known.retain(|name| !silent.contains(name));
        drop(known);
        found
    }

    async fn gather(&self, request: &WhereRequest, but: &[String], found: &mut Found) {
        let client = self.bus.client();
        let inbox = client.new_inbox();
        let Ok(mut replies) = client.subscribe(inbox.clone()).await else { return };
        let body = Bytes::from(wire::encode(request));
        if client.publish_with_reply(self.bus.subjects().whereabouts(), inbox, body).await.is_err() {
            return;
        }
        let roll = peers::instances(&self.bus, StageName::Decode);
        tokio::pin!(roll);
        let mut called = false;
        loop {
            let all_said = |name: &String| found.answers.iter().any(|answer| answer.instance == *name);
            if called && found.silent.iter().all(all_said) {
                return;
            }
            tokio::select! {
                names = &mut roll, if !called => {
                    called = true;
                    let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                    let all: BTreeSet<String> = names.unwrap_or_default().into_iter().chain(known.iter().cloned()).collect();
                    found.silent = all.into_iter().collect();
                }
                reply = replies.next() => {
                    let Some(Message { payload, .. }) = reply else { return };
                    let Ok(reply) = wire::decode_any::<WhereReply>(&payload) else { continue };
                    let is_it = reply.has(request.content_id.as_deref()) && !but.contains(&reply.instance);
                    found.answers.push(reply);
                    if is_it {
                        return;
                    }
                }
            }
        }
    }
}

fn question(video: &str, content_id: Option<&str>) -> WhereRequest {
    WhereRequest { v: wire::VERSION, video: video.to_owned(), content_id: content_id.map(str::to_owned) }
}

/// Name of this host.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "an unnamed host".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_that_were_told_of_long_ago_are_forgotten() {
        let mut told = Told::default();
        for n in 0..TOLD + 10 {
            told.note(&format!("sampled:{n}"));
            told.note("");
        }
        assert_eq!((told.all.len(), told.order.len()), (TOLD, TOLD));
        assert!(!told.all.contains("sampled:9") && told.all.contains("sampled:10"));
    }
}
