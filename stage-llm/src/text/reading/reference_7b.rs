//! The parser of Vidi 7B's reference, and how it writes a time (MODEL-7B.md, "Post-processing").

use protocol::event::TimeRange;

use super::reference::{format_hms, scaled};
use super::resolution::resolution_s;
use super::{Reading, Watched};

/// What the reference reads in an answer: its numbers, as fractions, in their order, scaled to the part of the video that
/// was watched. Pairs in which one is no number, such as `0.1.2` or `|`, end the reference's program; here they are left
/// out.
pub fn read(answer: &str, watched: Watched) -> Reading {
    let ranges: Vec<TimeRange> = fractions(answer).into_iter().map(|pair| scaled(pair, watched)).collect();
    let why = || match matches(answer).first() {
        None => "the answer has no numbers like 0.12-0.34".to_owned(),
        Some((a, b)) => format!("the answer has {a}-{b}, in which one is no number"),
    };
    Reading {
        reason: ranges.is_empty().then(why),
        reference_text: (!ranges.is_empty()).then(|| ranges.iter().map(printed).collect::<Vec<_>>().join(", ")),
        ranges,
        boxes: Vec::new(),
        resolution_s: Some(resolution_s(answer, watched.duration_s)),
    }
}

/// Ranges in a text: the [`matches`] of which both are numbers.
pub fn fractions(text: &str) -> Vec<(f64, f64)> {
    let number = |text: &str| text.parse::<f64>().ok();
    matches(text).into_iter().filter_map(|(a, b)| Some((number(a)?, number(b)?))).collect()
}

/// Pairs of texts in an answer: all non-overlapping matches of `([\d|\.]+)-([\d|\.]+)`, left to right.
pub fn matches(text: &str) -> Vec<(&str, &str)> {
    let is_of_class = |c: char| c.is_ascii_digit() || c == '|' || c == '.';
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(is_of_class) {
        rest = &rest[start..];
        let (first, behind) = rest.split_at(rest.find(|c| !is_of_class(c)).unwrap_or(rest.len()));
        rest = behind;
        let Some(second) = behind.strip_prefix('-').filter(|second| second.starts_with(is_of_class)) else { continue };
        let (second, behind) = second.split_at(second.find(|c| !is_of_class(c)).unwrap_or(second.len()));
        found.push((first, second));
        rest = behind;
    }
    found
}

/// Seconds as `HH:MM:SS.00`: the reference's own time, with both digits of its seconds. It cuts the fraction of a second off.
pub fn format_padded(seconds: f64) -> String {
    format!("{}.00", format_hms(seconds))
}

/// Seconds as the reference prints them: `HH:MM:S.00`, seconds not padded.
pub fn format_as_printed(seconds: f64) -> String {
    let whole = seconds as u64;
    format!("{:02}:{:02}:{}.00", (seconds / 3600.0) as u64, whole % 3600 / 60, whole % 60)
}

fn printed(range: &TimeRange) -> String {
    format!("{}-{}", format_as_printed(range.start_s), format_as_printed(range.end_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str, duration_s: f64) -> Vec<[f64; 2]> {
        read(text, Watched::whole(duration_s)).ranges.iter().map(|r| [r.start_s, r.end_s]).collect()
    }

    #[test]
    fn pairs_are_found_as_the_reference_finds_them() {
        // Of Python: re.findall(r"([\d|\.]+)-([\d|\.]+)", text).
        for (text, expected) in [
            ("0.12-0.34, 0.56-0.78", &[("0.12", "0.34"), ("0.56", "0.78")][..]),
            ("0.1-0.2-0.3-0.4", &[("0.1", "0.2"), ("0.3", "0.4")]),
            ("1.-2", &[("1.", "2")]),
            ("0.1.2-0.3", &[("0.1.2", "0.3")]),
            ("|-|", &[("|", "|")]),
            ("0.1|-.5", &[("0.1|", ".5")]),
            ("é0.1-0.2漢0.3-0.4.", &[("0.1", "0.2"), ("0.3", "0.4.")]),
            ("12-34", &[("12", "34")]),
            ("0.1--0.2, 0.3-", &[]),
            ("-0.1-0.2", &[("0.1", "0.2")]),
            ("0.10 - 0.20", &[]),
            ("...-...", &[("...", "...")]),
            ("none", &[]),
            ("", &[]),
        ] {
            assert_eq!(matches(text), expected, "{text:?}");
        }
    }

    #[test]
    fn numbers_are_fractions_of_what_was_watched_and_what_is_no_number_is_left_out() {
        assert_eq!(seconds("0.12-0.34", 100.0), [[12.0, 34.0]]);
        assert_eq!(seconds("1.-0.5, .25-2", 10.0), [[10.0, 5.0], [2.5, 20.0]], "neither sorted nor clipped");
        assert_eq!(seconds("0.1.2-0.3, |-1, 0.5-0.75", 10.0), [[5.0, 7.5]]);
        let reading = read("0.1.2-0.3", Watched::whole(10.0));
        assert!(reading.ranges.is_empty() && reading.reason.as_ref().is_some_and(|why| why.contains("0.1.2-0.3")));
        assert!(read("no", Watched::whole(10.0)).reason.is_some_and(|why| why.contains("0.12-0.34")));
        let of_span = read("0.25-0.50", Watched { start_s: 1000.0, duration_s: 40.0 }).ranges;
        assert_eq!((of_span[0].start_s, of_span[0].end_s), (1010.0, 1020.0));
    }

    #[test]
    fn times_are_padded_and_beside_them_stand_as_the_reference_prints_them() {
        // Of Python: "{:02d}:{:02d}:{:.2f}".format(int(t / 3600), (int(t) % 3600) // 60, int(t) % 60).
        for (t, printed, padded) in [
            (0.0, "00:00:0.00", "00:00:00.00"),
            (5.99, "00:00:5.00", "00:00:05.00"),
            (59.999, "00:00:59.00", "00:00:59.00"),
            (60.0, "00:01:0.00", "00:01:00.00"),
            (3725.5, "01:02:5.00", "01:02:05.00"),
            (360_000.0, "100:00:0.00", "100:00:00.00"),
        ] {
            assert_eq!((format_as_printed(t).as_str(), format_padded(t).as_str()), (printed, padded));
        }
        let reading = read("0.05-0.10, 0.5-0.75", Watched::whole(100.0));
        assert_eq!(reading.reference_text.as_deref(), Some("00:00:5.00-00:00:10.00, 00:00:50.00-00:01:15.00"));
    }
}
