//! Temporal retrieval (VUE-TR, VUE-TR-V2): when does it happen?

use std::path::Path;

use serde::Deserialize;

use super::curve::Reach;
use super::error::EvalError;
use super::ranges::{Overlap, iou, of_two_numbers, whole_seconds};
use super::records::{Answers, Id, check_unrepeated, read};
use super::sheet::{Column, Property, Row, Sheet, Total};
use super::suite::{Suite, Truth};

/// Scores of a query.
const COLUMNS: [Column; 3] = [
    Column { name: "precision", total: Total::Area(Reach::AtLeast) },
    Column { name: "recall", total: Total::Area(Reach::AtLeast) },
    Column { name: "IoU", total: Total::Area(Reach::Above) },
];

/// Properties of a query.
const PROPERTIES: [Property; 3] = [
    Property { name: "duration_category", values: &["ultra-short", "short", "medium", "long", "ultra-long"] },
    Property { name: "query_format", values: &["keyword", "phrase", "sentence"] },
    Property { name: "query_modality", values: &["vision", "audio", "vision+audio"] },
];

/// Query with its true answer.
#[derive(Clone, Debug, Deserialize)]
pub struct Query {
    /// Its name.
    #[serde(alias = "id")]
    pub query_id: Id,
    /// The video that it is about.
    pub video_id: String,
    /// Length of the video, seconds.
    #[serde(default)]
    pub duration: Option<f64>,
    /// What is looked for, in words.
    pub query: String,
    /// True answer: starts and ends, seconds. `[[]]` is empty, as `[]` is.
    pub gt: Vec<Vec<f64>>,
    /// Kind of the question.
    #[serde(default)]
    pub task: Option<String>,
    /// How long the video is, in a word.
    #[serde(default)]
    pub duration_category: Option<String>,
    /// Whether the query is a keyword, a phrase or a sentence.
    #[serde(default)]
    pub query_format: Option<String>,
    /// Whether it is about what is seen, heard, or both.
    #[serde(default)]
    pub query_modality: Option<String>,
}

/// Answer to a query; none where asking failed.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(alias = "id")]
    query_id: Id,
    #[serde(default)]
    answer: Option<Vec<Vec<f64>>>,
}

/// Queries of a truth file, each once.
///
/// # Errors
/// A file that cannot be used.
pub fn queries(truth: &Path) -> Result<Vec<Query>, EvalError> {
    let queries: Vec<Query> = read(truth)?;
    check_unrepeated(truth, queries.iter().map(|query| &query.query_id))?;
    Ok(queries)
}

/// Scores of a file of answers.
///
/// # Errors
/// A file that cannot be used; answers that are not those to the truth's queries.
pub fn sheet(truth: &Truth, answers: &Path) -> Result<Sheet, EvalError> {
    let queries = queries(&truth.file)?;
    let said: Vec<Answer> = read(answers)?;
    let failed = said.iter().filter(|said| said.answer.is_none()).count();
    let said = said.into_iter().filter_map(|said| Some((said.query_id, said.answer?))).collect();
    let ids: Vec<Id> = queries.iter().map(|query| query.query_id.clone()).collect();
    let said = Answers::matched(answers, &ids, said, truth.partial)?;
    let mut notes = said.left_out.clone();
    if failed > 0 {
        notes.push(format!("{failed} lines have no answer: asking failed"));
    }
    let mut unreadable = 0;
    let mut rows = Vec::new();
    for query in &queries {
        let Some(listed) = said.get(&query.query_id) else { continue };
        let odd = |ranges: &[Vec<f64>]| ranges.iter().filter(|range| !matches!(range.len(), 0 | 2)).count();
        unreadable += odd(listed) + odd(&query.gt);
        rows.push(row(truth.suite, query, listed));
    }
    if unreadable > 0 {
        notes.push(format!("{unreadable} ranges have not two numbers and count as none"));
    }
    Ok(Sheet { suite: truth.suite, properties: PROPERTIES.to_vec(), columns: COLUMNS.to_vec(), rows, notes })
}

