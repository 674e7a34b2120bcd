//! The reference's own parser, and how it writes a time (MODEL.md 8).

use protocol::event::TimeRange;

use super::resolution::resolution_s;
use super::{Reading, Watched};

/// What the reference reads in an answer: its fractions, in their order, scaled to the part of the video that was watched.
pub fn read(answer: &str, watched: Watched) -> Reading {
    let ranges: Vec<TimeRange> = fractions(answer).into_iter().map(|pair| scaled(pair, watched)).collect();
    let why = || "the answer has no fractions like 0.12-0.34".to_owned();
    Reading {
        reason: ranges.is_empty().then(why),
        ranges,
        boxes: Vec::new(),
        resolution_s: Some(resolution_s(answer, watched.duration_s)),
        reference_text: None,
    }
}

/// Range of two fractions of what was watched: `start + fraction * duration`.
pub fn scaled((a, b): (f64, f64), watched: Watched) -> TimeRange {
    let second = |fraction: f64| watched.start_s + fraction * watched.duration_s;
    TimeRange { start_s: second(a), end_s: second(b), title: None }
}

/// Ranges in a text: all non-overlapping matches of `(\d\.\d+)-(\d\.\d+)`, left to right (MODEL.md 8).
pub fn fractions(text: &str) -> Vec<(f64, f64)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        let range = fraction(rest).filter(|&n| rest.get(n) == Some(&b'-')).and_then(|n| {
            let m = fraction(&rest[n + 1..])?;
            Some((n, n + 1 + m))
        });
        match range {
            Some((dash, end)) => {
                // Digits and a point always parse.
                let number = |s: &str| s.parse::<f64>().unwrap_or(0.0);
                found.push((number(&text[at..at + dash]), number(&text[at + dash + 1..at + end])));
                at += end;
            }
            None => at += 1,
        }
    }
    found
}

/// Length of `\d\.\d+` at the start of `bytes`.
fn fraction(bytes: &[u8]) -> Option<usize> {
    let [whole, b'.', decimals @ ..] = bytes else { return None };
    let n = decimals.iter().take_while(|b| b.is_ascii_digit()).count();
    (whole.is_ascii_digit() && n > 0).then_some(2 + n)
}

/// Seconds as `HH:MM:SS`, truncated, not rounded (MODEL.md 8).
pub fn format_hms(seconds: f64) -> String {
    let whole = seconds as u64;
    format!("{:02}:{:02}:{:02}", (seconds / 3600.0) as u64, whole % 3600 / 60, whole % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str, duration_s: f64) -> Vec<[f64; 2]> {
        read(text, Watched::whole(duration_s)).ranges.iter().map(|r| [r.start_s, r.end_s]).collect()
    }

    fn formatted(ranges: &[[f64; 2]]) -> String {
        let one = |r: &[f64; 2]| format!("{}-{}", format_hms(r[0]), format_hms(r[1]));
        ranges.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn ranges_are_found_scaled_and_written_as_the_reference_does() {
        // golden/units/units.json, `postprocess`.
        for (text, duration_s, expected) in [
            ("0.12-0.34, 0.56-0.78", 100.0, "00:00:12-00:00:34, 00:00:56-00:01:18"),
            ("0.00-1.00", 3725.5, "00:00:00-01:02:05"),
            ("0.5-0.75", 59.99, "00:00:29-00:00:44"),
            ("12.5-13.0", 10.0, ""),
            ("0.1-0.2-0.3-0.4", 1000.0, "00:01:40-00:03:20, 00:05:00-00:06:40"),
            ("0.999-1.000", 86400.0, "23:58:33-24:00:00"),
            ("no range", 10.0, ""),
            ("0.10 - 0.20", 10.0, ""),
            (" 0.25-0.50 ", 3600.0, "00:15:00-00:30:00"),
            ("0.12-.34", 10.0, ""),
            ("1-2", 10.0, ""),
            ("10.25-0.50", 400.0, "00:01:40-00:03:20"),
            ("0.3333333333-0.6666666666", 360_000.0, "33:19:59-66:39:59"),
            ("0.29-0.57", 100.0, "00:00:28-00:00:56"),
            ("é0.1-0.2漢0.3-0.4.", 10.0, "00:00:01-00:00:02, 00:00:03-00:00:04"),
            ("0.", 10.0, ""),
            ("0.1-", 10.0, ""),
            ("", 10.0, ""),
        ] {
            assert_eq!(formatted(&seconds(text, duration_s)), expected, "{text:?}");
        }
        assert_eq!(seconds("0.29-0.57", 100.0), [[28.999999999999996, 56.99999999999999]]);
    }

    #[test]
    fn what_the_reference_reads_is_neither_sorted_nor_clipped() {
        assert_eq!(seconds("0.75-0.50, 0.00-2.00", 10.0), [[7.5, 5.0], [0.0, 20.0]]);
    }

    #[test]
    fn ranges_of_a_span_count_from_the_start_of_the_video() {
        let ranges = read("0.25-0.50", Watched { start_s: 1000.0, duration_s: 40.0 }).ranges;
        assert_eq!((ranges[0].start_s, ranges[0].end_s), (1010.0, 1020.0));
    }

    #[test]
    fn an_answer_without_fractions_has_a_reason_and_one_with_them_has_none() {
        let reason = |text| read(text, Watched::whole(10.0)).reason;
        assert!(reason("00:01-00:02").is_some_and(|why| why.contains("0.12-0.34")) && reason("0.1-0.2").is_none());
    }
}
