//! Jobs that an owner has: each leaves by one way out, whatever happens.

use std::collections::BTreeMap;

use protocol::event::JobResult;
use protocol::message::JobRequest;
use protocol::stage::{Beside, JobPort, KeptVideo, OwnedJob, Stop};

/// Jobs that an owner has, by the number that each has here, and the way to more of them.
pub trait Jobs {
    /// Number of a job that seems to be about the same video as `about`, if one waits: [`Beside::next`].
    fn next(&mut self, about: &JobRequest) -> Option<u64>;

    /// Request of a job, and its port.
    ///
    /// # Panics
    /// For a job that has left.
    fn job(&mut self, number: u64) -> (&JobRequest, &mut dyn JobPort);

    /// Gives a job back: [`Beside::decline`].
    fn decline(&mut self, number: u64);

    /// Hands over what came of a job: [`Beside::end`].
    fn end(&mut self, number: u64, outcome: Result<JobResult, Stop>);

    /// Says which videos are kept: [`Beside::keeps`].
    fn keeps(&mut self, videos: Vec<KeptVideo>);
}

/// Jobs that came by way of a [`Beside`].
pub struct Owned<'a, P> {
    beside: &'a mut dyn Beside<P>,
    jobs: BTreeMap<u64, OwnedJob<P>>,
    came: u64,
}

impl<'a, P: JobPort> Owned<'a, P> {
    /// Number of the job that an owner begins with.
    pub const FIRST: u64 = 0;

    /// One job, and those that may come beside it.
    pub fn new(first: OwnedJob<P>, beside: &'a mut dyn Beside<P>) -> Self {
        Owned { beside, jobs: BTreeMap::from([(Self::FIRST, first)]), came: Self::FIRST }
    }

    fn leave(&mut self, number: u64) -> OwnedJob<P> {
        self.jobs.remove(&number).expect("a job leaves once. This is a bug.")
    }
}

impl<P: JobPort> Jobs for Owned<'_, P> {
    fn next(&mut self, about: &JobRequest) -> Option<u64> {
        let job = self.beside.next(about)?;
        self.came += 1;
        self.jobs.insert(self.came, job);
        Some(self.came)
    }

    fn job(&mut self, number: u64) -> (&JobRequest, &mut dyn JobPort) {
        let OwnedJob { request, port } = self.jobs.get_mut(&number).expect("the job has not left. This is a bug.");
        (request, port)
    }

    fn decline(&mut self, number: u64) {
        let job = self.leave(number);
        self.beside.decline(job);
    }

    fn end(&mut self, number: u64, outcome: Result<JobResult, Stop>) {
        let job = self.leave(number);
        self.beside.end(job, outcome);
    }

    fn keeps(&mut self, videos: Vec<KeptVideo>) {
        self.beside.keeps(videos);
    }
}

impl<P> Drop for Owned<'_, P> {
    /// Ends those that a panic has left: they are tried again, as the one is that panicked.
    fn drop(&mut self) {
        for job in std::mem::take(&mut self.jobs).into_values() {
            let why = "the stage ended without an outcome for it. This is a bug.";
            self.beside.end(job, Err(Stop::Unavailable(why.to_owned())));
        }
    }
}
