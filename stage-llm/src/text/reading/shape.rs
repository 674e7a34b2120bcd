//! Ranges sorted, clipped to what was watched, joined and padded.

use protocol::event::TimeRange;

use super::Watched;

/// Ranges by their start, cut off at both ends of what was watched. Left out are those that end before they begin, those that
/// lie outside, and those that are no numbers.
pub fn clipped(mut ranges: Vec<TimeRange>, watched: Watched) -> Vec<TimeRange> {
    let (first, last) = (watched.start_s, watched.start_s + watched.duration_s);
    ranges.retain(|r| r.start_s <= r.end_s && r.end_s.is_finite() && r.start_s <= last && r.end_s >= first);
    for range in &mut ranges {
        range.start_s = range.start_s.clamp(first, last);
        range.end_s = range.end_s.clamp(first, last);
    }
    sort(&mut ranges);
    ranges
}

/// Ranges by their start, with those that lie at most `join_s` seconds behind the one before made one with it; the first title
/// stays. What would be over `longest_s` long stays apart. Nothing changes with a `join_s` of 0.
pub fn joined(mut ranges: Vec<TimeRange>, join_s: f64, longest_s: f64) -> Vec<TimeRange> {
    if join_s <= 0.0 {
        return ranges;
    }
    sort(&mut ranges);
    let mut whole: Vec<TimeRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match whole.last_mut() {
            Some(last)
                if range.start_s - last.end_s <= join_s && range.end_s.max(last.end_s) - last.start_s <= longest_s =>
            {
                last.end_s = last.end_s.max(range.end_s);
                last.title = last.title.take().or(range.title);
            }
            _ => whole.push(range),
        }
    }
    whole
}

/// Ranges with `pad_s` seconds more at both ends, as far as something was watched there. Nothing changes with 0; ranges that
/// overlap now stay apart.
pub fn padded(mut ranges: Vec<TimeRange>, pad_s: f64, watched: Watched) -> Vec<TimeRange> {
    if pad_s > 0.0 {
        for range in &mut ranges {
            // A start or an end outside of what was watched stays where it is.
            range.start_s = (range.start_s - pad_s).max(watched.start_s.min(range.start_s));
            range.end_s = (range.end_s + pad_s).min((watched.start_s + watched.duration_s).max(range.end_s));
        }
    }
    ranges
}

fn sort(ranges: &mut [TimeRange]) {
    ranges.sort_by(|a, b| a.start_s.total_cmp(&b.start_s).then(a.end_s.total_cmp(&b.end_s)));
}

#[cfg(test)]
mod tests {
    use super::*;

    const WATCHED: Watched = Watched { start_s: 10.0, duration_s: 20.0 };

    fn ranges(pairs: &[[f64; 2]]) -> Vec<TimeRange> {
        pairs.iter().map(|&[start_s, end_s]| TimeRange { start_s, end_s, title: None }).collect()
    }

    fn pairs(ranges: &[TimeRange]) -> Vec<[f64; 2]> {
        ranges.iter().map(|r| [r.start_s, r.end_s]).collect()
    }

    #[test]
    fn ranges_are_sorted_and_cut_off_where_nothing_was_watched() {
        let got = clipped(
            ranges(&[[25.0, 99.0], [5.0, 12.0], [15.0, 14.0], [31.0, 40.0], [f64::NAN, 12.0], [0.0, f64::INFINITY]]),
            WATCHED,
        );
        assert_eq!(pairs(&got), [[10.0, 12.0], [25.0, 30.0]]);
    }

    #[test]
    fn near_ranges_become_one_and_far_ones_stay_apart() {
        let some = ranges(&[[18.0, 19.0], [11.0, 14.0], [12.0, 13.0], [15.0, 16.0]]);
        assert_eq!(pairs(&joined(some.clone(), 1.0, f64::INFINITY)), [[11.0, 16.0], [18.0, 19.0]]);
        assert_eq!(joined(some.clone(), 0.0, f64::INFINITY), some, "0 leaves even the order");
        assert_eq!(
            pairs(&joined(some, 2.0, 5.0)),
            [[11.0, 16.0], [18.0, 19.0]],
            "16 to 18 is near, the whole too long"
        );
    }

    #[test]
    fn handles_end_where_the_video_does() {
        let some = ranges(&[[11.0, 12.0], [20.0, 29.5]]);
        assert_eq!(pairs(&padded(some.clone(), 2.0, WATCHED)), [[10.0, 14.0], [18.0, 30.0]]);
        assert_eq!(padded(some.clone(), 0.0, WATCHED), some);
        assert_eq!(pairs(&padded(ranges(&[[5.0, 40.0]]), 2.0, WATCHED)), [[5.0, 40.0]]);
    }
}
