//! The end of a job as `vidi ask` shows it: an answer, a failure, or who cancelled it.

use config::RandomWeights;
use protocol::error::{JobError, StageName};
use protocol::event::{Answer, CancelledBy, JobResult, Supported, TimeRange, TimedBox};
use protocol::message::JobRequest;
use protocol::plan::MediaPlan;
use runtime::output::Unwritten;
use runtime::process::{Exit, Fatal};
use runtime::{answer, remark};
use stage_llm::text::reading::Parser;
use stage_llm::text::reading::reference::format_hms;

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

/// Prints an answer to standard output, and to standard error which frames and tracks of the video it does not rest on.
///
/// # Errors
/// When standard output cannot be written.
pub fn print(request: &JobRequest, result: &JobResult, style: Style) -> Result<(), Unwritten> {
    if let Some(warning) = replaced(&result.plan) {
        remark!("{warning}");
    }
    result.plan.notes.iter().for_each(|note| remark!("{note}"));
    if style.json {
        let mut object = serde_json::to_value(result).unwrap_or_default();
        object["job"] = serde_json::json!(request.job);
        return answer!("{object}");
    }
    if let Some(noise) = noise(result) {
        return answer!("{noise}");
    }
    remarks(result).iter().for_each(|sentence| remark!("{sentence}"));
    answer!("{}", shown(result))
}

/// Sentences on what an answer is worth and what it leaves out.
fn remarks(result: &JobResult) -> Vec<String> {
    let mut sentences = Vec::new();
    if result.supported == Some(Supported::Experimental) {
        let task = &result.task;
        sentences
            .push(format!("task {task:?} is experimental: this model was not trained for it, and may answer nonsense"));
    }
    sentences.extend(result.reason.iter().map(|reason| format!("no times: {reason}")));
    sentences.extend(result.notes.iter().cloned());
    sentences
}

/// An answer as lines: its ranges, boxes or text; of several questions, each below its query.
fn shown(result: &JobResult) -> String {
    let format = Parser::named(&result.parser).map_or(format_hms as fn(f64) -> String, Parser::format);
    if result.supported == Some(Supported::Composite) || result.answers.is_empty() {
        return one(&result.text, &result.ranges, &result.boxes, format);
    }
    let answered = |answer: &Answer| {
        let reason = answer.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
        let lines = one(&answer.text, &answer.ranges, &answer.boxes, format);
        let lines: Vec<String> = lines.lines().map(|line| format!("  {line}")).collect();
        format!("{}{reason}\n{}", harmless(&answer.query), lines.join("\n"))
    };
    result.answers.iter().map(answered).collect::<Vec<_>>().join("\n")
}

/// One answer as lines, in whole seconds: what is below them is seldom known.
fn one(text: &str, ranges: &[TimeRange], boxes: &[TimedBox], format: fn(f64) -> String) -> String {
    let range = |r: &TimeRange| {
        let times = format!("{}-{}", format(r.start_s), format(r.end_s));
        r.title.as_ref().map_or(times.clone(), |title| format!("{times} {}", harmless(title)))
    };
    let timed = |b: &TimedBox| {
        let times = format!("{}-{}", format_hms(b.start_s), format_hms(b.end_s));
        format!("{times} [{}]", b.bbox.map(|side| format!("{side:.3}")).join(", "))
    };
    let lines: Vec<String> = ranges.iter().map(range).chain(boxes.iter().map(timed)).collect();
    if lines.is_empty() { harmless(text) } else { lines.join("\n") }
}

/// Text without what a terminal obeys: an answer has no business commanding it.
fn harmless(text: &str) -> String {
    let one = |c: char| if c.is_control() && !matches!(c, '\n' | '\t') { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(one).collect()
}

/// The line that stands for an answer of random weights; none for a model that somebody trained.
fn noise(result: &JobResult) -> Option<String> {
    // `random` alone may be a directory; what the stages make names its size.
    let name = Some(&result.model.name).filter(|name| name.contains(':'))?;
    let weights: RandomWeights = name.parse().ok()?;
    let (tokens, text) = (result.answer_tokens(), &result.text);
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

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::event::Finish;

    fn range(start_s: f64, end_s: f64, title: Option<&str>) -> TimeRange {
        TimeRange { start_s, end_s, title: title.map(str::to_owned) }
    }

    /// Result as an old stage-llm writes it: without what came since.
    fn old() -> JobResult {
        let json = serde_json::json!({
            "text": "0.1-0.2", "token_ids": [1], "finish": "stop", "ranges": [], "cached": false,
            "plan": MediaPlan::default(), "timings": protocol::event::Timings::default(), "memory": {},
            "model": protocol::event::ModelName::default(),
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn an_answer_is_its_ranges_and_else_its_text_without_control_characters() {
        let ranges = vec![range(12.9, 61.0, None)];
        assert_eq!(shown(&JobResult { ranges: ranges.clone(), ..old() }), "00:00:12-00:01:01");
        let of_7b = JobResult { ranges, parser: "reference-7b".to_owned(), ..old() };
        assert_eq!(shown(&of_7b), "00:00:12.00-00:01:01.00");
        assert_eq!(shown(&JobResult { text: "a\u{1b}[2Jb".to_owned(), ..old() }), "a\u{fffd}[2Jb");
    }

    #[test]
    fn several_answers_stand_below_their_queries_and_titles_beside_their_ranges() {
        let answer = |query: &str, ranges: Vec<TimeRange>| Answer {
            query: query.to_owned(),
            text: "never".to_owned(),
            token_ids: Vec::new(),
            finish: Finish::Stop,
            reason: ranges.is_empty().then(|| "why".to_owned()),
            ranges,
            boxes: Vec::new(),
            resolution_s: None,
            reference_text: None,
        };
        let answers = vec![answer("a cat", vec![range(1.0, 2.0, None)]), answer("a dog", Vec::new())];
        let several = JobResult { answers: answers.clone(), ..old() };
        assert_eq!(shown(&several), "a cat\n  00:00:01-00:00:02\na dog (why)\n  never");
        let ranges = vec![range(1.0, 2.0, Some("A cat."))];
        let composite = JobResult { answers, ranges, supported: Some(Supported::Composite), ..old() };
        assert_eq!(shown(&composite), "00:00:01-00:00:02 A cat.");
    }

    #[test]
    fn what_an_experimental_task_answers_is_said_to_be_that() {
        let result = JobResult { supported: Some(Supported::Experimental), notes: vec!["a note".to_owned()], ..old() };
        assert!(remarks(&result)[0].contains("not trained") && remarks(&result)[1] == "a note");
        assert!(remarks(&old()).is_empty());
    }
}
