//! Tests of the parsers of answers: what models write is read, nothing is an error, and what is read is in order.

use proptest::prelude::*;
use protocol::event::TimeRange;

use super::{Parser, Reading, Watched};

/// Ninety seconds of a video from its tenth on.
const WATCHED: Watched = Watched { start_s: 10.0, duration_s: 90.0 };

fn lenient(text: &str, duration_s: f64) -> Reading {
    Parser::Lenient.read(text, Watched::whole(duration_s))
}

fn pairs(ranges: &[TimeRange]) -> Vec<[f64; 2]> {
    ranges.iter().map(|r| [(r.start_s * 1e6).round() / 1e6, (r.end_s * 1e6).round() / 1e6]).collect()
}

#[test]
fn answers_of_many_forms_are_read_to_the_same_seconds() {
    let same = [
        "0.10-0.25, 0.50-0.60",
        "0.10 - 0.25, 0.50 – 0.60.",
        "<think>perhaps 0.90-0.95</think> <answer>0.10-0.25, 0.50-0.60</answer>",
        "10%-25% and 50 % to 60 %",
        "10-25%, 50-60%",
        "00:00:20-00:00:50, 00:01:40-00:02:00",
        "0:00:20.00 to 0:00:50.00; 0:01:40.00 to 0:02:00.00",
        "From 00:20 until 00:50, then between 01:40 and 2:00.",
        "20-50, 100-120",
        "20.0 s - 50.0 s, 100.0 s - 120.0 s",
        "1. from 20 to 50 seconds\n2. from 100 to 120 seconds",
        "(20, 50), (100, 120)",
        "[[20, 50], [100, 120]]",
        "The segments are [20.0, 50.0] and [100.0, 120.0].",
        "```json\n[{\"start\": 20, \"end\": 50}, {\"start\": 100.5, \"end\": 120}]\n```",
        "{\"segments\": [{\"start_time\": \"00:00:20\", \"end_time\": \"00:00:50\"}, {\"from\": 100, \"to\": 120}]}",
        "{\"answer\": \"0.10-0.25, 0.50-0.60\"}",
        "2-3 people are seen at 0.10-0.25 and 0.50-0.60",
        "50-60%; 10-25%",
        "00:00:20 --> 00:00:50, 00:01:40 --> 00:02:00",
    ];
    for text in same {
        let got = lenient(text, 200.0);
        let expected =
            if text.contains("100.5") { [[20.0, 50.0], [100.5, 120.0]] } else { [[20.0, 50.0], [100.0, 120.0]] };
        assert_eq!(pairs(&got.ranges), expected, "{text:?}");
        assert_eq!(got.reason, None, "{text:?}");
    }
}

#[test]
fn the_resolution_is_that_of_the_unit_that_was_written() {
    for (text, duration_s, resolution_s) in [
        ("0.10-0.25", 200.0, 2.0),
        ("0.100-0.2534", 200.0, 0.2),
        ("0-0.25", 200.0, 2.0),
        ("10%-25%", 200.0, 2.0),
        ("10.5%-25.1%", 200.0, 0.2),
        ("20.5-50.25 s", 200.0, 0.1),
        ("00:00:20-00:00:50.25", 200.0, 1.0),
        ("00:00:20.50-00:00:50.25", 200.0, 0.01),
        ("{\"start\": 0.1, \"end\": 0.25}", 200.0, 2.0),
        ("nothing", 200.0, 0.2),
    ] {
        assert_eq!(lenient(text, duration_s).resolution_s, Some(resolution_s), "{text:?}");
    }
}

#[test]
fn what_has_no_ranges_gives_none_and_says_why() {
    for (text, why) in [
        ("", "empty"),
        ("<answer></answer>", "empty"),
        ("<think>0.1-0.2", "<think>"),
        ("It never happens.", "no two times"),
        ("At 00:12 and at 00:15.", "no two times"),
        ("version 1.2.3-4", "no two times"),
        ("5-6 minutes", "no two times"),
        ("from 1 minute 20 seconds to 2 minutes", "no two times"),
        ("[0.1, 0.2, 0.3, 0.4]", "no two times"),
        ("{\"start\": 0.1", "no two times"),
        ("0.50-0.25", "ends before it begins"),
        ("300-400 s", "outside"),
        ("{\"start\": null, \"end\": true}", "no two times"),
    ] {
        let got = lenient(text, 200.0);
        assert!(got.ranges.is_empty(), "{text:?}: {:?}", got.ranges);
        assert!(got.reason.as_ref().is_some_and(|reason| reason.contains(why)), "{text:?}: {:?}", got.reason);
    }
}

#[test]
fn times_count_from_the_start_of_the_span_and_end_where_it_does() {
    let got = Parser::Lenient.read("50%-150%, 00:00-00:09", WATCHED);
    assert_eq!(pairs(&got.ranges), [[10.0, 19.0], [55.0, 100.0]]);
}

