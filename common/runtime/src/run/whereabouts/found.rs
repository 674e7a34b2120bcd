//! What the instances of stage-decode said of a file.

use std::time::Duration;

use serde_json::json;

use protocol::error::{ErrorKind, JobError, StageName};
use protocol::message::WhereReply;
use protocol::stage::ON_THE_BUS;

/// Time within which an instance that is there answers; one whose disk hangs does not.
pub(super) const ANSWERS: Duration = Duration::from_secs(5);
/// Instances that an error names, of however many.
const NAMED: usize = 16;

/// What the instances said of a file.
#[derive(Clone, Debug)]
pub struct Found {
    /// Instance that asked.
    pub(super) own: String,
    pub(super) answers: Vec<WhereReply>,
    /// Instances that are there and have not answered.
    pub(super) silent: Vec<String>,
}

impl Found {
    /// An instance that has the file, and is not among `but`.
    pub fn holder(&self, content_id: Option<&str>, but: &[String]) -> Option<&str> {
        let has = |answer: &&WhereReply| answer.has(content_id) && !but.contains(&answer.instance);
        self.answers.iter().find(has).map(|answer| answer.instance.as_str())
    }

    /// Whether the answers mean anything: where even the one that asked has not heard itself, the broker is away.
    pub fn is_heard(&self) -> bool {
        self.answers.iter().any(|answer| answer.instance == self.own)
    }

    /// Whether an instance that is there has told of the content, and has it no more: it will not come back with it.
    pub fn is_gone(&self) -> bool {
        self.answers.iter().any(|answer| answer.told)
    }

    /// Refusal of a file that nobody has, where `own` is that of the instance that asked: `forbidden_path` if it lies outside of
    /// everyone's media roots, else `media_not_found`, and in both who was asked.
    pub fn refusal(&self, video: &str, content_id: Option<&str>, own: &JobError) -> JobError {
        let asked: Vec<_> = self
            .answers
            .iter()
            .map(|a| {
                json!({
                    "instance": a.instance, "host": a.host, "media_roots": a.media_roots,
                    "answer": if a.content_id.is_some() { "another file" } else { "not here" },
                })
            })
            .chain(self.silent.iter().map(|name| json!({ "instance": name, "answer": "none" })))
            .collect();
        if asked.len() <= 1 {
            return own.clone().detail("asked", asked);
        }
        let others: Vec<&WhereReply> = self.answers.iter().filter(|a| a.content_id.is_some()).collect();
        let outside = |a: &WhereReply| a.error.as_ref().is_some_and(|e| e.kind == ErrorKind::ForbiddenPath);
        let kind = match own.kind {
            ErrorKind::ForbiddenPath if self.answers.iter().all(outside) => ErrorKind::ForbiddenPath,
            _ => ErrorKind::MediaNotFound,
        };
        let (what, hint) = match (others.is_empty(), content_id) {
            (false, Some(wanted)) => (
                format!("the file that was planned ({wanted}) is nowhere, and another one has its path"),
                "submit the job again; a path that several hosts have names the same file on all of them, or none but one \
                 has it below its media roots",
            ),
            _ if kind == ErrorKind::ForbiddenPath => {
                ("it is outside the media roots of every stage-decode".to_owned(), own.hint.as_str())
            }
            _ if video.starts_with(ON_THE_BUS) => (own.message.clone(), own.hint.as_str()),
            _ => (
                "no stage-decode has it".to_owned(),
                "check the spelling, that its directory is mounted where one of them runs, and that this one runs; or upload \
                 the file (POST /v1/files)",
            ),
        };
        let text = format!("cannot open {video}: {what}. Asked were {}", self.names());
        JobError::new(kind, text).hint(hint).detail("asked", asked).at(StageName::Decode)
    }

