//! What is simulated: a load, the replicas that it meets, and the clock.

use deploy::up::broker::MAX_PAYLOAD;
use protocol::error::StageName;
use serde::Serialize;

use super::model::{Video, Work};
use super::needs::Needs;
use super::times::{Footage, Times};

/// Bytes of `max_payload` that are left to headers (`Bus::max_message`).
const HEADER_BYTES: usize = 1 << 10;

/// Bytes of a body at most, of those that are aimed at: the broker's `max_payload` bounds them.
pub fn body_bytes(message_bytes: usize) -> usize {
    message_bytes.min(MAX_PAYLOAD - HEADER_BYTES)
}

/// When jobs come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Arrivals {
    /// Independently of each other and of the answers, as of many people (a Poisson process).
    Open,
    /// The next one when one has been answered, so many at a time: what is measured is what the pipeline can do.
    Closed(usize),
}

/// One scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Scenario {
    /// Videos an hour that are offered.
    pub per_hour: f64,
    /// Jobs in all.
    pub jobs: usize,
    /// When they come.
    pub arrivals: Arrivals,
    /// Seed of the times between them.
    pub seed: u64,
    /// Video that each is about; each job has one of its own.
    pub video: Video,
    /// What decoding it takes.
    pub footage: Footage,
    /// Service times of the GPU stages.
    pub times: Times,
    /// Replicas of each stage of one pipeline; none: as many as the model says.
    pub asked: Vec<(StageName, usize)>,
    /// Times that the clock is faster than the real one; infinite without any waits.
    pub speed: f64,
    /// Pipelines, each with a prefix and stages of its own; jobs go to them by turns.
    pub prefixes: usize,
    /// Brokers that these share by turns.
    pub brokers: usize,
    /// `decode.batch_frames`.
    pub batch_frames: usize,
    /// `bus.message_bytes`.
    pub message_bytes: usize,
    /// `bus.token_bytes`.
    pub token_bytes: i64,
}

impl Scenario {
    /// Frames of a message, and bytes of a body at most.
    pub fn cut(&self) -> (usize, usize) {
        (self.batch_frames, body_bytes(self.message_bytes))
    }

    /// Times that the clock of the simulation is faster; without any waits it is the real one.
    pub fn clock(&self) -> f64 {
        if self.speed.is_finite() { self.speed } else { 1.0 }
    }

    /// Replicas of each stage of one pipeline.
    pub fn replicas(&self) -> Vec<(StageName, usize)> {
        let share = self.per_hour / self.prefixes.max(1) as f64;
        let needed = Needs::of(share, &self.video, &self.times, &self.footage, self.cut());
        let needed = |stage| {
            let all = needed.as_ref().map(|needs| needs.replicas.clone()).unwrap_or_default();
            all.into_iter().find(|&(of, _)| of == stage).map_or(1, |(_, n)| n as usize)
        };
        let asked = |stage| self.asked.iter().find(|&&(of, _)| of == stage).map(|&(_, n)| n);
        StageName::ALL.iter().map(|&stage| (stage, asked(stage).unwrap_or_else(|| needed(stage)))).collect()
    }

    /// Refuses what cannot be run.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn check(&self) -> anyhow::Result<()> {
        let need = |ok: bool, what: &str| if ok { Ok(()) } else { Err(anyhow::anyhow!("{what}")) };
        Work::of(&self.video, &self.times, &self.footage)?;
        need(self.video.fps > 0, "--fps is at least 1")?;
        need((1..=8192).contains(&self.video.answer_tokens), "--answer-tokens is 1 to 8192")?;
        need(self.per_hour.is_finite() && self.per_hour > 0.0, "--per-hour is over 0")?;
        need(self.jobs > 0, "--jobs is at least 1")?;
        need(self.speed > 0.0, "--speed is over 0")?;
        let open = self.arrivals == Arrivals::Open;
        need(!open || self.speed.is_finite(), "jobs that come by the clock need a --speed")?;
        need(self.arrivals != Arrivals::Closed(0), "--at-a-time is at least 1")?;
        need(self.prefixes > 0 && self.brokers > 0, "--prefixes and --brokers are at least 1")?;
        need(
            self.brokers <= self.prefixes,
            "a broker without a prefix has nothing to do: give as many --prefixes as --brokers",
        )?;
        need(self.asked.iter().all(|&(_, n)| n > 0), "every stage has at least one replica")
    }
}
