//! What a run came to, beside what the model says of it.

use std::fmt;

use protocol::error::StageName;
use serde::Serialize;

use super::model::{Traffic, WIDTHS_9B, Work};
use super::monitor::Did;
use super::scenario::{Arrivals, Scenario};

/// Share of its time from which on a part of the pipeline counts as at its limit.
const FULL: f64 = 0.9;

/// Times of one job, Unix milliseconds; 0 for what did not come.
#[derive(Clone, Debug, Default, Serialize)]
pub struct JobTimes {
    /// When it was submitted.
    pub submitted_ms: u64,
    /// When an owner had it and its plan.
    pub planned_ms: u64,
    /// When the first text of its answer was told.
    pub first_token_ms: u64,
    /// When it ended.
    pub ended_ms: u64,
    /// Events that it had.
    pub events: u64,
    /// Reason for which it has no answer.
    pub failed: Option<String>,
}

/// Shares of the time of all replicas of a stage.
#[derive(Clone, Debug, Serialize)]
pub struct StageShare {
    /// The stage.
    pub stage: StageName,
    /// Its replicas in all pipelines.
    pub replicas: usize,
    /// Share in which they had work, as their status counts it: of stage-llm the time that it holds a job.
    pub busy: f64,
    /// Share in which they computed: waited in place of it.
    pub computed: f64,
    /// What the model says of the two.
    pub model: [f64; 2],
}

/// Figures of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was run.
    pub scenario: Scenario,
    /// Seconds of the real clock from the first job to the end of the last.
    pub window_s: f64,
    /// Shares of each stage.
    pub stages: Vec<StageShare>,
    /// What all brokers did together.
    pub broker: Did,
    /// What each did.
    pub brokers: Vec<Did>,
    /// CPU seconds of this process: all stages and clients.
    pub own_cpu_s: f64,
    /// Cores of this machine.
    pub cores: usize,
    /// Messages that a stage besides stage-llm was delivered twice.
    pub redelivered: u64,
    /// Each job.
    pub jobs: Vec<JobTimes>,
    /// Bytes that the model says the brokers took in.
    pub model_bytes: u64,
    /// Messages with rows that the model says they took in.
    pub model_messages: u64,
}

impl Report {
    /// Fills in what the model says of this run: of the jobs that it answered in the time that it took.
    ///
    /// # Errors
    /// A video that is too short to be asked about.
    pub fn fill_in(&mut self) -> anyhow::Result<()> {
        let scenario = &self.scenario;
        let traffic = Traffic::of(&scenario.video.plan()?, &WIDTHS_9B, scenario.cut());
        let (answered, clock) = (self.answered() as u64, scenario.clock());
        self.model_bytes = answered * traffic.bus_bytes();
        self.model_messages = answered * traffic.all().messages;
        let work = Work::of(&scenario.video, &scenario.times, &scenario.footage)?;
        for stage in &mut self.stages {
            let computed_s = if stage.stage == StageName::Llm { work.llm_s } else { work.busy_s(stage.stage) };
            let all_s = self.window_s * clock * stage.replicas as f64;
            let waits = if scenario.speed.is_finite() { answered as f64 } else { 0.0 };
            stage.model = [work.busy_s(stage.stage), computed_s].map(|s| waits * s / all_s);
        }
        Ok(())
    }

    /// Jobs that were answered.
    pub fn answered(&self) -> usize {
        self.jobs.iter().filter(|job| job.failed.is_none()).count()
    }

    /// Videos answered in an hour of the simulation's clock.
    pub fn answered_per_hour(&self) -> f64 {
        self.answered() as f64 / self.window_s / self.scenario.clock() * 3600.0
    }

    /// Seconds of the simulation's clock that a share `q` of the answered jobs does not exceed, of those that `of` tells.
    pub fn quantile(&self, q: f64, of: impl Fn(&JobTimes) -> u64) -> f64 {
        let answered = self.jobs.iter().filter(|job| job.failed.is_none());
        let mut all: Vec<u64> = answered.map(|job| of(job).saturating_sub(job.submitted_ms)).collect();
        all.sort_unstable();
        let rank = (all.len() as f64 * q).ceil() as usize;
        let ms = all.get(rank.clamp(1, all.len().max(1)) - 1).copied().unwrap_or(0);
        ms as f64 / 1e3 * self.scenario.clock()
    }

