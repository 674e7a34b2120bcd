//! The end of a job as `vidi ask` shows it: an answer, a failure, or who cancelled it.

use config::RandomWeights;
use protocol::error::{JobError, StageName};
use protocol::event::{CancelledBy, JobResult};
use protocol::message::JobRequest;
use protocol::plan::MediaPlan;
use runtime::output::Unwritten;
use runtime::process::{Exit, Fatal};
use runtime::{answer, remark};

use super::Style;

/// Frames that are named of those that did not decode.
const NAMED_FRAMES: usize = 10;

/// The end of a job that failed; its kind is the first word.
pub fn failed(request: &JobRequest, error: &JobError, style: Style) -> Fatal {
    let shown =
        if style.json { answer!("{}", serde_json::json!({ "job": request.job, "error": error })) } else { Ok(()) };
    let kind = serde_json::to_value(error.kind).unwrap_or_default();
    ended(Exit::of_failed_job(error.kind), format!("{}: {error}", kind.as_str().unwrap_or("failed")), shown)
}

/// The end of a job that was cancelled, or whose deadline passed.
pub fn cancelled(request: &JobRequest, by: CancelledBy, stopped: &[StageName], ms: u64, style: Style) -> Fatal {
    let how = serde_json::json!({ "by": by, "stages_stopped": stopped, "ms": ms });
    let shown =
        if style.json { answer!("{}", serde_json::json!({ "job": request.job, "cancelled": how })) } else { Ok(()) };
    let what = match (by, request.deadline_s) {
        (CancelledBy::Client, _) => "cancelled: by a client".to_owned(),
        (CancelledBy::Operator, _) => "cancelled: by an operator".to_owned(),
        (CancelledBy::Deadline, Some(seconds)) => format!("deadline: {seconds} s from submission passed"),
        (CancelledBy::Deadline, None) => "deadline: it passed".to_owned(),
    };
    let stages: Vec<String> = stopped.iter().map(|s| format!("stage-{s}")).collect();
    let stages = if stages.is_empty() { "no stage was working on it".to_owned() } else { stages.join(", ") };
    ended(Exit::of_cancelled_job(by), format!("{what}; stopped within {ms} ms: {stages}"), shown)
}

/// The end of a job without an answer; that its object is not on standard output is said beside it.
fn ended(exit: Exit, text: String, shown: Result<(), Unwritten>) -> Fatal {
    match shown {
        Ok(()) => Fatal(exit, text),
        Err(unwritten) => Fatal(exit, format!("{text}; {unwritten}")),
    }
}

/// Prints an answer to standard output, and to standard error which frames of the video it does not rest on.
///
/// # Errors
/// When standard output cannot be written.
pub fn print(request: &JobRequest, result: &JobResult, style: Style) -> Result<(), Unwritten> {
    if let Some(warning) = replaced(&result.plan) {
        remark!("{warning}");
    }
    if style.json {
        let mut object = serde_json::to_value(result).unwrap_or_default();
        object["job"] = serde_json::json!(request.job);
        return answer!("{object}");
    }
    if let Some(noise) = noise(result) {
        return answer!("{noise}");
    }
    if result.ranges.is_empty() {
        // A terminal obeys control characters; an answer has no business commanding it.
        let harmless =
            |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { char::REPLACEMENT_CHARACTER } else { c };
        return answer!("{}", result.text.chars().map(harmless).collect::<String>());
    }
    for range in &result.ranges {
        answer!(
            "{}-{}",
            stage_llm::text::task::format_hms(range.start_s),
            stage_llm::text::task::format_hms(range.end_s)
        )?;
    }
    Ok(())
}

/// The line that stands for an answer of random weights; none for a model that somebody trained.
fn noise(result: &JobResult) -> Option<String> {
    // `random` alone may be a directory; what the stages make names its size.
    let name = Some(&result.model.name).filter(|name| name.contains(':'))?;
    let weights: RandomWeights = name.parse().ok()?;
    let (tokens, text) = (result.token_ids.len(), &result.text);
    Some(format!("{tokens} tokens of {weights}, which is no answer: {text:?}"))
}

/// Warning about frames that others stand in for; none where all decoded.
fn replaced(plan: &MediaPlan) -> Option<String> {
    let image = plan.image.as_ref().filter(|i| !i.replaced.is_empty())?;
    let named: Vec<String> = image.replaced.iter().take(NAMED_FRAMES).map(u64::to_string).collect();
    let more = if image.replaced.len() > NAMED_FRAMES { ", ..." } else { "" };
    Some(format!(
        "damaged file: {} of {} sampled frames ({}{more}) did not decode; the picture before each stands in",
        image.replaced.len(),
        image.frames,
        named.join(", ")
    ))
}
