//! Registry of tasks, which are the kinds of questions about a video, kept as data in `tasks.toml`.

use protocol::error::{ErrorKind, JobError};
use protocol::event::TimeRange;
use serde::Deserialize;

/// Tasks that a worker knows.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tasks {
    task: Vec<Task>,
}

/// Kind of question.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Name in a job's request.
    pub name: String,
    /// Question as the model reads it, with `{query}` for the client's words.
    pub prompt: String,
    /// Whether the client's words are needed.
    pub query: QueryRule,
    /// Whether one `.` is taken off the end of the query first (MODEL.md 2.4).
    #[serde(default)]
    pub strip_final_period: bool,
    /// Kind of the answer.
    pub answer: AnswerKind,
}

/// Rule for a task's query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryRule {
    /// Query that must not be empty.
    Required,
    /// Query that is not read.
    None,
}

/// Kind of an answer, by which it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerKind {
    /// Time ranges as fractions of the duration: `0.12-0.34, ...`.
    TimeRanges,
    /// Plain text.
    Text,
}

impl Tasks {
    /// Tasks that come with the program.
    pub fn builtin() -> Self {
        toml::from_str(include_str!("tasks.toml")).expect("tasks.toml is well formed, a test says so. This is a bug.")
    }

    /// Names of the tasks.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.task.iter().map(|task| task.name.as_str())
    }

    /// Task of a name.
    ///
    /// # Errors
    /// `bad_request` that names the known tasks.
    pub fn get(&self, name: &str) -> Result<&Task, JobError> {
        self.task.iter().find(|t| t.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.task.iter().map(|t| t.name.as_str()).collect();
            let shown: String = name.chars().take(80).collect();
            JobError::new(
                ErrorKind::BadRequest,
                format!("request refused: no task {shown:?}; known are {}", known.join(", ")),
            )
            .hint("set task to one of them")
            .detail("tasks", known)
        })
    }
}

impl Task {
    /// Question for a query, as the model reads it.
    ///
    /// # Errors
    /// `bad_request` for an empty query where one is needed.
    pub fn question(&self, query: &str) -> Result<String, JobError> {
        let query = if self.strip_final_period { query.strip_suffix('.').unwrap_or(query) } else { query };
        if self.query == QueryRule::Required && query.trim().is_empty() {
            return Err(JobError::new(
                ErrorKind::BadRequest,
                format!("request refused: task {:?} needs a query", self.name),
            )
            .hint("say in `query` what to look for"));
        }
        Ok(self.prompt.replacen("{query}", query, 1))
    }

    /// Time ranges in an answer, in seconds from the start of the video; `start_s` is the start of the span that was
    /// asked about.
    pub fn ranges(&self, answer: &str, duration_s: f64, start_s: f64) -> Vec<TimeRange> {
        match self.answer {
            AnswerKind::Text => Vec::new(),
            AnswerKind::TimeRanges => fractions(answer)
                .into_iter()
                .map(|(a, b)| TimeRange {
                    start_s: start_s + a * duration_s,
                    end_s: start_s + b * duration_s,
                    title: None,
                })
                .collect(),
        }
    }
}

/// Ranges in a text: all non-overlapping matches of `(\d\.\d+)-(\d\.\d+)`, left to right (MODEL.md 8).
pub fn fractions(text: &str) -> Vec<(f64, f64)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        let range = fraction(rest).filter(|&n| rest.get(n) == Some(&b'-')).and_then(|n| {
            let m = fraction(&rest[n + 1..])?;
            Some((n, n + 1 + m))
        });
        match range {
            Some((dash, end)) => {
                // Digits and a point always parse.
                let number = |s: &str| s.parse::<f64>().unwrap_or(0.0);
                found.push((number(&text[at..at + dash]), number(&text[at + dash + 1..at + end])));
                at += end;
            }
            None => at += 1,
        }
    }
    found
}

/// Length of `\d\.\d+` at the start of `bytes`.
fn fraction(bytes: &[u8]) -> Option<usize> {
    let [whole, b'.', decimals @ ..] = bytes else { return None };
    let n = decimals.iter().take_while(|b| b.is_ascii_digit()).count();
    (whole.is_ascii_digit() && n > 0).then_some(2 + n)
}