    fn names(&self) -> String {
        let answered = self.answers.iter().map(|answer| {
            let other = answer.content_id.as_ref().map_or(String::new(), |id| format!(", where it is {id}"));
            format!("{} on {} (media roots {}{other})", answer.instance, answer.host, answer.media_roots.join(", "))
        });
        let mut names: Vec<String> = answered.collect();
        names.sort();
        names.extend(self.silent.iter().map(|name| format!("{name} (no answer within {} s)", ANSWERS.as_secs())));
        let more = names.len().saturating_sub(NAMED);
        names.truncate(NAMED);
        if more > 0 {
            names.push(format!("{more} more"));
        }
        names.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::wire;

    fn answer(instance: &str, content_id: Option<&str>, kind: ErrorKind) -> WhereReply {
        WhereReply {
            v: wire::VERSION,
            instance: instance.to_owned(),
            host: format!("host-of-{instance}"),
            media_roots: vec![format!("/media/{instance}")],
            content_id: content_id.map(str::to_owned),
            told: false,
            error: content_id.is_none().then(|| JobError::new(kind, "no")),
        }
    }

    fn found(answers: Vec<WhereReply>, silent: &[&str]) -> Found {
        Found { own: "a".to_owned(), answers, silent: silent.iter().map(|&name| name.to_owned()).collect() }
    }

    const NOT_FOUND: ErrorKind = ErrorKind::MediaNotFound;
    const FORBIDDEN: ErrorKind = ErrorKind::ForbiddenPath;

    #[test]
    fn a_file_is_forbidden_only_where_it_lies_outside_of_everyones_roots_and_all_who_were_asked_are_named() {
        for (kinds, own, expected) in [
            ([FORBIDDEN, FORBIDDEN], FORBIDDEN, FORBIDDEN),
            ([FORBIDDEN, NOT_FOUND], FORBIDDEN, NOT_FOUND),
            ([NOT_FOUND, FORBIDDEN], NOT_FOUND, NOT_FOUND),
        ] {
            let all = found(vec![answer("a", None, kinds[0]), answer("b", None, kinds[1])], &["c"]);
            let error = all.refusal("/media/x.mp4", None, &JobError::new(own, "own"));
            assert_eq!(error.kind, expected);
            for word in
                ["a on host-of-a (media roots /media/a)", "b on host-of-b (media roots /media/b)", "c (no answer"]
            {
                assert!(error.message.contains(word), "no {word:?} in {error}");
            }
            assert_eq!(error.details["asked"].as_array().map(Vec::len), Some(3), "{error:?}");
        }
    }

    #[test]
    fn an_instance_that_is_alone_says_what_it_would_say_anyway() {
        let own = JobError::new(NOT_FOUND, "cannot open /media/x.mp4: it does not exist").hint("look");
        let error = found(vec![answer("a", None, NOT_FOUND)], &[]).refusal("/media/x.mp4", None, &own);
        assert_eq!((error.kind, &error.message, &error.hint), (own.kind, &own.message, &own.hint));
    }

    #[test]
    fn another_content_under_the_same_path_is_no_holder_and_is_named() {
        let all = found(vec![answer("a", None, NOT_FOUND), answer("b", Some("sampled:2"), NOT_FOUND)], &[]);
        assert_eq!(all.holder(Some("sampled:1"), &[]), None);
        assert_eq!(all.holder(Some("sampled:2"), &[]), Some("b"));
        assert_eq!(all.holder(None, &["b".to_owned()]), None);
        let error = all.refusal("/media/x.mp4", Some("sampled:1"), &JobError::new(NOT_FOUND, "own"));
        assert!(error.message.contains("sampled:1") && error.message.contains("where it is sampled:2"), "{error}");
        assert_eq!(error.kind, NOT_FOUND);
    }

    #[test]
    fn hundreds_of_instances_are_counted_and_not_all_named() {
        let all = found((0..300).map(|n| answer(&format!("decode-{n}"), None, NOT_FOUND)).collect(), &[]);
        let error = all.refusal("/media/x.mp4", None, &JobError::new(NOT_FOUND, "own"));
        assert!(error.message.contains("284 more") && error.message.len() < 4096, "{}", error.message.len());
    }
}
