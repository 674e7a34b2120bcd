//! What is known of a job while it is owned: what its stages report, what others write, and when its time is up.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use futures::StreamExt;

use super::progress::Progress;
use crate::bus::Bus;
use crate::bus::events::EventLog;
use crate::run::job_end::{EndSignal, JobEnd};
use protocol::error::StageName;
use protocol::event::{CancelledBy, JobEvent, JobResult, StageMemory};
use protocol::memory;
use protocol::message::JobId;
use protocol::report::Report;
use protocol::wire;

/// Time within which the stream has what a subscriber hears, or never: what it refuses, a subscriber hears all the same.
const STORED_WITHIN: Duration = Duration::from_secs(2);
/// Time between two looks through the progress for what is due.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// State of an owned job, shared by the engine's port and the task that listens for the job.
pub struct JobState {
    end: EndSignal,
    progress: Mutex<Progress>,
}

impl JobState {
    /// State of a job of which nothing is heard yet; `end` tells when work on it shall stop.
    pub fn new(end: EndSignal) -> Arc<Self> {
        Arc::new(JobState { end, progress: Mutex::default() })
    }

    /// Signal that work on the job shall stop.
    pub fn end(&self) -> &EndSignal {
        &self.end
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
            let mut tick = tokio::time::interval(LOOK_EVERY);
            let deadline = deadline.map(tokio::time::sleep_until);
            tokio::pin!(deadline);
            // When a terminal event was heard. It may be an earlier owner's, refused: only the log knows.
            let mut heard_end: Option<Instant> = None;
            loop {
                tokio::select! {
                    Some(message) = reports.next() => self.note_report(&bus, &own, &message),
                    Some(message) = asked.next() => if let Some(to) = message.reply {
                        bus.tell(to.to_string(), bus.instance().as_bytes().to_vec()).await;
                    },
                    Some(message) = events.next() => if is_terminal(&message) {
                        heard_end = Some(Instant::now());
                    },
                    _ = tick.tick() => {
                        self.tell_progress(&log).await;
                        if let Some(heard) = heard_end {
                            if EventLog::open(&bus, &job).await.ended().is_some() {
                                self.end.set(JobEnd::Ended);
                            }
                            heard_end = (heard.elapsed() < STORED_WITHIN).then_some(heard);
                        }
                    }
                    _ = async { deadline.as_mut().as_pin_mut().expect("guarded").await }, if deadline.is_some() => {
                        self.end.set(JobEnd::Cancelled(CancelledBy::Deadline));
                        deadline.set(None);
                    }
                }
            }
        })
    }

    /// Notes a report: of this job, whose reports come on the subject `own`, or of another.
    fn note_report(&self, bus: &Bus, own: &str, message: &async_nats::Message) {
        match wire::decode::<Report>(&message.payload) {
            Ok(report) if message.subject.as_str() == own => self.progress().note(&report, bus.known_ms()),
            Ok(report) => self.progress().note_busy_elsewhere(report.stage),
            Err(error) => {
                bus.note_unreadable();
                tracing::debug!(%error, "report unreadable");
            }
        }
    }

    /// Tells the client what is due of progress.
    async fn tell_progress(&self, log: &tokio::sync::Mutex<EventLog>) {
        let due = self.progress().due();
        for step in due {
            match log.lock().await.append(step.event()).await {
                Ok(()) => self.progress().note_told(step),
                Err(refused) => self.end.set(JobEnd::of(&refused)),
            }
        }
    }

    /// Progress of each stage.
    pub fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().expect("no holder panics. This is a bug.")
    }

    /// Adds what the stages reported to what the owner knows, and dates that by the broker's clock as well.
    pub fn complete(&self, mut result: JobResult, bus: &Bus, budget_bytes: Option<u64>) -> JobResult {
        for own in result.timings.stages.values_mut() {
            own.first_at_ms = bus.broker_ms_of(own.first_at_ms);
            own.last_at_ms = bus.broker_ms_of(own.last_at_ms);
        }
        let progress = self.progress();
        result.timings.stages.extend(progress.timings());
        result.memory.extend(progress.memory());
        let own = StageMemory { peak_bytes: memory::usage().peak_bytes, budget_bytes: budget_bytes.unwrap_or(0) };
        result.memory.insert(StageName::Llm, own);
        result
    }
}

fn is_terminal(message: &async_nats::Message) -> bool {
    wire::decode_any::<JobEvent>(&message.payload).is_ok_and(|e| e.event.is_terminal())
}