#[test]
fn boxes_are_read_beside_their_times_in_shares_of_the_picture() {
    let halves = [0.25, 0.5, 0.75, 1.0];
    for (text, start_s, end_s) in [
        ("0.50: [0.25, 0.5, 0.75, 1.0]", 100.0, 100.0),
        ("00:00:20-00:00:50: [250, 500, 750, 1000]", 20.0, 50.0),
        ("At 20 s the dog is at [0.25,0.5,0.75,1].", 20.0, 20.0),
        ("[{\"time\": \"00:20\", \"bbox\": [250, 500, 750, 1000]}]", 20.0, 20.0),
        ("{\"start\": 20, \"end\": 50, \"box\": [0.25, 0.5, 0.75, 1.0]}", 20.0, 50.0),
        ("{\"00:00:20\": [0.25, 0.5, 0.75, 1.0]}", 20.0, 20.0),
        ("<think>[0, 0, 1, 1]</think><answer>20-50 s [250, 500, 750, 1000]</answer>", 20.0, 50.0),
    ] {
        let got = Parser::Boxes.read(text, Watched::whole(200.0));
        assert_eq!(got.boxes.len(), 1, "{text:?}: {got:?}");
        assert_eq!((got.boxes[0].start_s, got.boxes[0].end_s, got.boxes[0].bbox), (start_s, end_s, halves), "{text:?}");
    }
    for (text, why) in [
        ("[0.1, 0.2, 0.3, 0.4]", "beside a time"),
        ("20 s: [0.4, 0.2, 0.3, 0.4]", "none of the 1 boxes"),
        ("20 s: [100, 200, 300, 2000]", "none of the 1 boxes"),
        ("999 s: [0.1, 0.2, 0.3, 0.4]", "none of the 1 boxes"),
    ] {
        let got = Parser::Boxes.read(text, Watched::whole(200.0));
        assert!(got.boxes.is_empty() && got.reason.as_ref().is_some_and(|r| r.contains(why)), "{text:?}: {got:?}");
    }
}

#[test]
fn every_parser_is_found_by_its_name() {
    for parser in Parser::ALL {
        assert_eq!(Parser::named(parser.as_str()), Some(parser));
        assert_eq!(serde_json::to_value(parser).unwrap(), parser.as_str());
    }
    assert_eq!(Parser::named("regex"), None);
}

/// Text that looks like an answer more often than chance would have it.
fn answer_like() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[0-9]{1,3}",
        "[0-9]\\.[0-9]{1,4}",
        "[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?",
        prop::sample::select(vec![
            "-",
            " - ",
            "–",
            " to ",
            "%",
            " s",
            ", ",
            "[",
            "]",
            "{",
            "}",
            "(",
            ")",
            "\"start\":",
            "\"end\":",
            "\"bbox\":",
            "\"time\":",
            ",",
            "<think>",
            "</think>",
            "<answer>",
            "</answer>",
            "between ",
            " and ",
            "é",
            "漢",
            ".",
            ":",
        ])
        .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// Ranges `0.a-0.b` in hundredths, rising and apart.
fn hundredths() -> impl Strategy<Value = Vec<[u32; 2]>> {
    prop::collection::btree_set(0u32..=100, 2..8).prop_map(|ends| {
        let ends: Vec<u32> = ends.into_iter().collect();
        ends.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect()
    })
}

fn written(ranges: &[[u32; 2]], one: impl Fn(u32) -> String) -> String {
    ranges.iter().map(|&[a, b]| format!("{}-{}", one(a), one(b))).collect::<Vec<_>>().join(", ")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_read_is_sorted_inside_of_the_video_or_has_a_reason(text in prop_oneof![answer_like(), any::<String>()]) {
        for parser in [Parser::Lenient, Parser::Boxes] {
            let got = parser.read(&text, WATCHED);
            let times: Vec<[f64; 2]> = match parser {
                Parser::Lenient => got.ranges.iter().map(|r| [r.start_s, r.end_s]).collect(),
                _ => got.boxes.iter().map(|b| [b.start_s, b.end_s]).collect(),
            };
            prop_assert!(times.iter().all(|[a, b]| 10.0 <= *a && a <= b && *b <= 100.0), "{times:?}");
            prop_assert!(times.windows(2).all(|two| two[0][0] <= two[1][0]), "{times:?}");
            prop_assert_eq!(times.is_empty(), got.reason.is_some());
            prop_assert!(got.resolution_s.is_some_and(|s| s.is_finite() && s >= 0.0));
            let in_picture = got.boxes.iter().flat_map(|b| b.bbox).all(|side| (0.0..=1.0).contains(&side));
            prop_assert!(in_picture, "{:?}", got.boxes);
        }
    }

    #[test]
    fn fractions_as_the_model_was_taught_are_the_same_to_both_parsers(ranges in hundredths(), duration_s in 0.1..9000f64) {
        let text = written(&ranges, |n| format!("{}.{:02}", n / 100, n % 100));
        let watched = Watched { start_s: 3.0, duration_s };
        let (reference, lenient) = (Parser::Reference.read(&text, watched), Parser::Lenient.read(&text, watched));
        prop_assert_eq!(reference, lenient);
    }

    #[test]
    fn ranges_are_read_back_from_every_form(ranges in hundredths()) {
        let expected: Vec<[f64; 2]> = ranges.iter().map(|range| range.map(|n| f64::from(n) * 36.0)).collect();
        let clock = |n: u32| format!("{:02}:{:02}:{:02}", n * 36 / 3600, n * 36 / 60 % 60, n * 36 % 60);
        let json: Vec<String> =
            ranges.iter().map(|[a, b]| format!("{{\"start\": \"{}\", \"end\": {}}}", clock(*a), b * 36)).collect();
        for text in [
            written(&ranges, |n| format!("{n}%")),
            written(&ranges, |n| format!("{} s", n * 36)),
            written(&ranges, clock),
            written(&ranges, |n| format!(" {} ", clock(n))),
            format!("[{}]", json.join(", ")),
        ] {
            let got = lenient(&text, 3600.0);
            prop_assert_eq!(pairs(&got.ranges), expected.clone(), "{:?}", text);
        }
    }
}
