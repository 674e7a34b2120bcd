//! Spatio-temporal grounding (VUE-STG): when and where is it seen?

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::csv;
use super::error::{EvalError, named};
use super::sheet::{Column, Property, Row, Sheet, Total};
use super::suite::{Suite, Truth};
use super::tubes::{self, Tube};

/// Scores of a query: of its seconds (t), of the boxes at them (v), of the boxes at seconds that both have.
const COLUMNS: [&str; 7] = ["t_P", "t_R", "t_IoU", "v_P", "v_R", "v_IoU", "v_IoU_Int"];

/// Properties of a query.
const PROPERTIES: [Property; 3] = [
    Property { name: "box", values: &["under 10 %", "10 to 30 %", "over 30 %"] },
    Property { name: "video", values: &["under 60 s", "60 to 600 s", "600 to 1800 s", "over 1800 s"] },
    Property { name: "truth", values: &["under 3 s", "3 to 10 s", "10 to 60 s", "over 60 s"] },
];

/// Query with what is known of it.
struct Query {
    id: String,
    about: String,
    /// Length of its video, seconds.
    video_s: Option<f64>,
}

/// Scores of a file of boxes. A query without boxes has been answered with none.
///
/// # Errors
/// A file that cannot be used; unless the truth is partial, boxes of queries that it does not have.
pub fn sheet(truth: &Truth, answers: &Path) -> Result<Sheet, EvalError> {
    let true_tubes = tubes::read(&truth.file)?;
    let said_tubes = tubes::read(answers)?;
    let queries = queries(truth, &true_tubes)?;
    let known: BTreeSet<&str> = queries.iter().map(|query| query.id.as_str()).collect();
    let unknown_in = |tubes: &BTreeMap<String, Tube>| -> Vec<String> {
        tubes.keys().filter(|id| !known.contains(id.as_str())).cloned().collect()
    };
    let unlisted = unknown_in(&true_tubes);
    if !unlisted.is_empty() {
        let what = format!("{} queries are not in the table of --queries: {}", unlisted.len(), named(&unlisted));
        return Err(EvalError::malformed(&truth.file, what));
    }
    let mut notes = Vec::new();
    let unknown = unknown_in(&said_tubes);
    if !unknown.is_empty() {
        if !truth.partial {
            return Err(EvalError::Unmatched { path: answers.into(), missing: Vec::new(), unknown });
        }
        notes.push(format!("{} answers are to unknown queries: {}", unknown.len(), named(&unknown)));
    }
    let without = queries.iter().filter(|query| said_tubes.get(&query.id).is_none_or(Tube::is_empty)).count();
    if without > 0 {
        notes.push(format!("{without} of {} queries are answered with no box", queries.len()));
    }
    let none = Tube::new();
    let row = |query: &Query| {
        let (said, true_tube) =
            (said_tubes.get(&query.id).unwrap_or(&none), true_tubes.get(&query.id).unwrap_or(&none));
        Row {
            id: query.id.clone(),
            about: query.about.clone(),
            groups: groups(&seen(true_tube), query.video_s),
            scores: scores(&seen(said), &seen(true_tube)).to_vec(),
        }
    };
    let rows = queries.iter().map(row).collect();
    let columns = COLUMNS.map(|name| Column { name, total: Total::Mean }).to_vec();
    Ok(Sheet { suite: Suite::Stg, properties: PROPERTIES.to_vec(), columns, rows, notes })
}

/// All queries: of the table of queries, else of the true boxes.
fn queries(truth: &Truth, true_tubes: &BTreeMap<String, Tube>) -> Result<Vec<Query>, EvalError> {
    let Some(table) = &truth.queries else {
        if truth.lengths.is_some() {
            let text = "--lengths needs --queries, which says which video a query is about";
            return Err(EvalError::Option(text.to_owned()));
        }
        let query = |id: &String| Query { id: id.clone(), about: String::new(), video_s: None };
        return Ok(true_tubes.keys().map(query).collect());
    };
    let lengths = truth.lengths.as_deref().map(lengths).transpose()?.unwrap_or_default();
    let (mut queries, mut seen) = (Vec::new(), BTreeSet::new());
    for record in csv::read(table, ["query_id", "query_text", "video_id"])? {
        let [id, text, video] = record.fields.map(|field| field.trim().to_owned());
        if !seen.insert(id.clone()) {
            return Err(EvalError::Repeated { path: table.into(), ids: vec![id] });
        }
        queries.push(Query { about: format!("{video}: {text}"), video_s: lengths.get(&video).copied(), id });
    }
    Ok(queries)
}

