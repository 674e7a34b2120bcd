//! Headers of messages about a job: which attempt at its work a message belongs to, which owner wrote an event, and which span it
//! comes of, where there are [traces].

use async_nats::HeaderMap;

use crate::traces;
use protocol::message::JobId;

/// Header with a job's id.
const JOB: &str = "Vidi-Job";
/// Header with the number of a later [`Attempt`].
const ATTEMPT: &str = "Vidi-Attempt";

/// Header with the fencing token of the owner that wrote an event.
const FENCING_TOKEN: &str = "Vidi-Claim";

/// Headers of every message about a job (PROTOCOL.md).
pub fn headers(job: &JobId) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(JOB, job.as_str());
    traces::write(&mut headers);
    headers
}

/// Job that a message is about by its headers.
pub fn job_of(headers: Option<&HeaderMap>) -> Option<JobId> {
    JobId::new(headers?.get(JOB)?.as_str()).ok()
}

/// Attempt at a job's work that a message belongs to: what is asked for again, and all that is made of it, has ids of its
/// own. A broker may have lost the first attempt's messages and still know their ids, and would drop theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempt(
    /// Number that nothing else of the job has; 0 is the first attempt.
    pub u64,
);

impl Attempt {
    /// Attempt of a message that came with these headers.
    pub fn of(headers: Option<&HeaderMap>) -> Self {
        let number = headers.and_then(|h| h.get(ATTEMPT)).and_then(|n| n.as_str().parse().ok());
        Attempt(number.unwrap_or(0))
    }

    /// Headers of every message of the attempt.
    pub fn headers(self, job: &JobId) -> HeaderMap {
        let mut headers = headers(job);
        if self.0 > 0 {
            headers.insert(ATTEMPT, self.0.to_string().as_str());
        }
        headers
    }

    /// Id, `<job>/<kind>/<offset>`, of a message of the attempt: the kind names a later one.
    pub fn id(self, first: String) -> String {
        match first.rsplit_once('/') {
            Some((kind, offset)) if self.0 > 0 => format!("{kind}-again-{}/{offset}", self.0),
            _ => first,
        }
    }
}

/// Number of one owner of a job; an owner that the job was delivered to later has a larger one. 0: nobody owns it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FencingToken(pub u64);

impl FencingToken {
    /// Token of the owner that wrote a message with these headers.
    pub fn of(headers: &HeaderMap) -> Self {
        FencingToken(headers.get(FENCING_TOKEN).and_then(|t| t.as_str().parse().ok()).unwrap_or(0))
    }

    /// Headers of an event that the owner writes.
    pub fn headers(self, job: &JobId) -> HeaderMap {
        let mut headers = headers(job);
        headers.insert(FENCING_TOKEN, self.0.to_string().as_str());
        headers
    }
}