/// Scores of one answer.
fn row(suite: Suite, query: &Query, listed: &[Vec<f64>]) -> Row {
    let said = whole_seconds(&of_two_numbers(listed));
    let truth = of_two_numbers(&query.gt);
    let overlap = Overlap::between(&said, &truth);
    Row {
        id: query.query_id.to_string(),
        about: format!("{}: {}", query.video_id, query.query),
        groups: vec![query.duration_category.clone(), query.query_format.clone(), query.query_modality.clone()],
        scores: vec![overlap.precision(suite == Suite::TrV2), overlap.recall(), Some(iou(&said, &truth))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores of answers against truths that are numbered from 0.
    fn scored(suite: Suite, truths: &[&str], answers: &[&str]) -> Result<Sheet, EvalError> {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, key: &str, listed: &[&str]| {
            let line = |(at, ranges): (usize, &&str)| {
                format!("{{\"query_id\": {at}, \"video_id\": \"v\", \"query\": \"q\", \"{key}\": {ranges}}}\n")
            };
            let path = dir.path().join(name);
            std::fs::write(&path, listed.iter().enumerate().map(line).collect::<String>()).unwrap();
            path
        };
        let file = write("truth", "gt", truths);
        let truth = Truth { suite, file, queries: None, lengths: None, partial: false };
        sheet(&truth, &write("answers", "answer", answers))
    }

    fn scores(suite: Suite, truth: &str, answer: &str) -> Vec<Option<f64>> {
        scored(suite, &[truth], &[answer]).unwrap().rows[0].scores.clone()
    }

    #[test]
    fn an_answer_is_widened_to_whole_seconds_and_the_truth_is_not() {
        assert_eq!(scores(Suite::Tr, "[[2.0, 5.5]]", "[[2.4, 5.5]]"), [Some(3.5 / 4.0), Some(1.0), Some(3.5 / 4.0)]);
    }

    #[test]
    fn an_empty_answer_is_right_where_there_is_no_truth_and_the_second_version_gives_it_a_precision() {
        for empty in ["[]", "[[]]"] {
            for truth in ["[]", "[[]]"] {
                assert_eq!(scores(Suite::TrV2, truth, empty), [Some(1.0), None, Some(1.0)]);
                assert_eq!(scores(Suite::Tr, truth, empty), [None, None, Some(1.0)]);
            }
            assert_eq!(scores(Suite::TrV2, "[[1, 2]]", empty), [None, Some(0.0), Some(0.0)]);
            assert_eq!(scores(Suite::TrV2, empty, "[[1, 2]]"), [Some(0.0), None, Some(0.0)]);
        }
    }

    #[test]
    fn precision_is_a_mean_over_the_answers_that_say_something() {
        let sheet = scored(Suite::TrV2, &["[[0, 4]]", "[[0, 4]]"], &["[[0, 4]]", "[]"]).unwrap();
        let totals = &sheet.totals()[0];
        let over: Vec<usize> = totals.figures.iter().map(|figure| figure.over).collect();
        assert_eq!((totals.queries, over), (2, vec![1, 2, 2]));
        assert!((totals.figures[0].value.unwrap() - 1.0).abs() < 1e-12, "{totals:?}");
    }

    #[test]
    fn ranges_that_have_not_two_numbers_are_counted() {
        let sheet = scored(Suite::Tr, &["[[0, 4], [7]]"], &["[[0, 4], [1, 2, 3], []]"]).unwrap();
        assert_eq!(sheet.rows[0].scores, [Some(1.0), Some(1.0), Some(1.0)]);
        assert_eq!(sheet.notes, ["2 ranges have not two numbers and count as none"]);
    }

    #[test]
    fn a_line_without_an_answer_is_none_and_an_answer_behind_it_counts() {
        let error = scored(Suite::Tr, &["[[0, 4]]"], &["null"]).unwrap_err();
        assert!(matches!(&error, EvalError::Unmatched { missing, .. } if missing == &["0"]), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let (file, answers) = (dir.path().join("truth"), dir.path().join("answers"));
        std::fs::write(&file, r#"[{"query_id": 7, "video_id": "v", "query": "q", "gt": [[0, 4]]}]"#).unwrap();
        std::fs::write(&answers, "{\"query_id\": 7, \"error\": {}}\n{\"id\": \"7\", \"answer\": [[0, 4]]}\n").unwrap();
        let truth = Truth { suite: Suite::Tr, file, queries: None, lengths: None, partial: false };
        let sheet = sheet(&truth, &answers).unwrap();
        assert_eq!((sheet.rows.len(), sheet.notes), (1, vec!["1 lines have no answer: asking failed".to_owned()]));
    }
}