/// Lengths of videos, seconds.
fn lengths(table: &Path) -> Result<BTreeMap<String, f64>, EvalError> {
    let mut lengths = BTreeMap::new();
    for record in csv::read(table, ["video_id", "video_duration"])? {
        let [video, length] = record.fields;
        let seconds = length.trim().parse().ok().filter(|seconds: &f64| seconds.is_finite());
        let wrong = || {
            let what = format!("line {}: video_duration is {length:?}, and no number of seconds", record.line);
            EvalError::malformed(table, what)
        };
        lengths.insert(video.trim().to_owned(), seconds.ok_or_else(wrong)?);
    }
    Ok(lengths)
}

/// The boxes of a tube that have an area, by their seconds.
fn seen(tube: &Tube) -> Tube {
    tube.iter().filter(|(_, region)| region.area() > 0.0).map(|(second, region)| (*second, *region)).collect()
}

/// Scores of boxes, each 0 to 1, in the order of the columns; none where it would divide by zero.
fn scores(said: &Tube, truth: &Tube) -> [Option<f64>; 7] {
    let shared: Vec<f64> = said.iter().filter_map(|(second, region)| Some(region.iou(*truth.get(second)?))).collect();
    let overlap = shared.iter().fold(0.0, |sum, iou| sum + iou);
    let both = shared.len();
    let either = said.len() + truth.len() - both;
    let part = |of: f64, all: usize| (all > 0).then(|| of / all as f64);
    [
        part(both as f64, said.len()),
        part(both as f64, truth.len()),
        part(both as f64, either),
        part(overlap, said.len()),
        part(overlap, truth.len()),
        part(overlap, either),
        part(overlap, both),
    ]
}

