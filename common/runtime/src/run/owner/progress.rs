//! How far each stage is with a job, from what the stages report.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use protocol::coverage::VideoCoverage;
use protocol::error::StageName;
use protocol::event::{Event, StageMemory, StageTiming};
use protocol::message::Modality;
use protocol::plan::{AudioPlan, ImagePlan, MediaPlan, WINDOW_ROWS};
use protocol::report::Report;

/// Time between two progress events of a stage: at most four a second (PROTOCOL.md).
const EVERY: Duration = Duration::from_millis(250);

/// Progress of all stages with one job.
pub struct Progress {
    image: Option<ImagePlan>,
    audio: Option<AudioPlan>,
    stages: BTreeMap<StageName, Stage>,
    last_heartbeat: Instant,
    /// Times when each stage was last seen to work on another job.
    elsewhere: BTreeMap<StageName, Instant>,
}

/// How far a stage is with a job, as a progress event tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    stage: StageName,
    done: u64,
    total: u64,
}

impl Step {
    /// Event that tells it.
    pub fn event(self) -> Event {
        let Step { stage, done, total } = self;
        Event::Progress { stage, done, total }
    }
}

#[derive(Default)]
struct Stage {
    /// Rows handed on, in the unit of the stage's output.
    rows: VideoCoverage,
    timing: StageTiming,
    memory: StageMemory,
    /// Done and total of the owner itself, which counts its own tokens.
    own: Option<(u64, u64)>,
    told: Option<(u64, u64)>,
    told_at: Option<Instant>,
}

impl Default for Progress {
    fn default() -> Self {
        let stages = BTreeMap::new();
        Progress { image: None, audio: None, stages, last_heartbeat: Instant::now(), elsewhere: BTreeMap::new() }
    }
}

impl Progress {
    /// Learns the totals that a decode request is made with.
    pub fn expect(&mut self, plan: &MediaPlan) {
        self.image = plan.image.clone();
        self.audio = plan.audio.clone();
        self.note_heartbeat();
    }

    /// Learns the totals of one modality from a batch of it: exact now, or none if it turned out to be absent.
    pub fn expect_modality(&mut self, modality: Modality, plan: &MediaPlan) {
        match modality {
            Modality::Image => self.image = plan.image.clone(),
            Modality::Audio => self.audio = plan.audio.clone(),
        }
        self.note_heartbeat();
    }

    /// Notes a heartbeat.
    pub fn note_heartbeat(&mut self) {
        self.last_heartbeat = Instant::now();
    }

    /// Notes that a stage works, though on another job.
    pub fn note_busy_elsewhere(&mut self, stage: StageName) {
        self.elsewhere.insert(stage, Instant::now());
    }

    /// Time since the last heartbeat of any stage for this job.
    pub fn silent(&self) -> Duration {
        self.last_heartbeat.elapsed()
    }

    /// Time since the last heartbeat: of any stage for this job, or of `stage` for any.
    pub fn silent_for(&self, stage: StageName) -> Duration {
        let elsewhere = self.elsewhere.get(&stage).map_or(Duration::MAX, Instant::elapsed);
        self.silent().min(elsewhere)
    }

    /// Notes a report that came at a time, Unix milliseconds of the broker: each stage's own clock may be off.
    pub fn note(&mut self, report: &Report, at_ms: u64) {
        self.note_heartbeat();
        let stage = self.stages.entry(report.stage).or_default();
        for done in &report.done {
            let rows = done.offset..done.offset.saturating_add(done.rows);
            stage.rows.of_mut(done.modality).insert(rows);
        }
        let t = &mut stage.timing;
        let worked_ms = (report.busy_us + report.wait_us) / 1000;
        t.busy_s += report.busy_us as f64 / 1e6;
        t.wait_s += report.wait_us as f64 / 1e6;
        let from = at_ms.saturating_sub(worked_ms);
        t.first_at_ms = if t.first_at_ms == 0 { from } else { t.first_at_ms.min(from) };
        t.last_at_ms = t.last_at_ms.max(at_ms);
        stage.memory.peak_bytes = stage.memory.peak_bytes.max(report.peak_bytes);
        stage.memory.budget_bytes = report.budget_bytes;
    }

    /// Sets the owner's own progress.
    pub fn set(&mut self, stage: StageName, done: u64, total: u64) {
        self.stages.entry(stage).or_default().own = Some((done, total));
    }

