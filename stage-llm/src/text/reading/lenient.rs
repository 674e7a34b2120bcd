//! Time ranges however a model writes them: fractions, percent, seconds, clock times, in sentences, brackets or JSON.

use protocol::event::TimeRange;

use super::reference::scaled;
use super::resolution::{of_fractions_s, of_seconds_s};
use super::time::{Time, Unit, time};
use super::{Reading, Watched, envelope, json, shape};

/// Two times that belong together, as they are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// First time.
    pub start: Time,
    /// Second time.
    pub end: Time,
}

/// Signs and words between two times of a range; longer ones before those that they begin with.
const BETWEEN: [&str; 10] = ["-->", "-", "–", "—", "−", "~", "to", "until", "till", "through"];

/// Ranges in an answer, sorted and clipped to what was watched. Times count from the start of what was watched.
///
/// Numbers without a unit are fractions if none of the answer's is over 1 and one of them has a point; else they are seconds.
/// Whole numbers without a unit are no times beside numbers with a point ("2-3 people at 0.10-0.20").
pub fn read(answer: &str, watched: Watched) -> Reading {
    let text = match envelope::answer(answer) {
        Ok("") => return Reading::nothing("the answer is empty", watched),
        Ok(text) => text,
        Err(why) => return Reading::nothing(why, watched),
    };
    let mut found = json::pairs(text);
    if found.is_empty() {
        found = pairs(text);
    }
    if found.is_empty() {
        return Reading::nothing("the answer has no two times that make a range", watched);
    }
    in_seconds(&found, watched)
}

/// Reading of pairs, with a reason if none of them is a range of what was watched.
fn in_seconds(pairs: &[Pair], watched: Watched) -> Reading {
    let scale = Scale::of(pairs.iter().flat_map(|pair| [pair.start, pair.end]));
    let is_time = |pair: &&Pair| scale.is_time(pair.start) && scale.is_time(pair.end);
    let used: Vec<&Pair> = pairs.iter().filter(is_time).collect();
    let ranges = used.iter().map(|pair| scale.range(pair.start, pair.end, watched)).collect();
    let ranges = shape::clipped(ranges, watched);
    if ranges.is_empty() {
        let reason = format!(
            "each of the {} ranges of the answer ends before it begins, or lies outside of the {:.1} s that were watched",
            used.len(),
            watched.duration_s
        );
        return Reading::nothing(reason, watched);
    }
    let times = used.iter().flat_map(|pair| [pair.start, pair.end]);
    let resolution_s = times.map(|time| scale.resolution_s(time, watched)).reduce(f64::max);
    Reading { ranges, resolution_s, ..Reading::default() }
}

/// Meaning of an answer's numbers without a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    fractions: bool,
    pointed: bool,
}

impl Scale {
    /// Scale of all times of an answer together.
    pub fn of(times: impl Iterator<Item = Time>) -> Self {
        let plain: Vec<Time> = times.filter(|time| time.unit == Unit::Plain).collect();
        let pointed = plain.iter().any(|time| time.decimals > 0);
        let mut counted = plain.iter().filter(|time| !pointed || time.decimals > 0 || time.value <= 1.0);
        Scale { fractions: pointed && counted.all(|time| time.value <= 1.0), pointed }
    }

    /// Whether a number is meant as a time.
    fn is_time(self, time: Time) -> bool {
        time.unit != Unit::Plain || !self.pointed || time.decimals > 0 || time.value <= 1.0 || !self.fractions
    }

    /// Fraction of what was watched, or none for a time in seconds.
    fn fraction(self, time: Time) -> Option<f64> {
        match time.unit {
            Unit::Percent => Some(time.value / 100.0),
            Unit::Plain if self.fractions => Some(time.value),
            Unit::Clock | Unit::Seconds | Unit::Plain => None,
        }
    }