/// Groups of a query: by the mean area of its true boxes, the length of its video, and the number of seconds with a true box.
fn groups(truth: &Tube, video_s: Option<f64>) -> Vec<Option<String>> {
    let seconds = truth.len();
    let area = truth.values().fold(0.0, |sum, region| sum + region.area()) / seconds.max(1) as f64;
    let [by_area, by_video, by_truth] = PROPERTIES.map(|property| property.values);
    let by_area = if area < 0.1 { by_area[0] } else { by_area[if area > 0.3 { 2 } else { 1 }] };
    let within = |values: &[&str], limits: [f64; 3], value: f64| {
        let at = usize::from(value >= limits[0]) + usize::from(value >= limits[1]) + usize::from(value > limits[2]);
        values[at].to_owned()
    };
    vec![
        (seconds > 0).then(|| by_area.to_owned()),
        video_s.map(|video_s| within(by_video, [60.0, 600.0, 1800.0], video_s)),
        (seconds > 0).then(|| within(by_truth, [3.0, 10.0, 60.0], seconds as f64)),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tubes::Region;
    use super::*;

    fn tube(boxes: &[(i64, [f64; 4])]) -> Tube {
        boxes.iter().map(|&(second, corners)| (second, Region::between(corners))).collect()
    }

    const LEFT: [f64; 4] = [0.0, 0.0, 0.5, 1.0];
    const WHOLE: [f64; 4] = [0.0, 0.0, 1.0, 1.0];

    #[test]
    fn seconds_and_boxes_are_scored_over_those_of_either() {
        let truth = tube(&[(1, WHOLE), (2, WHOLE), (3, WHOLE), (4, WHOLE)]);
        let said = tube(&[(3, WHOLE), (4, LEFT), (5, WHOLE)]);
        let want = [2.0 / 3.0, 0.5, 0.4, 0.5, 1.5 / 4.0, 0.3, 0.75];
        for (got, want) in scores(&said, &truth).into_iter().zip(want) {
            assert!((got.unwrap() - want).abs() < 1e-12, "{got:?} {want}");
        }
    }

    #[test]
    fn a_denominator_of_zero_gives_no_score() {
        let (truth, none) = (tube(&[(1, WHOLE)]), Tube::new());
        assert_eq!(scores(&none, &none), [None; 7]);
        let zero = Some(0.0);
        assert_eq!(scores(&none, &truth), [None, zero, zero, None, zero, zero, None]);
        assert_eq!(scores(&truth, &none), [zero, None, zero, zero, None, zero, None]);
        assert_eq!(scores(&tube(&[(2, WHOLE)]), &truth)[6], None);
    }

    #[test]
    fn a_box_without_an_area_is_none() {
        assert_eq!(seen(&tube(&[(1, [0.5, 0.0, 0.5, 1.0]), (2, LEFT), (3, [1.1, 0.0, 1.2, 1.0])])), tube(&[(2, LEFT)]));
    }

    #[test]
    fn queries_are_grouped_by_area_length_and_duration() {
        let boxes = |seconds: i64, corners| tube(&(0..seconds).map(|s| (s, corners)).collect::<Vec<_>>());
        let groups = |seconds, corners, video_s| {
            super::groups(&boxes(seconds, corners), video_s)
                .into_iter()
                .map(Option::unwrap_or_default)
                .collect::<Vec<String>>()
        };
        assert_eq!(groups(2, [0.0, 0.0, 0.5, 0.1], Some(59.9)), ["under 10 %", "under 60 s", "under 3 s"]);
        assert_eq!(groups(3, [0.0, 0.0, 0.5, 0.5], Some(60.0)), ["10 to 30 %", "60 to 600 s", "3 to 10 s"]);
        assert_eq!(groups(10, LEFT, Some(1800.0)), ["over 30 %", "600 to 1800 s", "10 to 60 s"]);
        assert_eq!(groups(61, LEFT, Some(1800.5)), ["over 30 %", "over 1800 s", "over 60 s"]);
        assert_eq!(groups(0, LEFT, None), ["", "", ""]);
    }

    #[test]
    fn unknown_queries_are_refused_and_queries_without_boxes_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let header = "query_id,time_ms,x0,y0,x1,y1\n";
        let mut truth = Truth {
            suite: Suite::Stg,
            file: file("truth", &format!("{header}a,1000,0,0,1,1\nb,1000,0,0,1,1\n")),
            queries: None,
            lengths: None,
            partial: false,
        };
        let said = file("said", &format!("{header}a,1000,0,0,1,1\n"));
        let scored = sheet(&truth, &said).unwrap();
        assert_eq!(scored.totals()[0].figures[1].value, Some(0.5));
        assert_eq!(scored.notes, ["1 of 2 queries are answered with no box"]);

        let odd = file("odd", &format!("{header}a,1000,0,0,1,1\nx,1000,0,0,1,1\n"));
        let error = sheet(&truth, &odd).unwrap_err();
        assert!(matches!(&error, EvalError::Unmatched { unknown, .. } if unknown == &["x"]), "{error}");
        truth.partial = true;
        assert!(sheet(&truth, &odd).unwrap().notes[0].contains("unknown queries: x"));

        truth.queries = Some(file("queries", "query_id,query_text,video_id\na,\"one, two\",v\nc,three,w\nb,four,v\n"));
        truth.lengths = Some(file("lengths", "video_id,video_duration\nv,59\n"));
        let scored = sheet(&truth, &said).unwrap();
        assert_eq!(
            scored.rows.iter().map(|row| row.about.as_str()).collect::<Vec<_>>(),
            ["v: one, two", "w: three", "v: four"]
        );
        assert_eq!((scored.rows[0].groups[1].as_deref(), &scored.rows[1].groups[1]), (Some("under 60 s"), &None));
        truth.lengths = Some(file("lengths", "video_id,video_duration\nv,59\nw,NaN\n"));
        assert!(sheet(&truth, &said).unwrap_err().to_string().contains("line 3: video_duration is \"NaN\""));
        truth.lengths = None;
        truth.queries = Some(file("queries", "query_id,query_text,video_id\na,one,v\n"));
        assert!(sheet(&truth, &said).unwrap_err().to_string().contains("not in the table of --queries: b"));
    }
}
