//! Answers as texts, their time ranges in the two forms that clients of this interface read.

use protocol::event::{JobResult, Supported, TimeRange};
use stage_llm::text::reading::Parser;
use stage_llm::text::reading::reference::format_hms;
use stage_llm::text::reading::reference_7b::format_padded;

/// Text of a result: the model's words, or its ranges in a form where the parser looks for some. Of several questions a line for
/// each, of a composite task a line for each range, with its title.
pub fn text(result: &JobResult, form: fn(&[TimeRange]) -> String) -> String {
    if result.supported == Some(Supported::Composite) {
        let titled = |range: &TimeRange| {
            let times = form(std::slice::from_ref(range));
            range.title.as_ref().map_or(times.clone(), |title| format!("{times} {title}"))
        };
        return result.ranges.iter().map(titled).collect::<Vec<_>>().join("\n");
    }
    let has_ranges = match Parser::named(&result.parser) {
        Some(parser) => parser.finds_ranges(),
        // Of a stage-llm that does not say it.
        None => !result.ranges.is_empty(),
    };
    let one = |text: &str, ranges: &[TimeRange]| if has_ranges { form(ranges) } else { text.to_owned() };
    if result.answers.is_empty() {
        return one(&result.text, &result.ranges);
    }
    result.answers.iter().map(|answer| one(&answer.text, &answer.ranges)).collect::<Vec<_>>().join("\n")
}

/// `HH:MM:SS-HH:MM:SS, ...`, truncated as the reference does.
pub fn whole_seconds(ranges: &[TimeRange]) -> String {
    joined(ranges, format_hms)
}

/// In the form of the model's reference, by the parser that read the ranges: `HH:MM:SS.00-HH:MM:SS.00, ...` of Vidi 7B, with
/// the zeros that its reference leaves out, else [`whole_seconds`].
pub fn by_reference(parser: &str) -> fn(&[TimeRange]) -> String {
    match Parser::named(parser) {
        Some(Parser::Reference7b) => |ranges| joined(ranges, format_padded),
        _ => whole_seconds,
    }
}

/// `HH:MM:SS.ff-HH:MM:SS.ff, ...`, to the nearest hundredth.
pub fn hundredths(ranges: &[TimeRange]) -> String {
    joined(ranges, |seconds| {
        let ticks = (seconds * 100.0).round().max(0.0) as u64;
        let whole = ticks / 100;
        format!("{:02}:{:02}:{:02}.{:02}", whole / 3600, whole / 60 % 60, whole % 60, ticks % 100)
    })
}

fn joined(ranges: &[TimeRange], form: impl Fn(f64) -> String) -> String {
    let range = |range: &TimeRange| format!("{}-{}", form(range.start_s), form(range.end_s));
    ranges.iter().map(range).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn result(more: serde_json::Value) -> JobResult {
        let mut result = json!({
            "text": "0.1-0.2", "token_ids": [1], "finish": "stop", "ranges": [], "cached": false,
            "plan": protocol::plan::MediaPlan::default(), "timings": protocol::event::Timings::default(), "memory": {},
            "model": protocol::event::ModelName::default(),
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            result[name] = value.clone();
        }
        serde_json::from_value(result).unwrap()
    }

    #[test]
    fn an_answer_is_ranges_where_its_parser_looks_for_some_and_a_line_for_each_question_or_title() {
        let range = json!({ "start_s": 1.0, "end_s": 2.0 });
        let said = |more| text(&result(more), whole_seconds);
        assert_eq!(said(json!({ "parser": "reference", "ranges": [range] })), "00:00:01-00:00:02");
        assert_eq!(said(json!({ "parser": "reference" })), "");
        assert_eq!(said(json!({ "parser": "text" })), "0.1-0.2");
        assert_eq!(said(json!({ "ranges": [range] })), "00:00:01-00:00:02");
        let answer = |ranges| json!({ "query": "x", "text": "t", "token_ids": [], "finish": "stop", "ranges": ranges });
        let answers = json!([answer(json!([range])), answer(json!([]))]);
        assert_eq!(said(json!({ "parser": "lenient", "answers": answers })), "00:00:01-00:00:02\n");
        assert_eq!(said(json!({ "parser": "text", "answers": answers })), "t\nt");
        let titled = json!({ "start_s": 1.0, "end_s": 2.0, "title": "A cat." });
        let composite =
            json!({ "supported": "composite", "parser": "text", "ranges": [titled, titled], "answers": answers });
        assert_eq!(said(composite), "00:00:01-00:00:02 A cat.\n00:00:01-00:00:02 A cat.");
    }

    #[test]
    fn ranges_are_written_with_all_their_zeros() {
        let range = |start_s, end_s| TimeRange { start_s, end_s, title: None };
        let ranges = [range(1.005, 2.999), range(3599.996, 36_000.5)];
        assert_eq!(hundredths(&ranges), "00:00:01.00-00:00:03.00, 01:00:00.00-10:00:00.50");
        assert_eq!(whole_seconds(&ranges), "00:00:01-00:00:02, 00:59:59-10:00:00");
        assert_eq!(by_reference("reference")(&ranges), whole_seconds(&ranges));
        assert_eq!(by_reference("reference-7b")(&ranges), "00:00:01.00-00:00:02.00, 00:59:59.00-10:00:00.00");
        assert_eq!((hundredths(&[]).as_str(), whole_seconds(&[]).as_str()), ("", ""));
    }
}
