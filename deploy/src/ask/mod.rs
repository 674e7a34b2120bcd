//! `vidi ask`: one question, its progress, its answer.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use config::RandomWeights;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use protocol::error::{JobError, StageName};
use protocol::event::{CancelledBy, Event, JobResult, Mode};
use protocol::message::JobRequest;
use protocol::plan::MediaPlan;
use runtime::bus::Bus;
use runtime::process::{Exit, Fatal};

use crate::client::{self, Events};

/// How one wants to hear it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// One JSON object on standard output and nothing else there.
    pub json: bool,
    /// No progress on standard error.
    pub quiet: bool,
}

/// Submits a job and shows what it does until it ends.
///
/// # Errors
/// When the job fails, is cancelled, or cannot be followed.
pub async fn ask(bus: &Bus, request: &JobRequest, style: Style) -> Result<JobResult, Fatal> {
    let other = |e: anyhow::Error| Fatal(Exit::Broker, format!("{e:#}"));
    let mut events = Events::new(bus, &request.job);
    client::submit(bus, request).await.map_err(other)?;
    let mut view = View::new(style);
    loop {
        match events.next().await.map_err(other)?.event {
            Event::Result(result) => {
                view.clear();
                if let Some(warning) = replaced(&result.plan) {
                    eprintln!("{warning}");
                }
                print_result(request, &result, style);
                return Ok(*result);
            }
            Event::Failed { error } => {
                view.clear();
                return Err(failed(request, &error, style));
            }
            Event::Cancelled { by, stages_stopped, ms } => {
                view.clear();
                return Err(cancelled(request, by, &stages_stopped, ms, style));
            }
            event => view.show(&event),
        }
    }
}

fn failed(request: &JobRequest, error: &JobError, style: Style) -> Fatal {
    if style.json {
        println!("{}", serde_json::json!({ "job": request.job, "error": error }));
    }
    let kind = serde_json::to_value(error.kind).unwrap_or_default();
    Fatal(Exit::of_failed_job(error.kind), format!("{}: {error}", kind.as_str().unwrap_or("failed")))
}

fn cancelled(request: &JobRequest, by: CancelledBy, stopped: &[StageName], ms: u64, style: Style) -> Fatal {
    if style.json {
        let how = serde_json::json!({ "by": by, "stages_stopped": stopped, "ms": ms });
        println!("{}", serde_json::json!({ "job": request.job, "cancelled": how }));
    }
    let what = match (by, request.deadline_s) {
        (CancelledBy::Client, _) => "cancelled: by a client".to_owned(),
        (CancelledBy::Operator, _) => "cancelled: by an operator".to_owned(),
        (CancelledBy::Deadline, Some(seconds)) => format!("deadline: {seconds} s from submission passed"),
        (CancelledBy::Deadline, None) => "deadline: it passed".to_owned(),
    };
    let stages: Vec<String> = stopped.iter().map(|s| format!("stage-{s}")).collect();
    let stages = if stages.is_empty() { "no stage was working on it".to_owned() } else { stages.join(", ") };
    Fatal(Exit::of_cancelled_job(by), format!("{what}; stopped within {ms} ms: {stages}"))
}

fn print_result(request: &JobRequest, result: &JobResult, style: Style) {
    if style.json {
        let mut object = serde_json::to_value(result).unwrap_or_default();
        object["job"] = serde_json::json!(request.job);
        println!("{object}");
        return;
    }
    if let Some(noise) = noise(result) {
        println!("{noise}");
        return;
    }
    if result.ranges.is_empty() {
        // A terminal obeys control characters; an answer has no business commanding it.
        let harmless =
            |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { char::REPLACEMENT_CHARACTER } else { c };
        println!("{}", result.text.chars().map(harmless).collect::<String>());
        return;
    }
    for range in &result.ranges {
        println!(
            "{}-{}",
            stage_llm::text::task::format_hms(range.start_s),
            stage_llm::text::task::format_hms(range.end_s)
        );
    }
}

/// What is shown of the answer of random weights; none of a model that somebody trained.
fn noise(result: &JobResult) -> Option<String> {
    let weights: RandomWeights = result.model.name.parse().ok()?;
    let (tokens, text) = (result.token_ids.len(), &result.text);
    Some(format!("{tokens} tokens of {weights}, which is no answer: {text:?}"))
}

/// What a job's video comes to, and why no stage but the language model has anything to do where it is known already.
fn plan_line(plan: &MediaPlan, mode: Mode, cached: bool) -> String {
    let image = plan.image.as_ref();
    let image = image.map_or("no picture".to_owned(), |i| format!("{} frames, {} image tokens", i.frames, i.tokens));
    let about = if cached { "" } else { "about " };
    let audio = plan.audio.as_ref().map_or("no sound".to_owned(), |a| format!("{about}{} audio tokens", a.tokens));
    let how = if cached { "video known, only the question is read".to_owned() } else { format!("{mode:?}") };
    format!("plan: {:.1} s, {image}, {audio}, {how}", plan.duration_s)
}

/// What is said of frames that others stand in for; none where all decoded.
fn replaced(plan: &MediaPlan) -> Option<String> {
    const NAMED: usize = 10;
    let image = plan.image.as_ref().filter(|i| !i.replaced.is_empty())?;
    let named: Vec<String> = image.replaced.iter().take(NAMED).map(u64::to_string).collect();
    let more = if image.replaced.len() > NAMED { ", ..." } else { "" };
    Some(format!(
        "damaged file: {} of {} sampled frames ({}{more}) did not decode; the picture before each stands in",
        image.replaced.len(),
        image.frames,
        named.join(", ")
    ))
}

/// A bar per stage on a terminal, a line per finished stage elsewhere.
struct View {
    bars: Option<MultiProgress>,
    stages: BTreeMap<StageName, ProgressBar>,
    quiet: bool,
}

impl View {
    fn new(style: Style) -> Self {
        let terminal = std::io::stderr().is_terminal() && !style.quiet;
        let bars = terminal.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        View { bars, stages: BTreeMap::new(), quiet: style.quiet }
    }

    fn show(&mut self, event: &Event) {
        match event {
            Event::Planned { plan, mode, cached } => self.line(&plan_line(plan, *mode, *cached)),
            Event::Queued { rank } if *rank > 0 => self.line(&format!("queued behind {rank}")),
            Event::Progress { stage, done, total } => self.progress(*stage, *done, *total),
            _ => {}
        }
    }

    fn line(&self, text: &str) {
        match &self.bars {
            _ if self.quiet => {}
            // An unwritable terminal loses a line of progress, not the answer.
            Some(bars) => drop(bars.println(text)),
            None => eprintln!("{text}"),
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

    fn clear(&mut self) {
        for bar in self.stages.values() {
            bar.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::plan::{AudioPlan, ImagePlan};

    #[test]
    fn who_asks_about_a_known_video_reads_that_no_stage_has_to_look_at_it() {
        let image = Some(ImagePlan::new(30, 10));
        let plan = MediaPlan { content_id: String::new(), duration_s: 10.0, image, audio: AudioPlan::new(160_000) };
        let first = plan_line(&plan, Mode::Streaming, false);
        assert_eq!(first, "plan: 10.0 s, 10 frames, 1960 image tokens, about 100 audio tokens, Streaming");
        let second = plan_line(&plan, Mode::Streaming, true);
        assert!(
            second.ends_with("1960 image tokens, 100 audio tokens, video known, only the question is read"),
            "{second}"
        );
    }
}
