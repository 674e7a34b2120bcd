//! The file of answers that grows: one JSON object a line, on the disk before the next query is asked, so that whatever ends a
//! run loses no answer. A failed query has a line too, with its error instead of an answer, and is asked again by the next run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use protocol::event::ModelName;

use super::error::EvalError;
use super::line::{Asking, Line, Outcome, Seen, model_text};
use super::retrieval::Query;

/// Begin of every line, by which one that was cut off is told from another program's.
const BEGIN: &[u8] = b"{\"query_id\":";
/// What to do about a file that is something else.
const REMEDY: &str = "--out is a file that `vidi eval run` has begun for this truth, or a new one";

/// The file, which no other process writes meanwhile.
#[derive(Debug)]
pub struct AnswerFile {
    path: PathBuf,
    file: File,
    answers: Answers,
    /// Whether its last line had been cut off, and was taken out.
    pub was_cut: bool,
}

/// What a file has of answers.
#[derive(Debug, Default)]
struct Answers {
    /// Queries that are answered.
    ids: BTreeSet<String>,
    /// Model that answered; none before the first answer.
    model: Option<ModelName>,
}

impl AnswerFile {
    /// Opens the file of a run that goes on, or makes a new one.
    ///
    /// # Errors
    /// A file that cannot be written, that another run writes, or that holds something else than answers to these queries by one
    /// model, asked with these settings; such a file stays as it is.
    pub fn open(path: &Path, queries: &[Query], asking: Asking) -> Result<Self, EvalError> {
        let opened = File::options().read(true).append(true).create(true).open(path);
        let mut file = opened.map_err(EvalError::writing(path))?;
        if !file.metadata().map_err(EvalError::reading(path))?.is_file() {
            return Err(EvalError::malformed(path, format!("it is no regular file: {REMEDY}")));
        }
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
        let mut answers = answers(path, whole, queries, asking)?;
        let mut was_cut = false;
        if !last.is_empty() {
            if serde_json::from_slice::<Seen>(last).is_ok() {
                // Somebody's editor has taken the end of the line away.
                answers = self::answers(path, &bytes, queries, asking)?;
                file.write_all(b"\n").map_err(EvalError::writing(path))?;
            } else if last.starts_with(BEGIN) || BEGIN.starts_with(last) {
                file.set_len(end as u64).map_err(EvalError::writing(path))?;
                was_cut = true;
            } else {
                return Err(EvalError::malformed(path, format!("its last line is none of ours: {REMEDY}")));
            }
        }
        Ok(AnswerFile { path: path.to_owned(), file, answers, was_cut })
    }

    /// Whether a query has its answer.
    pub fn has(&self, query: &Query) -> bool {
        self.answers.ids.contains(&query.query_id.to_string())
    }

    /// Number of queries that have their answer.
    pub fn answered(&self) -> usize {
        self.answers.ids.len()
    }

    /// Model that answered; none before the first answer.
    pub fn model(&self) -> Option<&ModelName> {
        self.answers.model.as_ref()
    }

    /// Adds a line, which is on the disk once this returns.
    ///
    /// # Errors
    /// When it cannot be written; an answer by another model than the file's, which is left out.
    pub fn add(&mut self, line: &Line<'_>) -> Result<(), EvalError> {
        if let Outcome::Answered { model, .. } = &line.outcome {
            self.answers.is_by(model).map_err(|what| EvalError::malformed(&self.path, what))?;
        }
        let mut text = serde_json::to_vec(line).expect("an answer is JSON. This is a bug.");
        text.push(b'\n');
        let written = self.file.write_all(&text).and_then(|()| self.file.sync_data());
        written.map_err(EvalError::writing(&self.path))?;
        if let Outcome::Answered { .. } = line.outcome {
            self.answers.ids.insert(line.query_id.to_string());
        }
        Ok(())
    }
}

impl Answers {
    /// Checks that a model is the one that gave the other answers, which is any before the first one.
    fn is_by(&mut self, model: &ModelName) -> Result<(), String> {
        let before = self.model.get_or_insert_with(|| model.clone());
        if before == model {
            return Ok(());
        }
        let (before, now) = (model_text(before), model_text(model));
        Err(format!("its answers are by {before}, and one is by {now}: each model needs an --out of its own"))
    }
}

