//! Two times that belong together, in sentences and brackets.

use super::time::{Time, Unit, time};

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
