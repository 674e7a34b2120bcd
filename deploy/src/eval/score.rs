//! Scores of a file of answers, by the scorer of its benchmark.

use std::path::Path;

use super::error::EvalError;
use super::sheet::Sheet;
use super::suite::{Suite, Truth};
use super::{choice, grounding, retrieval};

/// Scores of a file of answers.
///
/// # Errors
/// A file that cannot be used; answers that are not those to the truth's queries; an option of another benchmark.
pub fn score(truth: &Truth, answers: &Path) -> Result<Sheet, EvalError> {
    let name = truth.suite.name();
    if truth.suite != Suite::Stg && (truth.queries.is_some() || truth.lengths.is_some()) {
        let text = format!(
            "--queries and --lengths are tables of VUE-STG, and this is {name}: take them out, or give --suite stg"
        );
        return Err(EvalError::Option(text));
    }
    let sheet = match truth.suite {
        Suite::Tr | Suite::TrV2 => retrieval::sheet(truth, answers),
        Suite::Stg => grounding::sheet(truth, answers),
        Suite::Plot => choice::sheet(truth, answers),
    }?;
    if sheet.rows.is_empty() {
        let what = format!("it has no query of {name} that has an answer: is it the benchmark of --suite?");
        return Err(EvalError::malformed(&truth.file, what));
    }
    Ok(sheet)
}