/// What lines answer.
fn answers(path: &Path, lines: &[u8], queries: &[Query], asking: Asking) -> Result<Answers, EvalError> {
    let known: BTreeMap<String, &Query> = queries.iter().map(|query| (query.query_id.to_string(), query)).collect();
    let mut answers = Answers::default();
    for (at, line) in lines.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let wrong = |what: String| EvalError::malformed(path, format!("line {}: {what}: {REMEDY}", at + 1));
        let seen: Seen = serde_json::from_slice(line).map_err(|e| wrong(e.to_string()))?;
        let id = seen.query_id.to_string();
        let same = known.get(&id).is_some_and(|query| query.video_id == seen.video_id && query.query == seen.query);
        if !same {
            return Err(wrong(format!("the truth has no query {id} {:?} about {}", seen.query, seen.video_id)));
        }
        if seen.answer.is_none() {
            continue;
        }
        if seen.differs(asking) {
            let figure = |n: Option<f64>| n.map_or("?".to_owned(), |n| n.to_string());
            return Err(wrong(format!(
                "asked with --fps {} --max-new-tokens {}, and now it is --fps {} --max-new-tokens {}",
                figure(seen.fps),
                figure(seen.max_new_tokens.map(f64::from)),
                asking.fps,
                asking.max_new_tokens
            )));
        }
        if let Some(model) = &seen.model {
            answers.is_by(model).map_err(wrong)?;
        }
        answers.ids.insert(id);
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use protocol::event::Cached;

    use super::super::line::Failure;
    use super::*;

    const ASKING: Asking = Asking { fps: 1.0, max_new_tokens: 24 };

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
            asking: ASKING,
            outcome,
        }
    }

    fn answer() -> Outcome {
        let model = ModelName::default();
        Outcome::Answered {
            answer: vec![[1.0, 2.5]],
            text: "0.10-0.25".to_owned(),
            cached: Cached::Memory,
            seconds: 0.5,
            model,
        }
    }

    fn answer_of(name: &str) -> Outcome {
        let model = ModelName { name: name.to_owned(), ..ModelName::default() };
        Outcome::Answered { answer: Vec::new(), text: String::new(), cached: Cached::No, seconds: 0.5, model }
    }

    fn failure() -> Outcome {
        Outcome::Failed { error: Failure { kind: "too_short".to_owned(), message: "one frame".to_owned() } }
    }

    #[test]
    fn a_run_goes_on_where_the_last_one_ended_and_asks_again_what_failed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, queries) = (dir.path().join("out"), queries());
        let mut file = AnswerFile::open(&path, &queries, ASKING).unwrap();
        file.add(&line(&queries[0], answer())).unwrap();
        file.add(&line(&queries[1], failure())).unwrap();
        drop(file);
        let mut file = AnswerFile::open(&path, &queries, ASKING).unwrap();
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
        AnswerFile::open(&path, &queries, ASKING).unwrap().add(&line(&queries[0], answer())).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in [&b"{"[..], b"{\"query_id\":1,\"video_id\":\"v", &whole[..whole.len() - 2]] {
            std::fs::write(&path, [whole.as_slice(), cut].concat()).unwrap();
            let file = AnswerFile::open(&path, &queries, ASKING).unwrap();
            assert_eq!((file.answered(), file.was_cut), (1, true));
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
        std::fs::write(&path, whole.trim_ascii_end()).unwrap();
        let file = AnswerFile::open(&path, &queries, ASKING).unwrap();
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
            let error = AnswerFile::open(&path, &queries, ASKING).unwrap_err();
            assert!(matches!(error, EvalError::Malformed { .. }) && error.to_string().contains("--out"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn what_was_asked_otherwise_is_not_gone_on_with_unless_all_of_it_failed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, queries) = (dir.path().join("out"), queries());
        let twice = Asking { fps: 2.0, ..ASKING };
        AnswerFile::open(&path, &queries, ASKING).unwrap().add(&line(&queries[0], failure())).unwrap();
        AnswerFile::open(&path, &queries, twice).unwrap().add(&line(&queries[1], answer())).unwrap();
        for other in [twice, Asking { max_new_tokens: 25, ..ASKING }] {
            let error = AnswerFile::open(&path, &queries, other).unwrap_err().to_string();
            assert!(error.contains("line 2: asked with --fps 1 --max-new-tokens 24, and now it is"), "{error}");
        }
    }

    #[test]
    fn a_file_has_the_answers_of_one_model() {
        let dir = tempfile::tempdir().unwrap();
        let (path, queries) = (dir.path().join("out"), queries());
        AnswerFile::open(&path, &queries, ASKING).unwrap().add(&line(&queries[0], answer_of("a"))).unwrap();
        let before = std::fs::read(&path).unwrap();
        let mut file = AnswerFile::open(&path, &queries, ASKING).unwrap();
        assert_eq!(file.model().map(|model| model.name.as_str()), Some("a"));
        let error = file.add(&line(&queries[1], answer_of("b"))).unwrap_err().to_string();
        assert!(error.contains("its answers are by a (") && error.contains("one is by b ("), "{error}");
        assert_eq!((std::fs::read(&path).unwrap(), file.has(&queries[1])), (before.clone(), false));
        file.add(&line(&queries[1], answer_of("a"))).unwrap();
        drop(file);
        let mixed = String::from_utf8(before).unwrap().replace("\"a\"", "\"b\"");
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(mixed.as_bytes()).unwrap();
        let error = AnswerFile::open(&path, &queries, ASKING).unwrap_err().to_string();
        assert!(error.contains("line 3: its answers are by a ("), "{error}");
    }

    #[test]
    fn what_keeps_no_answers_is_refused() {
        let error = AnswerFile::open(Path::new("/dev/null"), &queries(), ASKING).unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
    }

    #[test]
    fn two_runs_do_not_write_to_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let _first = AnswerFile::open(&path, &queries(), ASKING).unwrap();
        let error = AnswerFile::open(&path, &queries(), ASKING).unwrap_err();
        assert!(error.to_string().contains("another `vidi eval run`"), "{error}");
    }
}
