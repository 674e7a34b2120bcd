//! Task: a kind of question about a video, as data.

use std::collections::BTreeMap;

use model::config_json::Family;
use protocol::error::{ErrorKind, JobError};
use protocol::event::Supported;
use protocol::message::JobRequest;
use serde::{Deserialize, Serialize};

use super::reading::Parser;
use super::reading::reference::format_hms;

/// Stands for the seconds that the model watches.
const DURATION: &str = "{duration}";

/// Kind of question. tasks.toml says what each field is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Name in a job's request.
    pub name: String,
    /// What it answers, for a person.
    #[serde(default)]
    pub about: String,
    /// Whether the released weights can do it.
    pub supported: Supported,
    /// Question as the model reads it, with `{query}` for the client's words and `{duration}` for the seconds that the model
    /// watched, with two decimals; of a composite task the question for the title of a range, with `{start}` and `{end}` for
    /// its times, or nothing where ranges have no titles.
    pub prompt: String,
    /// Whether the client's words are needed.
    pub query: QueryRule,
    /// Whether one `.` is taken off the end of the query first (MODEL.md 2.4).
    #[serde(default)]
    pub strip_final_period: bool,
    /// Parser of the answer, unless the request names another.
    #[serde(default)]
    pub parser: Parser,
    /// Most tokens of an answer, whatever the request allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<u32>,
    /// Temperature where the request leaves the default of 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Nucleus where the request leaves the default of 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Origin of the ranges of a composite task, each of which then gets a title; none for a task of one question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranges: Option<RangeSource>,
    /// What is different for a family of models, by its name, `9b` or `7b`; empty for the task of one family.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub family: BTreeMap<String, Variant>,
}

/// Fields of a task that a family of models has of its own; the others are as they are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Variant {
    about: Option<String>,
    supported: Option<Supported>,
    prompt: Option<String>,
    strip_final_period: Option<bool>,
    parser: Option<Parser>,
}

/// Rule for a task's query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryRule {
    /// Query that must not be empty.
    Required,
    /// Query that is not read.
    None,
}

/// Origin of the ranges of a composite task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case", deny_unknown_fields)]
pub enum RangeSource {
    /// Answers of a task to several queries.
    Queries {
        /// Task that is asked, one that answers with ranges.
        task: String,
        /// Queries, where the request brings none of its own.
        queries: Vec<String>,
        /// Seconds that two ranges may be apart to become one.
        join_s: f64,
        /// Share of what was watched over which a range says nothing, and is left out.
        largest_share: f64,
        /// Most ranges.
        most: usize,
    },
    /// Parts of the video between changes of its pictures.
    Shots {
        /// Least length of a part, seconds.
        min_s: f64,
        /// Most parts.
        most: usize,
    },
}

impl RangeSource {
    /// Most ranges.
    pub fn most(&self) -> usize {
        match self {
            RangeSource::Queries { most, .. } | RangeSource::Shots { most, .. } => *most,
        }
    }
}

/// Settings by which an answer's tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Generation {
    /// Most tokens of the answer.
    pub max_new_tokens: usize,
    /// Temperature; 0 is greedy.
    pub temperature: f64,
    /// Nucleus to sample from.
    pub top_p: f64,
    /// Seed of the sampler.
    pub seed: u64,
}

impl Task {
    /// The task as a family of models has it.
    ///
    /// # Errors
    /// A variant for a family that there is not.
    pub fn of(mut self, family: Family) -> Result<Self, String> {
        if let Some(other) = self.family.keys().find(|name| Family::ALL.iter().all(|family| family.as_str() != *name)) {
            let known = Family::ALL.map(Family::as_str).join(", ");
            return Err(format!("no family {other:?}; known are {known}"));
        }
        let variant = std::mem::take(&mut self.family).remove(family.as_str()).unwrap_or_default();
        let Variant { about, supported, prompt, strip_final_period, parser } = variant;
        Ok(Task {
            about: about.unwrap_or(self.about),
            supported: supported.unwrap_or(self.supported),
            prompt: prompt.unwrap_or(self.prompt),
            strip_final_period: strip_final_period.unwrap_or(self.strip_final_period),
            parser: parser.unwrap_or(self.parser),
            ..self
        })
    }

    /// Whether its question says how long the video is, which is known once the file was probed.
    pub fn says_duration(&self) -> bool {
        self.prompt.contains(DURATION)
    }

    /// Whether each range of this composite task gets a title.
    pub fn has_titles(&self) -> bool {
        !self.prompt.is_empty()
    }

    /// Question for a query, as the model reads it; it watches `duration_s` seconds.
    ///
    /// # Errors
    /// `bad_request` for an empty query where one is needed.
    pub fn question(&self, query: &str, duration_s: f64) -> Result<String, JobError> {
        let query = if self.strip_final_period { query.strip_suffix('.').unwrap_or(query) } else { query };
        if self.query == QueryRule::Required && query.trim().is_empty() {
            return Err(JobError::new(
                ErrorKind::BadRequest,
                format!("request refused: task {:?} needs a query", self.name),
            )
            .hint("say in `query` what to look for"));
        }
        // The duration first: a query may have the same letters.
        Ok(self.prompt.replacen(DURATION, &format!("{duration_s:.2}"), 1).replacen("{query}", query, 1))
    }

    /// Question for the title of a range, of a composite task; times in seconds from the start of what the model watched.
    pub fn title_question(&self, start_s: f64, end_s: f64) -> String {
        self.prompt.replacen("{start}", &format_hms(start_s), 1).replacen("{end}", &format_hms(end_s), 1)
    }

    /// Settings for a request of this task.
    pub fn generation(&self, request: &JobRequest) -> Generation {
        let limit = self.max_new_tokens.unwrap_or(u32::MAX).min(request.max_new_tokens).max(1);
        let temperature = self.temperature.filter(|_| request.temperature == 0.0).unwrap_or(request.temperature);
        let top_p = self.top_p.filter(|_| request.top_p == 1.0).unwrap_or(request.top_p);
        Generation { max_new_tokens: limit as usize, temperature, top_p, seed: request.seed }
    }

    /// Parser of the answer: the request's, where it names one, else the task's.
    ///
    /// # Errors
    /// `bad_request` that names the known parsers.
    pub fn parser(&self, request: &JobRequest) -> Result<Parser, JobError> {
        let Some(name) = &request.parser else { return Ok(self.parser) };
        Parser::named(name).ok_or_else(|| {
            let shown: String = name.chars().take(80).collect();
            let known = Parser::ALL.map(Parser::as_str);
            let text = format!("request refused: no parser {shown:?}; known are {}", known.join(", "));
            JobError::new(ErrorKind::BadRequest, text).hint("leave parser out, or set it to one of them")
        })
    }
}
