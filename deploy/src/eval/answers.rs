//! The file of answers that grows: one JSON object a line, on the disk before the next query is asked, so that whatever ends a
//! run loses no answer. A failed query has a line too, with its error instead of an answer, and is asked again by the next run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use protocol::event::ModelName;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::error::EvalError;
use super::ranges::Range;
use super::records::Id;
use super::retrieval::Query;

/// Begin of every line, by which one that was cut off is told from another program's.
const BEGIN: &[u8] = b"{\"query_id\":";
/// What to do about a file that is something else.
const REMEDY: &str = "--out is a file that `vidi eval run` has begun for this truth, or a new one";

/// Line of the file.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// Name of the query.
    pub query_id: &'a Id,
    /// The video that it is about.
    pub video_id: &'a str,
    /// Length of the video as the truth has it, seconds.
    pub duration: Option<f64>,
    /// What was looked for, in words.
    pub query: &'a str,
    /// Kind of the question as the truth has it.
    pub task: Option<&'a str>,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of asking.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// An answer.
    Answered {
        /// Starts and ends, seconds.
        answer: Vec<Range>,
        /// The answer as the model wrote it.
        text: String,
        /// Whether the video was known already.
        cached: bool,
        /// Time from asking to the answer, seconds.
        seconds: f64,
        /// Model that answered.
        model: ModelName,
    },
    /// None.
    Failed {
        /// Reason for that.
        error: Failure,
    },
}

/// Reason for which a query has no answer.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// Kind of the error, as in a failed job's event; `cancelled` or `deadline` for a job that somebody ended.
    pub kind: String,
    /// Sentence for a person.
    pub message: String,
}

/// What is read of a line that is there already.
#[derive(Deserialize)]
struct Seen {
    query_id: Id,
    video_id: String,
    query: String,
    #[serde(default)]
    answer: Option<IgnoredAny>,
}

/// The file, which no other process writes meanwhile.
#[derive(Debug)]
pub struct AnswerFile {
    path: PathBuf,
    file: File,
    answered: BTreeSet<String>,
    /// Whether its last line had been cut off, and was taken out.
    pub was_cut: bool,
}

impl AnswerFile {
    /// Opens the file of a run that goes on, or makes a new one.
    ///
    /// # Errors
    /// A file that cannot be written, that another run writes, or that holds something else than answers to these queries; such a
    /// file stays as it is.
    pub fn open(path: &Path, queries: &[Query]) -> Result<Self, EvalError> {
        let opened = File::options().read(true).append(true).create(true).open(path);
        let mut file = opened.map_err(EvalError::writing(path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(why)) => return Err(EvalError::writing(path)(why)),
            Err(TryLockError::WouldBlock) => {
                let what = "another `vidi eval run` writes it: let that one end, or give another --out";
                return Err(EvalError::malformed(path, what));
            }
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(EvalError::reading(path))?;
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (whole, last) = bytes.split_at(end);
        let mut answered = answered(path, whole, queries)?;
        let mut was_cut = false;
        if !last.is_empty() {
            if serde_json::from_slice::<Seen>(last).is_ok() {
                // Somebody's editor has taken the end of the line away.
                answered = self::answered(path, &bytes, queries)?;
                file.write_all(b"\n").map_err(EvalError::writing(path))?;
            } else if last.starts_with(BEGIN) || BEGIN.starts_with(last) {
                file.set_len(end as u64).map_err(EvalError::writing(path))?;
                was_cut = true;
            } else {
                return Err(EvalError::malformed(path, format!("its last line is none of ours: {REMEDY}")));
            }
        }
        Ok(AnswerFile { path: path.to_owned(), file, answered, was_cut })
    }

    /// Whether a query has its answer.
    pub fn has(&self, query: &Query) -> bool {
        self.answered.contains(&query.query_id.to_string())
    }

    /// Number of queries that have their answer.
    pub fn answered(&self) -> usize {
        self.answered.len()
    }

    /// Adds a line, which is on the disk once this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, line: &Line<'_>) -> Result<(), EvalError> {
        let mut text = serde_json::to_vec(line).expect("an answer is JSON. This is a bug.");
        text.push(b'\n');
        let written = self.file.write_all(&text).and_then(|()| self.file.sync_data());
        written.map_err(EvalError::writing(&self.path))?;
        if let Outcome::Answered { .. } = line.outcome {
            self.answered.insert(line.query_id.to_string());
        }
        Ok(())
    }
}

