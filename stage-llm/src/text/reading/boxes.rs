//! Boxes beside times, for grounding.

use protocol::event::{TimeRange, TimedBox};
use serde_json::Value;

use super::pairs::{Pair, pairs};
use super::scale::Scale;
use super::time::{Time, time};
use super::{Reading, Watched, envelope, json, shape};

/// Names of a box in an object.
const BOXES: [&str; 4] = ["bbox", "box", "bbox_2d", "box_2d"];
/// Names of a box's one time, or of a text with two.
const TIMES: [&str; 4] = ["time", "timestamp", "time_s", "t"];
/// Most characters of a box in a text.
const LONGEST: usize = 128;
/// Largest coordinate of a box that is written in thousandths of the picture.
const THOUSANDTHS: f64 = 1000.0;

/// Box as it is written, with the times beside it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Written {
    times: Pair,
    sides: [f64; 4],
}

/// Boxes in an answer, sorted by time: `[x0, y0, x1, y1]` from 0 to 1, or from 0 to 1000 if one of the answer's coordinates is
/// over 1; each with the time, or the range of times, that stands before it, or beside it in JSON.
pub fn read(answer: &str, watched: Watched) -> Reading {
    let text = match envelope::answer(answer) {
        Ok("") => return Reading::nothing("the answer is empty", watched),
        Ok(text) => text,
        Err(why) => return Reading::nothing(why, watched),
    };
    let mut written = Vec::new();
    for value in json::values(text) {
        of_json(&value, None, &mut written);
    }
    if written.is_empty() {
        written = of_text(text);
    }
    let scale = Scale::of(written.iter().flat_map(|w| [w.times.start, w.times.end]));
    let in_thousandths = written.iter().flat_map(|w| w.sides).any(|side| side > 1.0);
    let mut boxes: Vec<TimedBox> = written.iter().filter_map(|w| placed(w, scale, in_thousandths, watched)).collect();
    boxes.sort_by(|a, b| a.start_s.total_cmp(&b.start_s).then(a.end_s.total_cmp(&b.end_s)));
    if boxes.is_empty() {
        let reason = match written.len() {
            0 => "the answer has no box [x0, y0, x1, y1] beside a time".to_owned(),
            n => format!("none of the {n} boxes of the answer lies in the picture and in what was watched"),
        };
        return Reading::nothing(reason, watched);
    }
    let times = written.iter().flat_map(|w| [w.times.start, w.times.end]);
    let resolution_s = times.map(|time| scale.resolution_s(time, watched)).reduce(f64::max);
    Reading { boxes, resolution_s, ..Reading::default() }
}

/// Box in seconds and shares of the picture; none for one that is empty, or outside of picture or video.
fn placed(written: &Written, scale: Scale, in_thousandths: bool, watched: Watched) -> Option<TimedBox> {
    let range = scale.range(written.times.start, written.times.end, watched);
    let TimeRange { start_s, end_s, .. } = shape::clipped(vec![range], watched).pop()?;
    let unit = if in_thousandths { THOUSANDTHS } else { 1.0 };
    let bbox @ [x0, y0, x1, y1] = written.sides.map(|side| side / unit);
    let inside = bbox.iter().all(|side| (0.0..=1.0).contains(side));
    (inside && x0 < x1 && y0 < y1).then_some(TimedBox { start_s, end_s, bbox })
}

/// Boxes in JSON: `{"time": 1, "bbox": [..]}`, `{"start": 1, "end": 2, "bbox": [..]}`, `{"00:01": [..]}`.
fn of_json(value: &Value, times: Option<Pair>, found: &mut Vec<Written>) {
    match value {
        Value::Object(object) => {
            let own = json::ends(object).or_else(|| TIMES.iter().find_map(|name| one_or_two(object.get(*name)?)));
            let times = own.or(times);
            for (name, value) in object {
                let of_name = json::whole(name.trim()).map(|time| Pair { start: time, end: time });
                match (sides(value), of_name.or(times)) {
                    (Some(sides), Some(times)) if of_name.is_some() || BOXES.contains(&name.as_str()) => {
                        found.push(Written { times, sides });
                    }
                    (Some(_), _) => {}
                    (None, times) => of_json(value, times, found),
                }
            }
        }
        Value::Array(values) => match (sides(value), times) {
            (Some(sides), Some(times)) => found.push(Written { times, sides }),
            _ => values.iter().for_each(|value| of_json(value, times, found)),
        },
        _ => {}
    }
}

/// One time twice, or the two of a text or list.
fn one_or_two(value: &Value) -> Option<Pair> {
    if let Some(time) = json::scalar(value) {
        return Some(Pair { start: time, end: time });
    }
    match value {
        Value::String(text) => pairs(text).pop(),
        Value::Array(times) => match times.as_slice() {
            [start, end] => Some(Pair { start: json::scalar(start)?, end: json::scalar(end)? }),
            _ => None,
        },
        _ => None,
    }
}

/// Four numbers of a list.
fn sides(value: &Value) -> Option<[f64; 4]> {
    let numbers: Option<Vec<f64>> = value.as_array()?.iter().map(Value::as_f64).collect();
    numbers?.try_into().ok()
}

/// Boxes in a text: lists of four numbers, each with the last time before it and behind the box before.
fn of_text(text: &str) -> Vec<Written> {
    let mut found = Vec::new();
    let (mut from, mut at, mut times) = (0, 0, None);
    while let Some(open) = text[at..].find('[') {
        let open = at + open;
        at = open + 1;
        let close = text[open..].char_indices().take(LONGEST).find(|(_, c)| *c == ']');
        let Some((close, _)) = close else { continue };
        let numbers: Vec<&str> = text[open + 1..open + close].split(',').map(str::trim).collect();
        let numbers: Option<Vec<f64>> =
            numbers.iter().map(|n| n.parse().ok().filter(|n: &f64| n.is_finite())).collect();
        let Some(sides) = numbers.and_then(|n| <[f64; 4]>::try_from(n).ok()) else { continue };
        times = last_times(&text[from..open]).or(times);
        found.extend(times.map(|times| Written { times, sides }));
        at = open + close + 1;
        from = at;
    }
    found
}

/// Last pair of times in a text, or its last time twice.
fn last_times(text: &str) -> Option<Pair> {
    pairs(text).pop().or_else(|| {
        let starts = |at: &usize| !text[..*at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '.' | ':' | '_'));
        let digits = text.match_indices(|c: char| c.is_ascii_digit()).map(|(at, _)| at).filter(starts);
        let last: Option<Time> = digits.filter_map(|at| time(&text[at..])).map(|(time, _)| time).next_back();
        last.map(|time| Pair { start: time, end: time })
    })
}
