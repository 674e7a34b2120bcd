//! What is known of a job while it is owned: what its stages report, what others write, and when its time is up.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::progress::Progress;
use crate::bus::Bus;
use crate::bus::events::{EventLog, Refused};
use crate::run::control::CancelFlag;
use protocol::error::StageName;
use protocol::event::{CancelledBy, JobEvent, JobResult, StageMemory};
use protocol::memory;
use protocol::message::JobId;
use protocol::report::Report;
use protocol::wire;

/// The stream has what a subscriber hears within this time, or never: what it refuses, a subscriber hears all the same.
const STORED_WITHIN: Duration = Duration::from_secs(2);

/// Shared by the engine's port and the task that listens for the job.
pub struct World {
    flag: CancelFlag,
    /// The claim of a newer owner of the job, once it has written; then the flag is set too.
    superseded: Mutex<Option<u64>>,
    /// Who ended it, if not its client.
    by: Mutex<Option<CancelledBy>>,
    progress: Mutex<Progress>,
}

impl World {
    /// Of a job of which nothing is heard yet; `flag` is set once nobody waits for it.
    pub fn new(flag: CancelFlag) -> Arc<Self> {
        Arc::new(World { flag, superseded: Mutex::default(), by: Mutex::default(), progress: Mutex::default() })
    }

    /// Set once nobody waits for the job any more.
    pub fn flag(&self) -> &CancelFlag {
        &self.flag
    }

    /// The claim of a newer owner, if one has written.
    pub fn superseded(&self) -> Option<u64> {
        *self.superseded.lock().expect("no holder panics. This is a bug.")
    }

    /// Who ended it.
    pub fn ended_by(&self) -> CancelledBy {
        self.by.lock().expect("no holder panics. This is a bug.").unwrap_or(CancelledBy::Client)
    }

    /// Listens to stages' reports, to events that others write, and to the clock; answers who asks for an owner.
    pub async fn watch(
        self: Arc<Self>,
        bus: &Bus,
        job: &JobId,
        log: Arc<tokio::sync::Mutex<EventLog>>,
        deadline: Option<tokio::time::Instant>,
    ) -> tokio::task::JoinHandle<()> {
        let reports = bus.client().subscribe(bus.subjects().all_reports()).await;
        let events = bus.client().subscribe(bus.subjects().events(job)).await;
        let asked = bus.client().subscribe(bus.subjects().owner(job)).await;
        let (bus, job, own) = (bus.clone(), job.clone(), bus.subjects().reports(job));
        tokio::spawn(async move {
            let (Ok(mut reports), Ok(mut events), Ok(mut asked)) = (reports, events, asked) else { return };
            let mut tick = tokio::time::interval(Duration::from_millis(100));
            let deadline = deadline.map(tokio::time::sleep_until);
            tokio::pin!(deadline);
            // When a terminal event was heard. It may be an earlier owner's, refused: only the log knows.
            let mut heard_end: Option<Instant> = None;
            loop {
                tokio::select! {
                    Some(message) = reports.next() => match wire::decode::<Report>(&message.payload) {
                        Ok(report) if message.subject.as_str() == own => self.progress().note(&report),
                        Ok(report) => self.progress().note_busy_elsewhere(report.stage),
                        Err(error) => {
                            bus.note_unreadable();
                            tracing::debug!(%error, "report not understood");
                        }
                    },
                    Some(message) = asked.next() => if let Some(to) = message.reply {
                        bus.tell(to.to_string(), bus.instance().as_bytes().to_vec()).await;
                    },
                    Some(message) = events.next() => {
                        let ended = wire::decode_any::<JobEvent>(&message.payload)
                            .is_ok_and(|e| e.event.is_terminal());
                        if ended {
                            heard_end = Some(Instant::now());
                        }
                    }
                    _ = tick.tick() => {
                        let due = self.progress().due();
                        for event in due {
                            if let Err(refused) = log.lock().await.append(event).await {
                                self.stop(&refused);
                            }
                        }
                        if let Some(heard) = heard_end {
                            if EventLog::open(&bus, &job).await.ended().is_some() {
                                self.flag.set();
                            }
                            heard_end = (heard.elapsed() < STORED_WITHIN).then_some(heard);
                        }
                    }
                    _ = async { deadline.as_mut().as_pin_mut().expect("guarded").await }, if deadline.is_some() => {
                        *self.by.lock().expect("no holder panics. This is a bug.") = Some(CancelledBy::Deadline);
                        self.flag.set();
                        deadline.set(None);
                    }
                }
            }
        })
    }

    /// Stops the work: an event was refused.
    pub fn stop(&self, refused: &Refused) {
        if let Refused::Superseded(by) = refused {
            *self.superseded.lock().expect("no holder panics. This is a bug.") = Some(*by);
        }
        self.flag.set();
    }

    /// How far each stage is.
    pub fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().expect("no holder panics. This is a bug.")
    }

    /// Adds what the stages reported to what the owner knows.
    pub fn complete(&self, mut result: JobResult, budget_bytes: Option<u64>) -> JobResult {
        let progress = self.progress();
        result.timings.stages.extend(progress.timings());
        result.memory.extend(progress.memory());
        let own = StageMemory { peak_bytes: memory::usage().peak_bytes, budget_bytes: budget_bytes.unwrap_or(0) };
        result.memory.insert(StageName::Llm, own);
        result
    }
}
