//! Time ranges in JSON that stands somewhere in a text.

use serde_json::{Map, Value};

use super::pairs::{Pair, pairs as pairs_of_text};
use super::time::{Time, Unit, time};

/// Names of a range's two times, in the forms that models write.
const ENDS: [(&str, &str); 7] = [
    ("start", "end"),
    ("start_time", "end_time"),
    ("start_s", "end_s"),
    ("startTime", "endTime"),
    ("begin", "end"),
    ("from", "to"),
    ("t0", "t1"),
];

/// Longest text that is searched for JSON, bytes: a longer one is no answer of 8192 tokens.
const MOST_BYTES: usize = 256 << 10;

/// Pairs of times in the JSON values of a text: objects with a start and an end, lists of two times, texts with ranges. All
/// numbers have the decimals of the finest of them: JSON does not keep the zeros that one may have ended with.
pub fn pairs(text: &str) -> Vec<Pair> {
    let mut found = Vec::new();
    for value in values(text) {
        walk(&value, &mut found);
    }
    let written = |time: &Time| if time.unit == Unit::Clock { 0 } else { time.decimals };
    let finest = found.iter().flat_map(|pair| [written(&pair.start), written(&pair.end)]).max().unwrap_or(0);
    for time in found.iter_mut().flat_map(|pair| [&mut pair.start, &mut pair.end]) {
        if time.unit != Unit::Clock && time.decimals > 0 {
            time.decimals = finest;
        }
    }
    found
}

/// Objects and lists in a text, in their order; what is cut off or damaged is left out.
pub fn values(text: &str) -> Vec<Value> {
    let mut found = Vec::new();
    let mut at = 0;
    while text.len() <= MOST_BYTES
        && let Some(next) = text[at..].find(['{', '['])
    {
        at += next;
        let mut stream = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        match stream.next() {
            Some(Ok(value)) => {
                found.push(value);
                at += stream.byte_offset().max(1);
            }
            _ => at += 1,
        }
    }
    found
}

/// Time of a JSON number or text, if it is one.
pub fn scalar(value: &Value) -> Option<Time> {
    match value {
        Value::Number(number) => whole(&number.to_string()),
        Value::String(text) => whole(text.trim()),
        _ => None,
    }
}

/// Time that is all of a text.
pub fn whole(text: &str) -> Option<Time> {
    time(text).filter(|(_, length)| *length == text.len()).map(|(time, _)| time)
}

/// Start and end that an object names, if it does. Names with the unit in them say it.
pub fn ends(object: &Map<String, Value>) -> Option<Pair> {
    ENDS.iter().find_map(|&(start, end)| {
        let mut pair = Pair { start: scalar(object.get(start)?)?, end: scalar(object.get(end)?)? };
        for time in [&mut pair.start, &mut pair.end] {
            if start.ends_with("_s") && time.unit == Unit::Plain {
                time.unit = Unit::Seconds;
            }
        }
        Some(pair)
    })
}

/// Depth is bounded: serde_json reads 128 levels at most.
fn walk(value: &Value, found: &mut Vec<Pair>) {
    match value {
        Value::Object(object) => match ends(object) {
            Some(pair) => found.push(pair),
            None => object.values().for_each(|value| walk(value, found)),
        },
        Value::Array(values) => match values.as_slice() {
            [start, end] if scalar(start).is_some() && scalar(end).is_some() => {
                found.extend(scalar(start).zip(scalar(end)).map(|(start, end)| Pair { start, end }));
            }
            values => values.iter().for_each(|value| walk(value, found)),
        },
        Value::String(text) => found.extend(pairs_of_text(text)),
        _ => {}
    }
}
