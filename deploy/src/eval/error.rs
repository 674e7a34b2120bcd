//! Errors of `vidi eval`, each with what to do about it.

use std::io;
use std::path::PathBuf;

use runtime::process::{Exit, Fatal};

/// Names that an error shows of those that it is about.
const NAMED: usize = 20;

/// Reason for which answers were not scored, or could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A file or directory that cannot be read.
    #[error("cannot read {}: {why}", .path.display())]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// The system's word.
        why: io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write {}: {why}", .path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The system's word.
        why: io::Error,
    },
    /// A file that is not what it should be.
    #[error("cannot use {}: {what}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, where, and what to do.
        what: String,
    },
    /// Queries that a file has twice.
    #[error("cannot use {}: it has {} queries more than once: {}; keep one line for each", .path.display(), .ids.len(), named(.ids))]
    Repeated {
        /// The file.
        path: PathBuf,
        /// Their names.
        ids: Vec<String>,
    },
    /// Answers that are not those to the truth's queries.
    #[error("cannot score {}: {}", .path.display(), unmatched(.missing, .unknown))]
    Unmatched {
        /// The file of answers.
        path: PathBuf,
        /// Queries of the truth without an answer.
        missing: Vec<String>,
        /// Answers to queries that the truth does not have.
        unknown: Vec<String>,
    },
    /// An option that the benchmark has no use for.
    #[error("{0}")]
    Option(String),
}

impl EvalError {
    /// Error of a file that is not what it should be.
    pub fn malformed(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        EvalError::Malformed { path: path.into(), what: what.into() }
    }

    /// Turns the system's word about a file that is read into an error.
    pub fn reading(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |why| EvalError::Unreadable { path, why }
    }

    /// Turns the system's word about a file that is written into an error.
    pub fn writing(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |why| EvalError::Unwritable { path, why }
    }
}

impl From<EvalError> for Fatal {
    fn from(error: EvalError) -> Self {
        let exit = match error {
            EvalError::Unwritable { .. } => Exit::Other,
            _ => Exit::Usage,
        };
        Fatal(exit, error.to_string())
    }
}

/// The first names of a list, and how many more there are.
pub fn named(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn unmatched(missing: &[String], unknown: &[String]) -> String {
    let count =
        |names: &[String], what: &str| (!names.is_empty()).then(|| format!("{} {what}: {}", names.len(), named(names)));
    let both = [
        count(missing, "queries of the truth have no answer in it"),
        count(unknown, "answers are to queries that the truth does not have"),
    ];
    let both: Vec<String> = both.into_iter().flatten().collect();
    format!("{}; --partial scores the queries that both have", both.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_names_are_shown_and_the_others_counted() {
        let names: Vec<String> = (0..23).map(|n| n.to_string()).collect();
        assert_eq!(named(&names[..2]), "0, 1");
        assert!(named(&names).ends_with("18, 19 and 3 more"), "{}", named(&names));
    }

    #[test]
    fn an_error_about_ids_names_those_that_lack_and_those_that_are_not_known() {
        let error = EvalError::Unmatched {
            path: "pred.json".into(),
            missing: vec!["7".to_owned()],
            unknown: vec!["x".to_owned(), "y".to_owned()],
        };
        let said = error.to_string();
        assert!(said.contains("1 queries of the truth have no answer in it: 7;"), "{said}");
        assert!(said.contains("2 answers are to queries that the truth does not have: x, y; --partial"), "{said}");
        assert_eq!(Fatal::from(error).0, Exit::Usage);
    }
}
