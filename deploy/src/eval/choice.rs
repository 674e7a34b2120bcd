//! Multiple choice (VUE-PLOT, reasoning): which letter is right?

use std::path::Path;

use serde::Deserialize;

use super::error::EvalError;
use super::records::{Answers, Id, check_unrepeated, read};
use super::sheet::{Column, Property, Row, Sheet, Total};
use super::suite::{Suite, Truth};

/// Problem with its right answer. One file may hold the answers that were given too.
#[derive(Debug, Deserialize)]
struct Problem {
    #[serde(alias = "query_id", alias = "id")]
    problem_id: Id,
    #[serde(default)]
    video_id: Option<String>,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    answer: Option<String>,
}

/// Answer that was given to a problem.
#[derive(Debug, Deserialize)]
struct Given {
    #[serde(alias = "query_id", alias = "id")]
    problem_id: Id,
    #[serde(default)]
    pred_answer: Option<String>,
}

/// Scores of a file of answers. A problem without a right answer or without a given one is skipped.
///
/// # Errors
/// A file that cannot be used; answers that are not those to the truth's problems.
pub fn sheet(truth: &Truth, answers: &Path) -> Result<Sheet, EvalError> {
    let problems: Vec<Problem> = read(&truth.file)?;
    check_unrepeated(&truth.file, problems.iter().map(|problem| &problem.problem_id))?;
    let given: Vec<Given> = read(answers)?;
    let ids: Vec<Id> = problems.iter().map(|problem| problem.problem_id.clone()).collect();
    let given = given.into_iter().map(|given| (given.problem_id, given.pred_answer)).collect();
    let given = Answers::matched(answers, &ids, given, truth.partial)?;
    let (mut rows, mut skipped) = (Vec::new(), 0);
    for problem in problems {
        let Some(said) = given.get(&problem.problem_id) else { continue };
        match (&problem.answer, said) {
            (Some(right), Some(said)) => rows.push(Row {
                id: problem.problem_id.to_string(),
                about: format!("{}: {said:?}, right is {right:?}", problem.video_id.as_deref().unwrap_or("-")),
                scores: vec![Some(f64::from(u8::from(same(said, right))))],
                groups: vec![problem.task_type],
            }),
            _ => skipped += 1,
        }
    }
    let mut notes = given.left_out;
    if skipped > 0 {
        notes.push(format!("{skipped} problems are skipped: the right answer or the given one is missing"));
    }
    let properties = vec![Property { name: "task_type", values: &[] }];
    let columns = vec![Column { name: "accuracy", total: Total::Mean }];
    Ok(Sheet { suite: Suite::Plot, properties, columns, rows, notes })
}

/// Whether two answers are one, whatever their case and the white space around them.
fn same(a: &str, b: &str) -> bool {
    a.trim().to_uppercase() == b.trim().to_uppercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(truth: &str, given: &str, partial: bool) -> Result<Sheet, EvalError> {
        let dir = tempfile::tempdir().unwrap();
        let (file, answers) = (dir.path().join("truth"), dir.path().join("given"));
        std::fs::write(&file, truth).unwrap();
        std::fs::write(&answers, given).unwrap();
        sheet(&Truth { suite: Suite::Plot, file, queries: None, lengths: None, partial }, &answers)
    }

    #[test]
    fn a_letter_is_right_whatever_its_case_and_what_is_missing_is_skipped() {
        let truth = r#"[{"problem_id": 1, "answer": "C", "task_type": "x"}, {"problem_id": 2, "answer": "D", "task_type": "y"},
                        {"problem_id": 3, "answer": null}, {"problem_id": 4, "answer": "A"}]"#;
        let given = r#"[{"problem_id": 1, "pred_answer": " c\n"}, {"problem_id": 2, "pred_answer": "A"},
                        {"problem_id": 3, "pred_answer": "B"}, {"problem_id": 4}]"#;
        let sheet = scored(truth, given, false).unwrap();
        assert_eq!(sheet.rows.iter().map(|row| row.scores[0]).collect::<Vec<_>>(), [Some(1.0), Some(0.0)]);
        assert_eq!((sheet.totals()[0].figures[0].value, sheet.totals().len()), (Some(0.5), 3));
        assert_eq!(sheet.notes, ["2 problems are skipped: the right answer or the given one is missing"]);
    }

    #[test]
    fn a_problem_that_nobody_answered_is_refused_unless_a_part_is_scored() {
        let truth = "{\"problem_id\": 1, \"answer\": \"C\"}\n{\"problem_id\": 2, \"answer\": \"D\"}\n";
        let given = "{\"problem_id\": 1, \"pred_answer\": \"C\"}\n";
        assert!(matches!(scored(truth, given, false), Err(EvalError::Unmatched { missing, .. }) if missing == ["2"]));
        assert_eq!(scored(truth, given, true).unwrap().rows.len(), 1);
    }
}
