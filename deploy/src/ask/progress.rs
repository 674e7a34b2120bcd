//! Progress of a job as `vidi ask` shows it on standard error.

use std::collections::BTreeMap;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use protocol::error::StageName;
use protocol::event::{Cached, Event, Mode};
use protocol::plan::MediaPlan;
use runtime::output::Remarks;
use runtime::remark;

use super::Style;

/// Progress bars on a terminal, one a stage; elsewhere a line for each stage that has finished.
pub struct Progress {
    bars: Option<MultiProgress>,
    stages: BTreeMap<StageName, ProgressBar>,
    quiet: bool,
}

impl Progress {
    /// Nothing shown yet.
    pub fn new(style: Style) -> Self {
        let terminal = Remarks.on_a_terminal() && !style.quiet;
        let bars = terminal.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Progress { bars, stages: BTreeMap::new(), quiet: style.quiet }
    }

    /// Shows an event that does not end the job.
    pub fn show(&mut self, event: &Event) {
        match event {
            Event::Planned { plan, mode, cached, .. } => self.line(&plan_line(plan, *mode, *cached)),
            Event::Queued { rank } if *rank > 0 => self.line(&format!("queued: {rank} jobs before it")),
            Event::Progress { stage, done, total } => self.progress(*stage, *done, *total),
            _ => {}
        }
    }

    fn line(&self, text: &str) {
        match &self.bars {
            _ if self.quiet => {}
            // An unwritable terminal loses a line of progress, not the answer.
            Some(bars) => drop(bars.println(text)),
            None => remark!("{text}"),
        }
    }

    fn progress(&mut self, stage: StageName, done: u64, total: u64) {
        let Some(bars) = &self.bars else {
            if done == total {
                self.line(&format!("{stage}: {done}/{total}"));
            }
            return;
        };
        let bar = self.stages.entry(stage).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix:>7} {bar:32} {pos}/{len} {elapsed}")
                .expect("a constant template. This is a bug.");
            bars.add(ProgressBar::new(total).with_style(style).with_prefix(stage.as_str()))
        });
        bar.set_length(total);
        bar.set_position(done);
    }

    /// Leaves the bars as they are and the cursor below them.
    pub fn clear(&mut self) {
        for bar in self.stages.values() {
            bar.finish();
        }
    }
}

/// A job's plan in one line, and that no encoder has anything to do where the video is known already.
fn plan_line(plan: &MediaPlan, mode: Mode, cached: Cached) -> String {
    let image = plan.image.as_ref();
    let image = image.map_or("no picture".to_owned(), |i| format!("{} frames, {} image tokens", i.frames, i.tokens));
    let about = if cached.is_known() { "" } else { "about " };
    let audio = plan.audio.as_ref().map_or("no sound".to_owned(), |a| format!("{about}{} audio tokens", a.tokens));
    let how = match cached {
        Cached::No => format!("{mode:?}"),
        Cached::Memory => "video known, only the question is read".to_owned(),
        Cached::Disk => "video known, read from disk before the question".to_owned(),
    };
    format!("plan: {:.1} s, {image}, {audio}, {how}", plan.duration_s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::plan::{AudioPlan, ImagePlan};

    #[test]
    fn who_asks_about_a_known_video_reads_that_no_stage_has_to_look_at_it() {
        let image = Some(ImagePlan::new(30, 10));
        let plan = MediaPlan {
            content_id: String::new(),
            duration_s: 10.0,
            image,
            audio: AudioPlan::new(160_000),
            notes: Vec::new(),
        };
        let first = plan_line(&plan, Mode::Streaming, Cached::No);
        assert_eq!(first, "plan: 10.0 s, 10 frames, 1960 image tokens, about 100 audio tokens, Streaming");
        for (cached, how) in [
            (Cached::Memory, "video known, only the question is read"),
            (Cached::Disk, "video known, read from disk before the question"),
        ] {
            let second = plan_line(&plan, Mode::Streaming, cached);
            assert!(second.ends_with(&format!("1960 image tokens, 100 audio tokens, {how}")), "{second}");
        }
    }
}
