//! Ranges of a composite task, made of the answers to several questions or of the pictures' changes.

use protocol::event::{Answer, TimeRange};

use crate::job::pictures::Pictures;
use crate::text::reading::Watched;
use crate::text::reading::shape::{clipped, joined};

/// Ranges that a composite task found, and sentences on those that it left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Ranges by their start, seconds from the start of the video.
    pub ranges: Vec<TimeRange>,
    /// Sentences on what was left out.
    pub notes: Vec<String>,
    /// Resolution of the times, seconds.
    pub resolution_s: Option<f64>,
}

/// Rule by which ranges of several answers become those of one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Seconds that two ranges may be apart to become one.
    pub join_s: f64,
    /// Share of what was watched over which a range is left out.
    pub largest_share: f64,
    /// Most ranges.
    pub most: usize,
}

/// Ranges of all answers together: those over the largest share left out, near and overlapping ones joined as far as the whole
/// is not over it, the first ones kept.
pub fn of_answers(answers: &[Answer], rule: Rule, watched: Watched) -> Found {
    let largest_s = rule.largest_share * watched.duration_s;
    let is_large = |range: &TimeRange| range.end_s - range.start_s > largest_s;
    let all = clipped(answers.iter().flat_map(|answer| answer.ranges.clone()).collect(), watched);
    let count = all.len();
    let small: Vec<TimeRange> = all.into_iter().filter(|range| !is_large(range)).collect();
    let large = count - small.len();
    // Ranges that touch are one, whatever the rule.
    let mut ranges = joined(small, rule.join_s.max(f64::MIN_POSITIVE), largest_s);
    let mut notes = Vec::new();
    if large > 0 {
        let percent = rule.largest_share * 100.0;
        notes.push(format!("{large} ranges cover more than {percent:.0} % of the video and are left out"));
    }
    if ranges.len() > rule.most {
        notes.push(format!("{} ranges after the first {} are left out", ranges.len() - rule.most, rule.most));
        ranges.truncate(rule.most);
    }
    let resolution_s = answers.iter().filter_map(|answer| answer.resolution_s).reduce(f64::max);
    Found { ranges, notes, resolution_s }
}

/// Parts of a video between changes of its pictures; their times are known to the distance of two sampled frames.
pub fn of_pictures(pictures: &Pictures, frames: u64, min_s: f64, most: usize, watched: Watched) -> Found {
    let starts = pictures.parts(watched.duration_s, min_s, most);
    let ends = starts.iter().skip(1).copied().chain([watched.duration_s]);
    let part = |(start_s, end_s)| TimeRange {
        start_s: watched.start_s + start_s,
        end_s: watched.start_s + end_s,
        title: None,
    };
    let ranges: Vec<TimeRange> = starts.iter().copied().zip(ends).map(part).collect();
    let notes = if ranges.len() == 1 {
        vec![format!("no change of the pictures leaves two parts of at least {min_s} s: the video is one")]
    } else {
        Vec::new()
    };
    let step_s = watched.duration_s / frames.max(1) as f64;
    Found { ranges, notes, resolution_s: Some((step_s * 1e6).round() / 1e6) }
}

/// Ranges with the first line of each title; an empty one is none, and so is one that was not asked for.
pub fn titled<'a>(ranges: Vec<TimeRange>, mut titles: impl Iterator<Item = &'a str>) -> Vec<TimeRange> {
    let line = |text: &str| text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned);
    ranges.into_iter().map(|range| TimeRange { title: titles.next().and_then(line), ..range }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::event::Finish;

    const WATCHED: Watched = Watched { start_s: 100.0, duration_s: 100.0 };

    fn answer(pairs: &[[f64; 2]], resolution_s: f64) -> Answer {
        let ranges = pairs.iter().map(|&[start_s, end_s]| TimeRange { start_s, end_s, title: None }).collect();
        Answer {
            query: String::new(),
            text: String::new(),
            token_ids: Vec::new(),
            finish: Finish::Stop,
            ranges,
            boxes: Vec::new(),
            reason: None,
            resolution_s: Some(resolution_s),
            reference_text: None,
        }
    }

    fn pairs(found: &Found) -> Vec<[f64; 2]> {
        found.ranges.iter().map(|r| [r.start_s, r.end_s]).collect()
    }

    #[test]
    fn near_ranges_of_several_answers_are_one_and_too_long_ones_are_counted() {
        let answers = [
            answer(&[[150.0, 160.0], [100.0, 199.0]], 1.0),
            answer(&[[161.0, 170.0], [110.0, 112.0], [90.0, 101.0]], 10.0),
        ];
        let found = of_answers(&answers, Rule { join_s: 2.0, largest_share: 0.5, most: 12 }, WATCHED);
        assert_eq!(pairs(&found), [[100.0, 101.0], [110.0, 112.0], [150.0, 170.0]]);
        assert_eq!((found.notes.len(), found.resolution_s), (1, Some(10.0)));
        assert!(found.notes[0].starts_with("1 ranges cover more than 50 %"), "{:?}", found.notes);
        let half = answer(&[[100.0, 149.0], [149.0, 170.0]], 1.0);
        let found = of_answers(&[half], Rule { join_s: 2.0, largest_share: 0.5, most: 12 }, WATCHED);
        assert_eq!(pairs(&found), [[100.0, 149.0], [149.0, 170.0]], "nothing is lost by being joined");
        let few = of_answers(&answers, Rule { join_s: 0.0, largest_share: 1.0, most: 1 }, WATCHED);
        assert_eq!((few.ranges.len(), pairs(&few)[0]), (1, [100.0, 199.0]), "ranges that overlap are one");
    }

    #[test]
    fn ranges_beyond_the_most_are_counted() {
        let answers = [answer(&[[100.0, 101.0], [110.0, 111.0], [120.0, 121.0]], 1.0)];
        let found = of_answers(&answers, Rule { join_s: 0.0, largest_share: 0.5, most: 2 }, WATCHED);
        assert_eq!(
            (found.ranges.len(), found.notes.as_slice()),
            (2, ["1 ranges after the first 2 are left out".to_owned()].as_slice())
        );
    }

    #[test]
    fn parts_cover_what_was_watched_and_say_when_there_is_but_one() {
        let found = of_pictures(&Pictures::default(), 50, 10.0, 24, WATCHED);
        assert_eq!((pairs(&found), found.resolution_s), (vec![[100.0, 200.0]], Some(2.0)));
        assert!(found.notes[0].contains("at least 10 s"), "{:?}", found.notes);
    }

    #[test]
    fn a_title_is_the_first_line_that_says_something() {
        let ranges = of_answers(
            &[answer(&[[100.0, 101.0], [110.0, 111.0]], 1.0)],
            Rule { join_s: 0.0, largest_share: 0.5, most: 9 },
            WATCHED,
        )
        .ranges;
        let titles: Vec<_> =
            titled(ranges, ["\n A dog runs. \nMore.", " "].into_iter()).into_iter().map(|r| r.title).collect();
        assert_eq!(titles, [Some("A dog runs.".to_owned()), None]);
    }
}
