//! One time in a text: `01:02:03.5`, `2:03`, `12.5 s`, `34%` or a plain number.

/// Unit of a time as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Hours, minutes and seconds, or minutes and seconds: seconds once read.
    Clock,
    /// Seconds, by the word.
    Seconds,
    /// Percent of what was watched.
    Percent,
    /// None is written: a fraction of what was watched, or seconds.
    Plain,
}

/// Time as it is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Time {
    /// Value in its unit.
    pub value: f64,
    /// Unit of the value.
    pub unit: Unit,
    /// Digits behind the point.
    pub decimals: usize,
}

/// Words for seconds, longer ones first.
const SECONDS: [&str; 5] = ["seconds", "second", "secs", "sec", "s"];

/// Words for units that are not read: without them "5 minutes" would be five seconds.
const OTHERS: [&str; 11] = ["minutes", "minute", "mins", "min", "m", "hours", "hour", "hrs", "hr", "h", "ms"];

/// Time at the start of a text, and the bytes that it takes; none if no time stands there, or one in a unit that is not read.
pub fn time(text: &str) -> Option<(Time, usize)> {
    let (whole, mut at) = digits(text)?;
    let mut parts = vec![whole];
    while parts.len() < 3
        && let Some(rest) = text[at..].strip_prefix(':')
        && let Some((part, 2)) = digits(rest)
        && part < 60.0
    {
        parts.push(part);
        at += 3;
    }
    // A third part of another form: neither a clock time nor a number.
    if parts.len() > 1 && text[at..].strip_prefix(':').is_some_and(|rest| digits(rest).is_some()) {
        return None;
    }
    let (fraction, decimals) = decimals(&text[at..]);
    at += if decimals > 0 { decimals + 1 } else { 0 };
    if parts.len() > 1 {
        let whole = parts.iter().fold(0.0, |sum, part| sum * 60.0 + part);
        return Some((Time { value: whole + fraction, unit: Unit::Clock, decimals }, at));
    }
    // The digits themselves, so that a number is the same wherever it is read.
    let value = text[..at].parse().ok()?;
    let (unit, length) = unit(&text[at..])?;
    Some((Time { value, unit, decimals }, at + length))
}

/// Digits at the start of a text as a number, and how many there are.
fn digits(text: &str) -> Option<(f64, usize)> {
    let n = text.bytes().take_while(u8::is_ascii_digit).count();
    if n == 0 { None } else { Some((text[..n].parse().ok()?, n)) }
}

/// Digits behind a point at the start of a text as a fraction, and how many there are.
fn decimals(text: &str) -> (f64, usize) {
    let n = text.strip_prefix('.').map_or(0, |rest| rest.bytes().take_while(u8::is_ascii_digit).count());
    if n == 0 { (0.0, 0) } else { (text[..=n].parse().unwrap_or(0.0), n) }
}

/// Unit at the start of a text, behind white space or none, and the bytes that it takes; none for one that is not read.
fn unit(text: &str) -> Option<(Unit, usize)> {
    let rest = text.trim_start_matches([' ', '\u{a0}']);
    let space = text.len() - rest.len();
    if rest.starts_with('%') {
        return Some((Unit::Percent, space + 1));
    }
    let word = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
    let is_one_of = |names: &[&str]| names.iter().any(|name| rest[..word].eq_ignore_ascii_case(name));
    if is_one_of(&OTHERS) {
        return None;
    }
    Some(if is_one_of(&SECONDS) { (Unit::Seconds, space + word) } else { (Unit::Plain, 0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_unit() {
        use Unit::{Clock, Percent, Plain, Seconds};
        for (text, value, unit, decimals, length) in [
            ("01:02:03.25-", 3723.25, Clock, 2, 11),
            ("1:02:03", 3723.0, Clock, 0, 7),
            ("2:03 and", 123.0, Clock, 0, 4),
            ("90:00", 5400.0, Clock, 0, 5),
            ("12.5 s", 12.5, Seconds, 1, 6),
            ("12 Seconds.", 12.0, Seconds, 0, 10),
            ("34.5%", 34.5, Percent, 1, 5),
            ("34 %", 34.0, Percent, 0, 4),
            ("0.120-", 0.12, Plain, 3, 5),
            ("7 swans", 7.0, Plain, 0, 1),
            ("7.", 7.0, Plain, 0, 1),
        ] {
            let (time, taken) = time(text).unwrap();
            assert_eq!((time.value, time.unit, time.decimals, taken), (value, unit, decimals, length), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in ["", "s", ".5", ":30", "1:02:03:04", "12:30:7", "5 minutes", "2h", "40 ms"] {
            assert!(time(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn minutes_beyond_59_end_a_clock_time() {
        assert_eq!(time("12:75").unwrap().0, Time { value: 12.0, unit: Unit::Plain, decimals: 0 });
    }
}
