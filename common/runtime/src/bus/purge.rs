//! Dropping what the streams hold of a job that has ended.

use std::fmt::Display;

use futures::future::join_all;

use super::events::EventLog;
use super::handle::Bus;
use crate::subject::StreamName;
use protocol::error::StageName;
use protocol::message::JobId;

/// Stream and subject of what waits in a stage's queue for a job, or, for stage-llm, of the job's tokens.
fn queue_of(bus: &Bus, stage: StageName, job: &JobId) -> (StreamName, String) {
    let stream = match stage {
        StageName::Llm => StreamName::Tokens,
        other => StreamName::input_of(other),
    };
    (stream, bus.subjects().input(stage, job))
}

impl Bus {
    /// Drops what waits in a stage's queue for a job, or, for stage-llm, the job's tokens.
    pub async fn purge(&self, stage: StageName, job: &JobId) {
        let (stream, subject) = queue_of(self, stage, job);
        if let Err(error) = self.stream(stream).await.purge().filter(subject.clone()).await {
            tell(&subject, &error);
        }
    }

    /// Drops what a stage has handed on for a job that has ended.
    pub async fn purge_outputs(&self, stage: StageName, job: &JobId) {
        let takers: &[StageName] = match stage {
            StageName::Decode => &[StageName::Vision, StageName::Audio],
            StageName::Vision | StageName::Audio => &[StageName::Fuse],
            StageName::Fuse => &[StageName::Llm],
            StageName::Llm => &[StageName::Decode],
        };
        for &taker in takers {
            self.purge(taker, job).await;
        }
    }

    /// Drops all that the streams hold of a job that has ended, or that nobody has heard of, but its events; nothing if it
    /// is going on.
    ///
    /// The broker may get to it late (it was restarted, say), and the id be in use again by then. So how far each stream
    /// reaches is read first, and then that the job has ended: what stands behind that place is not of the job that ended.
    pub async fn purge_job(&self, job: &JobId) {
        let waiting = (StreamName::Line, self.subjects().waiting_anywhere(job));
        let places = StageName::ALL.map(|stage| queue_of(self, stage, job)).into_iter().chain([waiting]);
        let reach = join_all(places.map(|(stream, subject)| async move {
            match self.stream(stream).await.get_info().await {
                Ok(info) => Some((stream, subject, info.state.last_sequence)),
                Err(error) => {
                    tell(&subject, &error);
                    None
                }
            }
        }));
        let reach = reach.await;
        let log = EventLog::open(self, job).await;
        if log.last().is_some() && log.ended().is_none() {
            return;
        }
        join_all(reach.into_iter().flatten().map(|(stream, subject, last)| self.purge_up_to(stream, subject, last)))
            .await;
    }

    /// Drops what a stream holds on a subject up to a sequence.
    pub async fn purge_up_to(&self, stream: StreamName, subject: String, last: u64) {
        let purge = self.stream(stream).await.purge().filter(subject.clone()).sequence(last + 1).await;
        if let Err(error) = purge {
            tell(&subject, &error);
        }
    }
}

fn tell(subject: &str, error: &dyn Display) {
    tracing::warn!(subject, %error, "purge failed");
}
