//! Files of queries and of answers as JSON: one list, or one object after another; and whether the answers are those to the
//! queries.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{EvalError, named};

/// First bytes of a file that gzip has compressed.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Name of a query: a number or a text, as its file has it. A number and the same number as a text name one query.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Id {
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Id::Number(number) => number.fmt(f),
            Id::Text(text) => f.write_str(text),
        }
    }
}

/// The text of a file that nobody has compressed.
///
/// # Errors
/// A file that cannot be read, is compressed, or is no UTF-8.
pub fn text(path: &Path) -> Result<String, EvalError> {
    let bytes = std::fs::read(path).map_err(EvalError::reading(path))?;
    if bytes.starts_with(&GZIP) {
        return Err(EvalError::malformed(path, "it is compressed: unpack it first (gzip -d)"));
    }
    String::from_utf8(bytes).map_err(|e| EvalError::malformed(path, e.to_string()))
}

/// Objects of a file: of one list, or one after another.
///
/// # Errors
/// As [`text`]; the line and column of what is no such object.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, EvalError> {
    let text = text(path)?;
    let parsed = if text.trim_start().starts_with('[') {
        serde_json::from_str(&text)
    } else {
        serde_json::Deserializer::from_str(&text).into_iter().collect()
    };
    parsed.map_err(|e| EvalError::malformed(path, e.to_string()))
}

/// Checks that no query stands twice in a file.
///
/// # Errors
/// The queries that do.
pub fn check_unrepeated<'a>(path: &Path, ids: impl Iterator<Item = &'a Id>) -> Result<(), EvalError> {
    let (mut seen, mut again) = (BTreeSet::new(), BTreeSet::new());
    for id in ids.map(Id::to_string) {
        if seen.contains(&id) {
            again.insert(id);
        } else {
            seen.insert(id);
        }
    }
    if again.is_empty() {
        Ok(())
    } else {
        Err(EvalError::Repeated { path: path.into(), ids: again.into_iter().collect() })
    }
}

/// Answers by the name of their query, once it is clear that they are those to the truth's queries.
#[derive(Debug)]
pub struct Answers<T> {
    by_id: BTreeMap<String, T>,
    /// What was left out of either side, in words.
    pub left_out: Vec<String>,
}

impl<T> Answers<T> {
    /// Holds a file's answers against the truth's queries, in the truth's order. With `partial` only what both have counts.
    ///
    /// # Errors
    /// A query that is answered twice; without `partial`, queries without an answer and answers without a query.
    pub fn matched(path: &Path, queries: &[Id], answers: Vec<(Id, T)>, partial: bool) -> Result<Self, EvalError> {
        check_unrepeated(path, answers.iter().map(|(id, _)| id))?;
        let order: Vec<String> = answers.iter().map(|(id, _)| id.to_string()).collect();
        let mut by_id: BTreeMap<String, T> = answers.into_iter().map(|(id, answer)| (id.to_string(), answer)).collect();
        let known: BTreeSet<String> = queries.iter().map(Id::to_string).collect();
        let missing: Vec<String> = queries.iter().map(Id::to_string).filter(|id| !by_id.contains_key(id)).collect();
        let unknown: Vec<String> = order.into_iter().filter(|id| !known.contains(id)).collect();
        let mut left_out = Vec::new();
        if !missing.is_empty() {
            left_out.push(format!(
                "{} of {} queries have no answer: {}",
                missing.len(),
                queries.len(),
                named(&missing)
            ));
        }
        if !unknown.is_empty() {
            left_out.push(format!("{} answers are to unknown queries: {}", unknown.len(), named(&unknown)));
        }
        if !partial && !left_out.is_empty() {
            return Err(EvalError::Unmatched { path: path.into(), missing, unknown });
        }
        by_id.retain(|id, _| known.contains(id));
        Ok(Answers { by_id, left_out })
    }

