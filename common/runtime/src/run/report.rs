//! Reports of stages to a job's owner as they go: rows done, time and memory. Core NATS: a lost report costs a progress
//! bar a step, never a result.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::bus::Bus;
use crate::bus::events::now_ms;
use crate::metrics::counts;
use protocol::error::StageName;
use protocol::memory;
use protocol::message::{JobId, Modality, Output};
use protocol::report::{Done, Report};
use protocol::wire;

/// Reports of one message are at least this far apart.
const EVERY: Duration = Duration::from_millis(200);
/// Time between heartbeats while one message computes.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// Reports on the work of one message.
pub struct Reporter {
    bus: Bus,
    stage: StageName,
    job: JobId,
    budget_bytes: u64,
    done: Vec<Done>,
    last: Instant,
    /// Busy and waiting time already told; reports carry differences.
    told: (Duration, Duration),
    runtime: tokio::runtime::Handle,
}

impl Reporter {
    /// Reporter for one message.
    pub fn new(bus: Bus, stage: StageName, job: JobId, budget_bytes: Option<u64>) -> Self {
        Reporter {
            bus,
            stage,
            job,
            budget_bytes: budget_bytes.unwrap_or(0),
            done: Vec::new(),
            last: Instant::now(),
            told: Default::default(),
            runtime: tokio::runtime::Handle::current(),
        }
    }

    /// Notes an output.
    pub fn add(&mut self, output: &Output<'_>) {
        let (modality, offset, rows) = match output {
            Output::Frames(m) => (Modality::Image, m.offset, m.tensor.rows() as u64),
            Output::Pcm(m) => (Modality::Audio, m.index, u64::from(m.tensor.rows() > 0)),
            Output::Features(m) => (m.modality, m.offset, m.tensor.rows() as u64),
            Output::Tokens(m) => (m.modality, m.offset, m.tensor.rows() as u64),
        };
        counts::items(self.stage, kind_of(output), rows);
        self.done.push(Done { modality, offset, rows });
    }

    /// Job of the message.
    pub fn job(&self) -> &JobId {
        &self.job
    }

    /// Whether the owner has heard nothing for [`EVERY`].
    pub fn is_due(&self) -> bool {
        self.last.elapsed() >= EVERY
    }

    /// Tells the owner now.
    pub async fn tell(&mut self, elapsed: Duration, waited: Duration) {
        self.last = Instant::now();
        let busy = elapsed.saturating_sub(waited);
        let mut report = blank(&self.bus, self.stage, self.budget_bytes);
        report.done = std::mem::take(&mut self.done);
        report.busy_us = busy.saturating_sub(self.told.0).as_micros() as u64;
        report.wait_us = waited.saturating_sub(self.told.1).as_micros() as u64;
        self.told = (busy, waited);
        self.bus.tell(self.bus.subjects().reports(&self.job), wire::encode(&report)).await;
    }

    /// Sends heartbeats until aborted.
    pub fn heartbeat(&self) -> JoinHandle<()> {
        let (bus, stage, job, budget) = (self.bus.clone(), self.stage, self.job.clone(), self.budget_bytes);
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(HEARTBEAT).await;
                let report = blank(&bus, stage, budget);
                bus.tell(bus.subjects().reports(&job), wire::encode(&report)).await;
            }
        })
    }
}

/// What the items of an output are called in [`ITEMS`](crate::metrics::names::ITEMS).
fn kind_of(output: &Output<'_>) -> &'static str {
    match output {
        Output::Frames(_) => "frames",
        Output::Pcm(_) => "windows",
        Output::Features(m) if m.modality == Modality::Image => "image_rows",
        Output::Features(_) => "audio_rows",
        Output::Tokens(m) if m.modality == Modality::Image => "image_tokens",
        Output::Tokens(_) => "audio_tokens",
    }
}

fn blank(bus: &Bus, stage: StageName, budget_bytes: u64) -> Report {
    Report {
        v: wire::VERSION,
        stage,
        instance: bus.instance().to_owned(),
        done: Vec::new(),
        busy_us: 0,
        wait_us: 0,
        at_ms: now_ms(),
        peak_bytes: memory::usage().peak_bytes,
        budget_bytes,
    }
}
