//! The body of a chat to the job that answers it.

use serde_json::{Map, Value, json};

use super::part::{self, Part};
use super::video::{self, Video};
use crate::gateway::intake::{self, Asked};
use crate::gateway::pipelines::Model;
use crate::gateway::problem::Problem;
use crate::gateway::state::State;

/// Task of a chat that names none.
const TASK: &str = "qa";

/// Fields that a JobRequest has under another name, or the same.
const PASSED_ON: [(&str, &str); 16] = [
    ("task", "task"),
    ("queries", "queries"),
    ("parser", "parser"),
    ("pad_s", "pad_s"),
    ("join_s", "join_s"),
    ("fps", "fps"),
    ("span", "span"),
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("seed", "seed"),
    ("max_tokens", "max_new_tokens"),
    ("max_completion_tokens", "max_new_tokens"),
    ("deadline_s", "deadline_s"),
    ("priority", "priority"),
    ("job", "job"),
    ("detach", "detach"),
];

/// Fields that would change the answer, and that this model cannot honour.
const NOT_HERE: [&str; 9] = [
    "tools",
    "functions",
    "stop",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "response_format",
    "presence_penalty",
    "frequency_penalty",
];

/// Chat as it was asked for.
pub struct Chat {
    /// Its job.
    pub asked: Asked,
    /// Name of the model that answers.
    pub model: String,
    /// Whether its answer comes in chunks.
    pub stream: bool,
    /// Whether the last chunk counts tokens.
    pub include_usage: bool,
}

/// Reads a chat: the question is the text of its last message, the video the last one of any.
///
/// # Errors
/// `bad_request` for fields that are off or cannot be honoured, and for no question or video; `not_found` for an unknown model;
/// those of [`video::find`].
pub async fn chat(app: &State, mut body: Map<String, Value>) -> Result<Chat, Problem> {
    honourable(&body)?;
    let stream = flag(body.get("stream"), "stream")?;
    let options = body.get("stream_options").and_then(|options| options.get("include_usage"));
    let include_usage = flag(options, "stream_options.include_usage")?;
    let messages = match body.remove("messages") {
        Some(Value::Array(messages)) if !messages.is_empty() => messages,
        _ => return Err(Problem::bad_request("messages is a list of at least one message")),
    };
    let (question, source) = question(&messages)?;
    let mut job = Map::new();
    for (theirs, ours) in PASSED_ON {
        if let Some(value) = body.remove(theirs).filter(|value| !value.is_null()) {
            job.insert(ours.to_owned(), value);
        }
    }
    job.entry("task").or_insert_with(|| json!(TASK));
    job.insert("query".to_owned(), json!(question));
    let Some((source, uuid)) = source else {
        let hint = "add a part {\"type\": \"video_url\", \"video_url\": {\"url\": ...}} to a message";
        return Err(Problem::bad_request("the chat has no video").hint(hint));
    };
    let Model { id, pipeline, .. } = app.pipelines.named(intake::model(&mut body)?.as_deref()).await?;
    let Video { path, held } = video::find(app, source, uuid.as_deref()).await?;
    if held.is_none() {
        job.insert("video".to_owned(), json!(path));
    }
    Ok(Chat { asked: intake::job_of(app, pipeline, job, held)?, model: id, stream, include_usage })
}

/// Text of the last message, and the last video.
type Question = (String, Option<(part::Source, Option<String>)>);

fn question(messages: &[Value]) -> Result<Question, Problem> {
    let mut video = None;
    let mut words = String::new();
    for message in messages {
        let mut texts = Vec::new();
        for part in part::parts(message.get("content").unwrap_or(&Value::Null))? {
            match part {
                Part::Text(text) => texts.push(text),
                Part::Video { source, uuid } => video = Some((source, uuid)),
            }
        }
        words = texts.join("\n");
    }
    let last = messages.last().and_then(|message| message.get("role")).and_then(Value::as_str);
    if last != Some("user") {
        return Err(Problem::bad_request("the last message is not the user's").hint("end the chat with the question"));
    }
    Ok((words.trim().to_owned(), video))
}

fn honourable(body: &Map<String, Value>) -> Result<(), Problem> {
    let says_nothing = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty() || object.get("type").and_then(Value::as_str) == Some("text"),
        _ => false,
    };
    if let Some(name) = NOT_HERE.iter().find(|name| body.get(**name).is_some_and(|value| !says_nothing(value))) {
        return Err(Problem::bad_request(format!("{name} cannot be honoured")).hint("leave it out"));
    }
    match body.get("n").filter(|n| !n.is_null()) {
        Some(n) if n.as_u64() != Some(1) => {
            Err(Problem::bad_request(format!("n is 1, not {n}")).hint("ask once for each"))
        }
        _ => Ok(()),
    }
}

fn flag(value: Option<&Value>, name: &str) -> Result<bool, Problem> {
    match value {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(other) => Err(Problem::bad_request(format!("{name} is true or false, not {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_the_last_message_and_the_video_the_last_one_of_any() {
        let part = |url: &str| json!({"type": "video_url", "video_url": {"url": url}});
        let chat = json!([
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [part("file:///a.mp4"), {"type": "text", "text": "first"}]},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": [{"type": "text", "text": "when?"}]},
        ]);
        let (words, video) = question(chat.as_array().unwrap()).unwrap();
        assert_eq!(words, "when?");
        assert_eq!(video, Some((part::Source::Url("file:///a.mp4".to_owned()), None)));
        assert!(question(&chat.as_array().unwrap()[..3]).is_err());
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_and_what_says_nothing_is_not() {
        let asked = |body: Value| honourable(body.as_object().unwrap());
        let fine = json!({"n": 1, "stop": null, "tools": [], "presence_penalty": 0, "response_format": {"type": "text"}, "user": "x"});
        assert_eq!(asked(fine), Ok(()));
        for wrong in [json!({"n": 2}), json!({"stop": "x"}), json!({"tools": [{}]})] {
            assert!(asked(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
