//! Last step of owning a job: it gets its terminal event and is cleared up, goes back to the queue, or is left to a newer
//! owner.

use std::time::{Duration, Instant};

use super::answer::{Answer, Answered};
use super::state::JobState;
use super::worker::{Settled, Worker};
use crate::bus::events::{EventLog, Refused};
use crate::run::control::{dropped, gather};
use protocol::control::Verb;
use protocol::error::{ErrorKind, JobError, StageName};
use protocol::event::{CancelledBy, Event};
use protocol::message::JobId;

/// Pause of a job that went back to the queue to let others go first, times the number of times, up to [`PAUSES`].
const PAUSE: Duration = Duration::from_secs(2);
const PAUSES: u64 = 10;

impl<O> Worker<O> {
    /// Settles a job.
    pub async fn settle(&self, answered: Answered) -> Settled {
        let Answered { job, delivery, log, state, answer } = answered;
        let event = match answer {
            Answer::Result(result) => {
                Event::Result(Box::new(state.complete(*result, &self.bus, self.info.budget_bytes)))
            }
            Answer::Failed(error) => Event::Failed { error: error.at(StageName::Llm) },
            Answer::Cancelled(by) => self.cancelled(&job, by).await,
            Answer::Superseded(newer) => {
                // Its signal is set, though the job has not ended.
                self.listener.forget(&job);
                return self.leave(&job, delivery, newer).await;
            }
            Answer::GaveWay(why) => {
                let returned = self.bus.note_returned(&job).await;
                tracing::info!(why, returned, "job given back, others go first");
                delivery.give_back(PAUSE * returned.min(PAUSES) as u32).await;
                return Settled::Processed;
            }
            Answer::Unavailable(why) if self.tries_left(&job, &delivery).await > 1 => {
                tracing::warn!(why, "job given back, to be tried again");
                delivery.retry_later().await;
                return Settled::Processed;
            }
            Answer::Unavailable(why) => {
                Event::Failed { error: JobError::new(ErrorKind::WorkerLost, why).at(StageName::Llm) }
            }
        };
        let failed = matches!(event, Event::Failed { .. });
        match &event {
            Event::Failed { error } => tracing::warn!(%error, "job failed"),
            Event::Cancelled { by, .. } => tracing::info!(?by, "job cancelled"),
            _ => tracing::info!("job answered"),
        }
        let ended = end(&mut *log.lock().await, &state, event).await;
        match ended {
            Ok(()) => {}
            Err(Refused::Ended(other)) => {
                tracing::info!(end = other.0.event.kind(), "job had ended already");
            }
            Err(Refused::Superseded(newer)) => {
                self.listener.forget(&job);
                return self.leave(&job, delivery, newer).await;
            }
        }
        self.clearing.begin(&self.bus, job, delivery);
        if failed { Settled::Failed } else { Settled::Processed }
    }

    /// Stops all stages' work for a job, and says which had some.
    async fn cancelled(&self, job: &JobId, by: CancelledBy) -> Event {
        let started = Instant::now();
        let replies = gather(&self.bus, Verb::Cancel, &dropped(job)).await.unwrap_or_default();
        let mut stages_stopped: Vec<StageName> =
            replies.iter().filter(|r| r.stopped).map(|r| r.stage).chain([StageName::Llm]).collect();
        stages_stopped.sort();
        stages_stopped.dedup();
        Event::Cancelled { by, stages_stopped, ms: started.elapsed().as_millis() as u64 }
    }
}

/// Writes a job's terminal event, behind the last progress of its stages if it is the answer.
async fn end(log: &mut EventLog, state: &JobState, event: Event) -> Result<(), Refused> {
    if matches!(event, Event::Result(_)) {
        let last_words = state.progress().last_words();
        for step in last_words {
            // Refused, the result is refused too, and that is looked at.
            let _ = log.append(step.event()).await;
        }
    }
    log.append(event).await
}