    /// Share of all cores that the brokers took, and that this process took beside them.
    pub fn cpu(&self) -> [f64; 2] {
        [self.broker.cpu_s, self.own_cpu_s].map(|s| s / self.window_s / self.cores as f64)
    }

    /// What is nearest to its limit, and its share of it.
    pub fn nearest_limit(&self) -> (String, f64) {
        let stages = self.stages.iter().map(|stage| {
            let what = if stage.stage == StageName::Llm { " (it holds jobs)" } else { "" };
            (format!("stage-{}{what}", stage.stage), stage.busy)
        });
        let machine = ("this machine's cores".to_owned(), self.cpu().iter().sum());
        stages.chain([machine]).max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scenario { per_hour, jobs, arrivals, video, footage, times, speed, prefixes, brokers, .. } = &self.scenario;
        let offered = match arrivals {
            Arrivals::Open => format!("{per_hour} videos an hour"),
            Arrivals::Closed(n) => format!("{n} at a time"),
        };
        let clock = match speed.is_finite() {
            true if *speed == 1.0 => "the real clock".to_owned(),
            true => format!("a clock {speed} times faster than the real one"),
            false => "no waits: the stages only pass messages on".to_owned(),
        };
        writeln!(
            f,
            "{offered}, {jobs} of {} s at {} frame a second, {} tokens, {} on {}; prefixes: {prefixes}, brokers: {brokers}; {clock}",
            video.seconds, video.fps, video.answer_tokens, times.name, footage.name
        )?;
        let wait = |q| self.quantile(q, |job| job.planned_ms);
        let first = |q| self.quantile(q, |job| job.first_token_ms);
        let end = |q| self.quantile(q, |job| job.ended_ms);
        writeln!(
            f,
            "  answered {} ({:.1} an hour), failed {}, redelivered {}; p50 / p95 s: begun {:.2} / {:.2}, first token {:.2} / {:.2}, \
             answered {:.2} / {:.2}",
            self.answered(),
            self.answered_per_hour(),
            self.jobs.len() - self.answered(),
            self.redelivered,
            wait(0.5),
            wait(0.95),
            first(0.5),
            first(0.95),
            end(0.5),
            end(0.95),
        )?;
        writeln!(
            f,
            "  {:<8} {:>8} {:>7} {:>7} {:>9} {:>7}",
            "stage", "replicas", "busy", "model", "computing", "model"
        )?;
        for stage in &self.stages {
            let StageShare { stage, replicas, busy, computed, model: [b, c] } = stage;
            writeln!(f, "  {:<8} {replicas:>8} {busy:>7.3} {b:>7.3} {computed:>9.3} {c:>7.3}", stage.as_str())?;
        }
        self.fmt_bus(f)
    }
}

impl Report {
    fn fmt_bus(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (did, s) = (&self.broker, self.window_s);
        let mb = |bytes: u64| bytes as f64 / 1e6;
        let answered = self.answered().max(1) as f64;
        let [broker, own] = self.cpu();
        writeln!(
            f,
            "  broker: {:.1} MB/s in, {:.1} out, {:.0} messages/s in (real clock, {s:.1} s); a video {:.2} MB in, {:.2} out, model {:.2}; \
             {:.1} events",
            mb(did.bytes[0]) / s,
            mb(did.bytes[1]) / s,
            did.messages[0] as f64 / s,
            mb(did.bytes[0]) / answered,
            mb(did.bytes[1]) / answered,
            mb(self.model_bytes) / answered,
            self.jobs.iter().map(|job| job.events).sum::<u64>() as f64 / answered,
        )?;
        writeln!(
            f,
            "  broker: CPU {:.2} s, {:.3} of {} cores, {:.2} CPU s a GB in; memory at most {:.0} MB, streams {:.0} MB; stages and clients CPU \
             {:.2} s, {own:.3} of the cores",
            did.cpu_s,
            broker,
            self.cores,
            did.cpu_s / (did.bytes[0] as f64 / 1e9).max(1e-9),
            mb(did.peak_memory_bytes),
            mb(did.peak_stored_bytes),
            self.own_cpu_s,
        )?;
        let (what, share) = self.nearest_limit();
        let word = match self.scenario.arrivals {
            Arrivals::Closed(_) => "busiest",
            Arrivals::Open if share >= FULL => "first limit hit",
            Arrivals::Open => "no limit hit; nearest to its own",
        };
        write!(f, "  {word}: {what}, {share:.2} of its time")
    }
}
