//! Registry of tasks: those of tasks.toml, and those of a file of the user's.

use std::path::Path;

use model::config_json::Family;
use protocol::error::{ErrorKind, JobError};
use protocol::event::Supported;
use serde::Deserialize;

use super::reading::Parser;
use super::task::{QueryRule, RangeSource, Task};

/// Most queries of a task: as many as a request may bring.
const MOST_QUERIES: usize = protocol::message::MOST_QUERIES;

/// Tasks that a worker knows, as its family of models has them.
#[derive(Clone, Debug, PartialEq)]
pub struct Tasks {
    family: Family,
    tasks: Vec<Task>,
}

/// File of tasks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    task: Vec<Task>,
}

impl Tasks {
    /// Tasks that come with the program.
    pub fn of(family: Family) -> Self {
        let mut tasks = Tasks { family, tasks: Vec::new() };
        tasks.add(include_str!("tasks.toml")).expect("tasks.toml is well formed, a test says so. This is a bug.");
        tasks
    }

    /// Tasks that come with the program, and those of a file: one of a known name takes the place of it.
    ///
    /// # Errors
    /// `bad_request` with the file and what is wrong in it.
    pub fn with_file(path: Option<&Path>, family: Family) -> Result<Self, JobError> {
        let mut tasks = Tasks::of(family);
        let Some(path) = path else { return Ok(tasks) };
        let wrong = |what: String| {
            JobError::new(ErrorKind::BadRequest, format!("llm.tasks_file refused: {}: {what}", path.display()))
                .hint("correct the file; stage-llm/src/text/tasks.toml says what an entry holds")
        };
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        tasks.add(&text).map_err(wrong)?;
        Ok(tasks)
    }

