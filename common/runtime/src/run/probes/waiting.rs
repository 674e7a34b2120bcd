//! Requests for probes that wait for an answer, by the file that they ask about.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_nats::service::Request;
use bytes::Bytes;

use protocol::message::{ProbeReply, ProbeRequest};
use protocol::wire::{self, Encoding};

/// Files that are looked at or wait for their turn at most: more are `busy`.
pub const FILES: usize = 64;
/// Requests that wait for an answer at most, for whichever file: more are `busy`.
pub const REQUESTS: usize = 512;
/// Time after which one who asks again is told that the look goes on.
pub const TELL_AFTER: Duration = Duration::from_secs(2);
/// Time that one who does not ask again waits for an answer.
pub const ASKED_ONCE: Duration = Duration::from_secs(30);
/// Time without a request after which a look is ended. For a job that goes back to its queue meanwhile, its last owner asks on.
const FORGOTTEN: Duration = Duration::from_secs(20);

/// Request that waits.
pub struct Asker {
    pub request: Request,
    pub encoding: Encoding,
    pub since: Instant,
    pub again: bool,
    /// Whether it was made to this instance, and no other one is to be asked.
    pub addressed: bool,
}

impl Asker {
    /// Whether it is to be told by now that the look goes on.
    pub fn is_due(&self) -> bool {
        self.again && self.since.elapsed() >= TELL_AFTER
    }

    /// Whether it waits no longer for an answer.
    pub fn is_gone(&self) -> bool {
        !self.again && self.since.elapsed() >= ASKED_ONCE
    }

    /// Answers it.
    pub async fn answer(&self, reply: &ProbeReply) {
        respond(&self.request, Bytes::from(wire::encode_as(self.encoding, reply))).await;
    }
}

/// Answers a request with a body.
pub async fn respond(request: &Request, body: Bytes) {
    if let Err(error) = request.respond(Ok(body)).await {
        tracing::debug!(%error, "probe reply failed");
    }
}

/// Requests that wait for one file.
struct Asked {
    askers: Vec<Asker>,
    last: Instant,
}

/// What becomes of a request that comes.
pub enum Added {
    /// It waits, and its file is to be looked at now.
    Begins,
    /// It waits for a look that goes on.
    Waits,
    /// Another instance looks at the file.
    Elsewhere(Box<Asker>, String),
    /// Too many wait.
    TooMany(Box<Asker>),
}

/// Requests that wait, by the file that they ask about.
#[derive(Default)]
pub struct Waiting {
    files: HashMap<String, Asked>,
    requests: usize,
}

impl Waiting {
    /// Adds a request that came to the instance `own`.
    pub fn add(&mut self, asked: &ProbeRequest, own: &str, asker: Asker) -> Added {
        let known = self.files.contains_key(&asked.video);
        match &asked.at {
            Some(at) if !known && !asker.addressed && at != own => {
                return Added::Elsewhere(Box::new(asker), at.clone());
            }
            _ if self.requests >= REQUESTS || (!known && self.files.len() >= FILES) => {
                return Added::TooMany(Box::new(asker));
            }
            _ => {}
        }
        self.requests += 1;
        let now = Instant::now();
        let file = self.files.entry(asked.video.clone()).or_insert(Asked { askers: Vec::new(), last: now });
        file.askers.push(asker);
        file.last = now;
        if known { Added::Waits } else { Added::Begins }
    }

    /// Takes the requests for a file that `wanted` picks.
    pub fn take(&mut self, video: &str, wanted: impl Fn(&Asker) -> bool) -> Vec<Asker> {
        let Some(file) = self.files.get_mut(video) else { return Vec::new() };
        let (taken, left): (Vec<Asker>, Vec<Asker>) = std::mem::take(&mut file.askers).into_iter().partition(wanted);
        file.askers = left;
        self.requests -= taken.len();
        taken
    }

    /// Whether somebody waits for a file now.
    pub fn is_asked(&self, video: &str) -> bool {
        self.files.get(video).is_some_and(|file| !file.askers.is_empty())
    }

    /// Whether nobody has asked for a file lately, and nobody waits.
    pub fn is_forgotten(&self, video: &str) -> bool {
        self.files.get(video).is_none_or(|file| file.askers.is_empty() && file.last.elapsed() >= FORGOTTEN)
    }

    /// Takes a file off that is looked at no more; false if somebody waits for it still.
    pub fn close(&mut self, video: &str) -> bool {
        let is_over = self.files.get(video).is_none_or(|file| file.askers.is_empty());
        if is_over {
            self.files.remove(video);
        }
        is_over
    }
}