    /// Range of two times, in seconds from the start of the video.
    pub fn range(self, start: Time, end: Time, watched: Watched) -> TimeRange {
        let second = |time: Time| match self.fraction(time) {
            // The reference's own formula, so that what both parsers read is the same.
            Some(fraction) => scaled((fraction, fraction), watched).start_s,
            None => watched.start_s + time.value,
        };
        TimeRange { start_s: second(start), end_s: second(end), title: None }
    }

    /// Seconds that the last digit of a time stands for.
    pub fn resolution_s(self, time: Time, watched: Watched) -> f64 {
        match (self.fraction(time), time.unit) {
            (Some(_), Unit::Percent) => of_fractions_s(time.decimals + 2, watched.duration_s),
            // "0" and "1" beside fractions are as exact as those.
            (Some(_), _) if time.decimals == 0 => 0.0,
            (Some(_), _) => of_fractions_s(time.decimals, watched.duration_s),
            (None, _) => of_seconds_s(time.decimals),
        }
    }
}

/// Pairs of times in a text, left to right: two times with a sign or a word between them, "between" one and another, or two
/// alone in brackets.
pub fn pairs(text: &str) -> Vec<Pair> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some((start, from, length)) = next_time(text, at) {
        let behind = from + length;
        match second_time(words_before(&text[..from]), &text[behind..]) {
            Some((end, taken)) => {
                found.push(same_unit(start, end));
                at = behind + taken;
            }
            None => at = behind,
        }
    }
    found
}

/// First time at or behind a byte of a text, the byte where it begins, and its length. A digit that continues a word or a
/// number begins none.
fn next_time(text: &str, from: usize) -> Option<(Time, usize, usize)> {
    let digits = text[from..].match_indices(|c: char| c.is_ascii_digit()).map(|(n, _)| from + n);
    let mut skip_to = from;
    for at in digits {
        if at < skip_to {
            continue;
        }
        let before = text[..at].chars().next_back();
        if !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '.' | ':' | '_'))
            && let Some((time, length)) = time(&text[at..])
        {
            return Some((time, at, length));
        }
        // The rest of this number is no time either.
        skip_to = at + text[at..].bytes().take_while(|b| b.is_ascii_digit() || matches!(b, b'.' | b':')).count();
    }
    None
}

/// End of a text, long enough to see a bracket or "between", without white space behind it.
fn words_before(text: &str) -> &str {
    let text = text.trim_end();
    let start = text.char_indices().rev().nth("between".len() - 1).map_or(0, |(at, _)| at);
    &text[start..]
}

/// Second time of a range in what stands behind the first, and the bytes up to its end.
fn second_time(before: &str, behind: &str) -> Option<(Time, usize)> {
    let rest = behind.trim_start();
    let starts = |sign: &str| rest.get(..sign.len()).is_some_and(|start| start.eq_ignore_ascii_case(sign));
    let between = before.to_ascii_lowercase().ends_with("between");
    let bracketed = before.ends_with(['(', '[']) && starts(",");
    let sign = match BETWEEN.iter().find(|sign| starts(sign)) {
        Some(sign) => *sign,
        None if between && starts("and") => "and",
        None if bracketed => ",",
        None => return None,
    };
    let rest = rest[sign.len()..].trim_start();
    let (time, length) = time(rest)?;
    // A third number in the brackets makes them another thing than a range.
    if sign == "," && !rest[length..].trim_start().starts_with([')', ']']) {
        return None;
    }
    Some((time, behind.len() - rest.len() + length))
}

/// Two times, of which one that has no unit has the other's: "12-34%", "5 to 10 seconds".
fn same_unit(mut start: Time, mut end: Time) -> Pair {
    match (start.unit, end.unit) {
        (Unit::Plain, Unit::Percent | Unit::Seconds) => start.unit = end.unit,
        (Unit::Percent | Unit::Seconds, Unit::Plain) => end.unit = start.unit,
        _ => {}
    }
    Pair { start, end }
}