    /// The answer to a query; none where only some are scored, and this is not among them.
    pub fn get(&self, id: &Id) -> Option<&T> {
        self.by_id.get(&id.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Named {
        #[serde(alias = "id")]
        query_id: Id,
    }

    fn file(text: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn ids(text: &str) -> Vec<String> {
        let found: Vec<Named> = read(file(text.as_bytes()).path()).unwrap();
        found.into_iter().map(|named| named.query_id.to_string()).collect()
    }

    #[test]
    fn a_list_and_one_object_a_line_are_the_same() {
        assert_eq!(ids(r#" [{"query_id": 0}, {"id": "a"}] "#), ["0", "a"]);
        assert_eq!(ids("{\"query_id\": 0, \"other\": []}\n\n{\"id\": \"a\"}\n"), ["0", "a"]);
        assert_eq!((ids("[]"), ids("")), (vec![], vec![]));
    }

    #[test]
    fn a_file_that_cannot_be_used_says_where_it_is_wrong_and_a_compressed_one_what_to_do() {
        let wrong = |text: &[u8]| match read::<Named>(file(text).path()).unwrap_err() {
            EvalError::Malformed { what, .. } => what,
            other => panic!("{other}"),
        };
        assert!(wrong(b"{\"query_id\": 1}\n{\"query_id\": ").contains("line 2"), "{}", wrong(b"{\"query_id\": 1}\n{"));
        assert!(wrong(b"[{\"query_id\": 1.5}]").contains("line 1"));
        assert!(wrong(&[0x1f, 0x8b, 8, 0]).contains("gzip -d"));
        assert!(wrong(&[b'{', 0xff]).contains("utf-8"));
        let missing = read::<Named>(Path::new("no such file")).unwrap_err();
        assert!(matches!(missing, EvalError::Unreadable { .. }) && missing.to_string().contains("no such file"));
    }

    fn matched(queries: &[i64], answers: &[&str], partial: bool) -> Result<Answers<usize>, EvalError> {
        let queries: Vec<Id> = queries.iter().map(|&n| Id::Number(n)).collect();
        let answers = answers.iter().enumerate().map(|(at, id)| (Id::Text((*id).to_owned()), at)).collect();
        Answers::matched(Path::new("p"), &queries, answers, partial)
    }

    #[test]
    fn answers_are_found_by_the_name_of_their_query_whether_it_is_a_number_or_a_text() {
        let answers = matched(&[3, 1], &["1", "3"], false).unwrap();
        assert_eq!((answers.get(&Id::Number(3)), answers.get(&Id::Text("1".to_owned()))), (Some(&1), Some(&0)));
        assert!(answers.left_out.is_empty());
    }

    #[test]
    fn missing_and_unknown_queries_are_named_and_left_out_only_where_that_is_asked_for() {
        let error = matched(&[2, 1, 3], &["1", "9", "8"], false).unwrap_err();
        let EvalError::Unmatched { missing, unknown, .. } = &error else { panic!("{error}") };
        assert_eq!(
            (missing.as_slice(), unknown.as_slice()),
            (&["2".to_owned(), "3".to_owned()][..], &["9".to_owned(), "8".to_owned()][..])
        );
        let partial = matched(&[2, 1, 3], &["1", "9", "8"], true).unwrap();
        assert_eq!(partial.left_out, ["2 of 3 queries have no answer: 2, 3", "2 answers are to unknown queries: 9, 8"]);
        assert_eq!(
            (partial.get(&Id::Number(1)), partial.get(&Id::Number(2)), partial.get(&Id::Number(9))),
            (Some(&0), None, None)
        );
    }

    #[test]
    fn a_query_that_is_answered_twice_is_refused_in_part_too() {
        let error = matched(&[1], &["1", "1"], true).unwrap_err();
        assert!(matches!(&error, EvalError::Repeated { ids, .. } if ids == &["1"]), "{error}");
    }
}