    /// Adds the tasks of a TOML text; one of a known name takes the place of it.
    ///
    /// # Errors
    /// What is wrong, with the task's name where it has one.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        let file: File = toml::from_str(text).map_err(|e| e.to_string().trim().to_owned())?;
        for (at, task) in file.task.iter().enumerate() {
            if file.task[..at].iter().any(|other| other.name == task.name) {
                return Err(format!("task {:?} is there twice", task.name));
            }
            let task = task.clone().of(self.family).map_err(|what| format!("task {:?}: {what}", task.name))?;
            match self.tasks.iter_mut().find(|known| known.name == task.name) {
                Some(known) => *known = task,
                None => self.tasks.push(task),
            }
        }
        // All of them: a new task may have taken the place of one that another is made of.
        self.tasks.iter().try_for_each(|task| self.check(task).map_err(|what| format!("task {:?}: {what}", task.name)))
    }

    /// Family of models that they are for.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Every task, in the order of the files.
    pub fn iter(&self) -> impl Iterator<Item = &Task> {
        self.tasks.iter()
    }

    /// Task of a name.
    ///
    /// # Errors
    /// `bad_request` that names the known tasks.
    pub fn get(&self, name: &str) -> Result<&Task, JobError> {
        self.tasks.iter().find(|t| t.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.tasks.iter().map(|t| t.name.as_str()).collect();
            let shown: String = name.chars().take(80).collect();
            JobError::new(
                ErrorKind::BadRequest,
                format!("request refused: no task {shown:?}; known are {}", known.join(", ")),
            )
            .hint("set task to one of them")
            .detail("tasks", known)
        })
    }

    /// Refuses a task that could not be asked, or not be read.
    fn check(&self, task: &Task) -> Result<(), String> {
        let need = |ok: bool, what: &str| if ok { Ok(()) } else { Err(what.to_owned()) };
        let named = !task.name.is_empty() && task.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        need(named, "name is [A-Za-z0-9_-]+")?;
        need(task.max_new_tokens.is_none_or(|n| (1..=8192).contains(&n)), "max_new_tokens is 1 to 8192")?;
        need(task.temperature.is_none_or(|t| (0.0..=10.0).contains(&t)), "temperature is 0 to 10")?;
        need(task.top_p.is_none_or(|p| p > 0.0 && p <= 1.0), "top_p is over 0, at most 1")?;
        let composite = task.supported == Supported::Composite;
        need(!task.prompt.trim().is_empty() || composite, "prompt is empty")?;
        need(composite == task.ranges.is_some(), "[task.ranges] and supported = \"composite\" belong together")?;
        let holds = |name: &str| task.prompt.contains(name);
        match &task.ranges {
            None => need(
                holds("{query}") == (task.query == QueryRule::Required),
                "the prompt holds {query} if query is \"required\", and only then",
            ),
            Some(source) => {
                need(task.query == QueryRule::None, "a composite task takes no query")?;
                need(task.parser == Parser::Text, "a composite task's own prompt asks for titles: parser is \"text\"")?;
                need(
                    !task.has_titles() || holds("{start}") && holds("{end}"),
                    "the prompt of a composite task holds {start} and {end}, or is empty",
                )?;
                need(!task.says_duration(), "the prompt of a composite task holds no {duration}")?;
                self.check_source(source)
            }
        }
    }

    fn check_source(&self, source: &RangeSource) -> Result<(), String> {
        let need = |ok: bool, what: &str| if ok { Ok(()) } else { Err(what.to_owned()) };
        let seconds = |s: f64| s.is_finite() && s >= 0.0;
        match source {
            RangeSource::Queries { task, queries, join_s, largest_share, most } => {
                let asked =
                    self.tasks.iter().find(|t| t.name == *task).ok_or(format!("ranges.task: no task {task:?}"))?;
                need(
                    asked.ranges.is_none() && asked.parser.finds_ranges(),
                    "ranges.task is one that answers with time ranges",
                )?;
                need((1..=MOST_QUERIES).contains(&queries.len()), "ranges.queries are 1 to 64")?;
                need(
                    queries.iter().all(|q| !q.trim_end_matches('.').trim().is_empty()),
                    "one of ranges.queries is empty",
                )?;
                need(seconds(*join_s), "ranges.join_s is 0 or more")?;
                need(*largest_share > 0.0 && *largest_share <= 1.0, "ranges.largest_share is over 0, at most 1")?;
                need((1..=MOST_QUERIES).contains(most), "ranges.most is 1 to 64")
            }
            RangeSource::Shots { min_s, most } => {
                need(seconds(*min_s), "ranges.min_s is 0 or more")?;
                need((1..=MOST_QUERIES).contains(most), "ranges.most is 1 to 64")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::message::{JobId, JobRequest};

    fn request() -> JobRequest {
        JobRequest::new(JobId::new("job").unwrap(), "video.mp4", "a cat")
    }

    fn nine() -> Tasks {
        Tasks::of(Family::Gemma2)
    }

    #[test]
    fn the_tasks_of_the_program_are_in_order_and_say_what_each_family_was_trained_for() {
        use Supported::{Composite, Experimental, Trained};
        for (family, qa) in [(Family::Gemma2, Trained), (Family::Mistral, Experimental)] {
            let tasks = Tasks::of(family);
            let all: Vec<(&str, Supported)> = tasks.iter().map(|t| (t.name.as_str(), t.supported)).collect();
            let expected = [
                ("retrieval", Trained),
                ("qa", qa),
                ("highlights", Composite),
                ("chapters", Composite),
                ("grounding", Experimental),
            ];
            assert_eq!(all, expected, "{}", family.name());
            let is_asked = |task: &&Task| task.ranges.is_some() && task.has_titles();
            // A title is an answer in words, which the composite may have where those were trained for.
            assert_eq!(tasks.iter().filter(is_asked).count(), if qa == Trained { 2 } else { 0 });
        }
    }

    #[test]
    fn vidi_7b_is_told_how_long_the_video_is() {
        let tasks = Tasks::of(Family::Mistral);
        let retrieval = tasks.get("retrieval").unwrap();
        let expected = "Given the frames from a video, answer the time range in percentage that corresponds to query text \
                        split by comma. Video length is: 40.30 and text query is: a {duration}.";
        assert_eq!(retrieval.question("a {duration}.", 40.3).unwrap(), expected);
        assert_eq!((retrieval.parser, retrieval.says_duration()), (Parser::Reference7b, true));
        // Of Python: f"{s:.2f}", which rounds a tie to even.
        for (duration_s, said) in
            [(0.125, "0.12"), (0.375, "0.38"), (2.625, "2.62"), (62.345, "62.34"), (3600.0, "3600.00")]
        {
            let question = retrieval.question("x", duration_s).unwrap();
            assert!(question.contains(&format!("is: {said} and")), "{duration_s}: {question}");
        }
        assert!(!nine().get("retrieval").unwrap().says_duration());
    }

    #[test]
    fn a_file_says_what_a_family_has_of_its_own_and_an_unknown_one_is_refused() {
        let text = "[[task]]\nname = \"mine\"\nsupported = \"trained\"\nprompt = \"A\"\nquery = \"none\"\n\
                    [task.family.7b]\nprompt = \"B\"\nsupported = \"experimental\"\n";
        let mine = |family| {
            let mut tasks = Tasks::of(family);
            tasks.add(text).unwrap();
            let task = tasks.get("mine").unwrap();
            (task.question("", 0.0).unwrap(), task.supported)
        };
        assert_eq!(mine(Family::Gemma2), ("A".to_owned(), Supported::Trained));
        assert_eq!(mine(Family::Mistral), ("B".to_owned(), Supported::Experimental));
        let error = nine().add(&text.replace(".7b]", ".mistral]")).unwrap_err();
        assert!(error.contains("\"mistral\"") && error.contains("9b, 7b"), "{error}");
    }

    #[test]
    fn retrieval_takes_exactly_one_period_off_its_query() {
        let tasks = nine();
        let question = |q| tasks.get("retrieval").unwrap().question(q, 0.0).unwrap();
        assert_eq!(question("a cat"), "During which time segments in the video can we see a cat?");
        assert_eq!(question("a cat."), question("a cat"));
        assert_eq!(question("a cat.."), question("a cat.").replace("cat?", "cat.?"));
        assert_eq!(question("{query}"), "During which time segments in the video can we see {query}?");
        assert_eq!(tasks.get("qa").unwrap().question("Why?.", 0.0).unwrap(), "Why?.");
    }

    #[test]
    fn a_task_that_needs_a_query_refuses_an_empty_one() {
        let tasks = nine();
        for (task, query) in [("retrieval", ""), ("retrieval", " \n"), ("retrieval", "."), ("qa", "")] {
            let error = tasks.get(task).unwrap().question(query, 0.0).unwrap_err();
            assert_eq!(error.kind, ErrorKind::BadRequest, "{task} {query:?}");
        }
    }

    #[test]
    fn an_unknown_task_is_answered_with_the_known_ones() {
        let error = nine().get("thinking").unwrap_err();
        assert_eq!(error.kind, ErrorKind::BadRequest);
        assert!(error.message.contains("retrieval, qa, highlights"), "{error}");
    }

    #[test]
    fn a_file_adds_tasks_and_takes_the_place_of_known_ones() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tasks.toml");
        let text = r#"
            [[task]]
            name = "qa"
            supported = "trained"
            prompt = "In one word: {query}"
            query = "required"
            max_new_tokens = 8
            temperature = 0.5
            [[task]]
            name = "caption"
            supported = "experimental"
            prompt = "Describe the video in one sentence."
            query = "none"
        "#;
        std::fs::write(&file, text).unwrap();
        let tasks = Tasks::with_file(Some(&file), Family::Gemma2).unwrap();
        let names: Vec<&str> = tasks.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["retrieval", "qa", "highlights", "chapters", "grounding", "caption"]);
        let qa = tasks.get("qa").unwrap();
        assert_eq!(qa.question("why", 0.0).unwrap(), "In one word: why");
        let settings =
            |request: &JobRequest| (qa.generation(request).max_new_tokens, qa.generation(request).temperature);
        assert_eq!(settings(&request()), (8, 0.5));
        let own = JobRequest { max_new_tokens: 3, temperature: 1.5, ..request() };
        assert_eq!(settings(&own), (3, 1.5), "a request may ask for less, and for another temperature");
        assert_eq!(
            Tasks::with_file(Some(&dir.path().join("none.toml")), Family::Gemma2).unwrap_err().kind,
            ErrorKind::BadRequest
        );
    }

    #[test]
    fn a_task_that_cannot_be_asked_or_read_is_refused_by_name() {
        let composite = "supported = \"composite\"\nquery = \"none\"\n";
        let ranges = "[task.ranges]\nby = \"shots\"\nmin_s = 1.0\nmost = 3";
        for (entry, why) in [
            ("supported = \"trained\"\nprompt = \"x\"\nquery = \"required\"".to_owned(), "{query}"),
            ("supported = \"trained\"\nprompt = \"{query}\"\nquery = \"none\"".to_owned(), "{query}"),
            ("supported = \"trained\"\nprompt = \"x\"\nquery = \"none\"\nparser = \"regex\"".to_owned(), "regex"),
            ("supported = \"best\"\nprompt = \"x\"\nquery = \"none\"".to_owned(), "best"),
            ("supported = \"trained\"\nprompt = \"x\"\nquery = \"none\"\nanswer = \"text\"".to_owned(), "answer"),
            ("supported = \"trained\"\nprompt = \"x\"\nquery = \"none\"\ntop_p = 0.0".to_owned(), "top_p"),
            (format!("{composite}prompt = \"{{start}} {{end}}\""), "belong together"),
            (format!("{composite}prompt = \"{{start}}\"\n{ranges}"), "{end}"),
            (format!("{composite}prompt = \"{{start}} {{end}} {{duration}}\"\n{ranges}"), "{duration}"),
            (
                format!(
                    "{composite}prompt = \"{{start}} {{end}}\"\n[task.ranges]\nby = \"queries\"\ntask = \"qa\"\n\
                     queries = [\"x\"]\njoin_s = 0.0\nlargest_share = 0.5\nmost = 3"
                ),
                "answers with time ranges",
            ),
        ] {
            let error = nine().add(&format!("[[task]]\nname = \"mine\"\n{entry}\n")).unwrap_err();
            assert!(error.contains(why), "{entry}: {error}");
        }
        let fine = format!("[[task]]\nname = \"mine\"\n{composite}prompt = \"{{start}} {{end}}\"\n{ranges}\n");
        nine().add(&fine).unwrap();
        assert!(nine().add(&fine.repeat(2)).unwrap_err().contains("twice"));
        // Highlights are made of it.
        let text =
            "[[task]]\nname = \"retrieval\"\nsupported = \"trained\"\nprompt = \"{query}\"\nquery = \"required\"";
        assert!(nine().add(text).unwrap_err().contains("highlights"));
    }

    #[test]
    fn a_request_may_name_another_parser_and_no_unknown_one() {
        let tasks = nine();
        let retrieval = tasks.get("retrieval").unwrap();
        assert_eq!(
            retrieval.parser(&request()).unwrap(),
            Parser::Reference,
            "the reference's own, unless asked otherwise"
        );
        let named = |name: &str| retrieval.parser(&JobRequest { parser: Some(name.to_owned()), ..request() });
        assert_eq!(named("lenient").unwrap(), Parser::Lenient);
        let error = named("regex").unwrap_err();
        assert!(
            error.kind == ErrorKind::BadRequest && error.message.contains("reference, reference-7b, lenient"),
            "{error}"
        );
    }
}