/// Seconds as `HH:MM:SS`, truncated, not rounded (MODEL.md 8).
pub fn format_hms(seconds: f64) -> String {
    let whole = seconds as u64;
    format!("{:02}:{:02}:{:02}", (seconds / 3600.0) as u64, whole % 3600 / 60, whole % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str, duration_s: f64) -> Vec<[f64; 2]> {
        let ranges = Tasks::builtin().get("retrieval").unwrap().ranges(text, duration_s, 0.0);
        ranges.iter().map(|r| [r.start_s, r.end_s]).collect()
    }

    fn formatted(ranges: &[[f64; 2]]) -> String {
        let one = |r: &[f64; 2]| format!("{}-{}", format_hms(r[0]), format_hms(r[1]));
        ranges.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn ranges_are_found_scaled_and_written_as_the_reference_does() {
        // golden/units/units.json, `postprocess`.
        for (text, duration_s, expected) in [
            ("0.12-0.34, 0.56-0.78", 100.0, "00:00:12-00:00:34, 00:00:56-00:01:18"),
            ("0.00-1.00", 3725.5, "00:00:00-01:02:05"),
            ("0.5-0.75", 59.99, "00:00:29-00:00:44"),
            ("12.5-13.0", 10.0, ""),
            ("0.1-0.2-0.3-0.4", 1000.0, "00:01:40-00:03:20, 00:05:00-00:06:40"),
            ("0.999-1.000", 86400.0, "23:58:33-24:00:00"),
            ("no range", 10.0, ""),
            ("0.10 - 0.20", 10.0, ""),
            (" 0.25-0.50 ", 3600.0, "00:15:00-00:30:00"),
            ("0.12-.34", 10.0, ""),
            ("1-2", 10.0, ""),
            ("10.25-0.50", 400.0, "00:01:40-00:03:20"),
            ("0.3333333333-0.6666666666", 360_000.0, "33:19:59-66:39:59"),
            ("0.29-0.57", 100.0, "00:00:28-00:00:56"),
            ("é0.1-0.2漢0.3-0.4.", 10.0, "00:00:01-00:00:02, 00:00:03-00:00:04"),
            ("0.", 10.0, ""),
            ("0.1-", 10.0, ""),
            ("", 10.0, ""),
        ] {
            assert_eq!(formatted(&seconds(text, duration_s)), expected, "{text:?}");
        }
        assert_eq!(seconds("0.29-0.57", 100.0), [[28.999999999999996, 56.99999999999999]]);
    }

    #[test]
    fn ranges_of_a_span_count_from_the_start_of_the_video() {
        let tasks = Tasks::builtin();
        let ranges = tasks.get("retrieval").unwrap().ranges("0.25-0.50", 40.0, 1000.0);
        assert_eq!((ranges[0].start_s, ranges[0].end_s), (1010.0, 1020.0));
        assert!(tasks.get("qa").unwrap().ranges("0.25-0.50", 40.0, 0.0).is_empty());
    }

    #[test]
    fn retrieval_takes_exactly_one_period_off_its_query() {
        let tasks = Tasks::builtin();
        let question = |q| tasks.get("retrieval").unwrap().question(q).unwrap();
        assert_eq!(question("a cat"), "During which time segments in the video can we see a cat?");
        assert_eq!(question("a cat."), question("a cat"));
        assert_eq!(question("a cat.."), question("a cat.").replace("cat?", "cat.?"));
        assert_eq!(question("{query}"), "During which time segments in the video can we see {query}?");
        assert_eq!(tasks.get("qa").unwrap().question("Why?.").unwrap(), "Why?.");
    }

    #[test]
    fn a_task_that_needs_a_query_refuses_an_empty_one() {
        let tasks = Tasks::builtin();
        for (task, query) in [("retrieval", ""), ("retrieval", " \n"), ("retrieval", "."), ("qa", "")] {
            let error = tasks.get(task).unwrap().question(query).unwrap_err();
            assert_eq!(error.kind, ErrorKind::BadRequest, "{task} {query:?}");
        }
    }

    #[test]
    fn an_unknown_task_is_answered_with_the_known_ones() {
        let error = Tasks::builtin().get("highlights").unwrap_err();
        assert_eq!(error.kind, ErrorKind::BadRequest);
        assert!(error.message.contains("retrieval, qa"), "{error}");
    }
}