    /// Steps whose telling is due: changed, and not too soon after the last one unless the stage is done. Each stays due
    /// until it is [noted](Self::note_told).
    pub fn due(&self) -> Vec<Step> {
        let due = self.stages.iter().filter_map(|(&name, stage)| {
            let (done, total) = stage.count(name, self.image.as_ref(), self.audio.as_ref());
            let changed = stage.told != Some((done, total)) && total > 0;
            let spaced = stage.told_at.is_none_or(|t| t.elapsed() >= EVERY);
            (changed && (spaced || done == total)).then_some(Step { stage: name, done, total })
        });
        due.collect()
    }

    /// Notes that a step's event is in the job's log. Not before it is: whoever writes it may be stopped.
    pub fn note_told(&mut self, step: Step) {
        let stage = self.stages.entry(step.stage).or_default();
        stage.told = Some((step.done, step.total));
        stage.told_at = Some(Instant::now());
    }

    /// Steps that an answered job's log still lacks, which say that every stage is done. An answer needs every token, so they
    /// are, even where the report that said so was lost.
    pub fn last_words(&self) -> Vec<Step> {
        let blank = Stage::default();
        let lacking = StageName::ALL.into_iter().filter_map(|name| {
            let stage = self.stages.get(&name).unwrap_or(&blank);
            let (_, total) = stage.count(name, self.image.as_ref(), self.audio.as_ref());
            let lacks = total > 0 && stage.told != Some((total, total));
            lacks.then_some(Step { stage: name, done: total, total })
        });
        lacking.collect()
    }

    /// First stage, in the order of data flow, that is not done.
    pub fn behind(&self) -> StageName {
        let blank = Stage::default();
        StageName::ALL
            .into_iter()
            .find(|name| {
                let stage = self.stages.get(name).unwrap_or(&blank);
                let (done, total) = stage.count(*name, self.image.as_ref(), self.audio.as_ref());
                done < total
            })
            .unwrap_or(StageName::Decode)
    }

    /// Time per stage.
    pub fn timings(&self) -> impl Iterator<Item = (StageName, StageTiming)> {
        self.stages.iter().filter(|(n, _)| **n != StageName::Llm).map(|(n, s)| (*n, s.timing.clone()))
    }

    /// Memory per stage.
    pub fn memory(&self) -> impl Iterator<Item = (StageName, StageMemory)> {
        self.stages.iter().map(|(n, s)| (*n, s.memory.clone()))
    }
}

impl Stage {
    /// Done and total in the unit that a person counts for this stage: frames and windows for the ends that see
    /// media, tokens for the rest.
    fn count(&self, name: StageName, image: Option<&ImagePlan>, audio: Option<&AudioPlan>) -> (u64, u64) {
        let frames = image.map_or(0, |i| i.frames);
        let windows = audio.map_or(0, AudioPlan::encoded_windows);
        let tokens = image.map_or(0, |i| i.tokens) + audio.map_or(0, |a| a.tokens);
        let VideoCoverage { image: image_rows, audio: audio_rows } = &self.rows;
        match name {
            StageName::Decode => (image_rows.len() + audio_rows.len(), frames + windows),
            StageName::Vision => {
                let per_frame = image.map_or(1, ImagePlan::tokens_per_frame);
                (image_rows.len() / per_frame, frames)
            }
            StageName::Audio => (audio_rows.len().div_ceil(WINDOW_ROWS), windows),
            StageName::Fuse => (image_rows.len() + audio_rows.len(), tokens),
            StageName::Llm => self.own.unwrap_or((0, tokens)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_due_and_never_written_is_among_the_last_words() {
        let step = |done| Step { stage: StageName::Llm, done, total: 24 };
        let mut progress = Progress::default();
        progress.set(StageName::Llm, 3, 24);
        assert_eq!(progress.due(), [step(3)]);
        progress.note_told(step(3));
        assert!(progress.due().is_empty());
        progress.set(StageName::Llm, 24, 24);
        assert_eq!(progress.due(), [step(24)]);
        // Whoever was to write it was stopped.
        assert_eq!(progress.last_words(), [step(24)]);
        progress.note_told(step(24));
        assert!(progress.due().is_empty() && progress.last_words().is_empty());
    }
}
