//! Time ranges however a model writes them: fractions, percent, seconds, clock times, in sentences, brackets or JSON.

use super::pairs::{Pair, pairs};
use super::scale::Scale;
use super::{Reading, Watched, envelope, json, shape};

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