/// The queries that lines answer.
fn answered(path: &Path, lines: &[u8], queries: &[Query]) -> Result<BTreeSet<String>, EvalError> {
    let known: BTreeMap<String, &Query> = queries.iter().map(|query| (query.query_id.to_string(), query)).collect();
    let mut answered = BTreeSet::new();
    for (at, line) in lines.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let wrong = |what: String| EvalError::malformed(path, format!("line {}: {what}: {REMEDY}", at + 1));
        let seen: Seen = serde_json::from_slice(line).map_err(|e| wrong(e.to_string()))?;
        let id = seen.query_id.to_string();
        let same = known.get(&id).is_some_and(|query| query.video_id == seen.video_id && query.query == seen.query);
        if !same {
            return Err(wrong(format!("the truth has no query {id} {:?} about {}", seen.query, seen.video_id)));
        }
        if seen.answer.is_some() {
            answered.insert(id);
        }
    }
    Ok(answered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queries() -> Vec<Query> {
        let query =
            |id: i64| serde_json::json!({ "query_id": id, "video_id": "v", "query": format!("q{id}"), "gt": [] });
        (0..3).map(|id| serde_json::from_value(query(id)).unwrap()).collect()
    }

    fn line(query: &Query, outcome: Outcome) -> Line<'_> {
        Line {
            query_id: &query.query_id,
            video_id: &query.video_id,
            duration: None,
            query: &query.query,
            task: None,
            outcome,
        }
    }

    fn answer() -> Outcome {
        let model = ModelName::default();
        Outcome::Answered { answer: vec![[1.0, 2.5]], text: "0.10-0.25".to_owned(), cached: true, seconds: 0.5, model }
    }

    fn failure() -> Outcome {
        Outcome::Failed { error: Failure { kind: "too_short".to_owned(), message: "one frame".to_owned() } }
    }

    #[test]
    fn a_run_goes_on_where_the_last_one_ended_and_asks_again_what_failed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, queries) = (dir.path().join("out"), queries());
        let mut file = AnswerFile::open(&path, &queries).unwrap();
        file.add(&line(&queries[0], answer())).unwrap();
        file.add(&line(&queries[1], failure())).unwrap();
        drop(file);
        let mut file = AnswerFile::open(&path, &queries).unwrap();
        assert_eq!(
            (file.answered(), file.has(&queries[0]), file.has(&queries[1]), file.was_cut),
            (1, true, false, false)
        );
        file.add(&line(&queries[1], answer())).unwrap();
        assert_eq!(file.answered(), 2);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(
            (&lines[0]["query_id"], &lines[0]["answer"]),
            (&serde_json::json!(0), &serde_json::json!([[1.0, 2.5]]))
        );
        assert_eq!(
            (&lines[1]["error"]["kind"], &lines[1]["answer"]),
            (&serde_json::json!("too_short"), &serde_json::Value::Null)
        );
    }

    #[test]
    fn a_line_that_was_cut_off_is_taken_out_and_one_without_its_end_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (path, queries) = (dir.path().join("out"), queries());
        AnswerFile::open(&path, &queries).unwrap().add(&line(&queries[0], answer())).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in [&b"{"[..], b"{\"query_id\":1,\"video_id\":\"v", &whole[..whole.len() - 2]] {
            std::fs::write(&path, [whole.as_slice(), cut].concat()).unwrap();
            let file = AnswerFile::open(&path, &queries).unwrap();
            assert_eq!((file.answered(), file.was_cut), (1, true));
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        std::fs::write(&path, whole.trim_ascii_end()).unwrap();
        let file = AnswerFile::open(&path, &queries).unwrap();
        assert_eq!((file.answered(), file.was_cut), (1, false));
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn a_file_of_something_else_is_refused_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (path, queries) = (dir.path().join("out"), queries());
        let other = "{\"query_id\": 0, \"video_id\": \"w\", \"query\": \"q0\", \"answer\": []}\n";
        let unknown = "{\"query_id\": 9, \"video_id\": \"v\", \"query\": \"q9\", \"answer\": []}\n";
        for text in [other, unknown, "[{\"query_id\": 0}]", "notes\n{\"query_id\":", "[\n]\n", "a film"] {
            std::fs::write(&path, text).unwrap();
            let error = AnswerFile::open(&path, &queries).unwrap_err();
            assert!(matches!(error, EvalError::Malformed { .. }) && error.to_string().contains("--out"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn two_runs_do_not_write_to_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let _first = AnswerFile::open(&path, &queries()).unwrap();
        let error = AnswerFile::open(&path, &queries()).unwrap_err();
        assert!(error.to_string().contains("another `vidi eval run`"), "{error}");
    }
}
