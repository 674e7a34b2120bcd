//! Parts of a message's content: text, and videos in the forms of vLLM, LangChain and OpenAI.

use serde_json::Value;

use crate::gateway::problem::Problem;

/// Where a part says its video is.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// Path, or URL with the scheme file, data, http or https.
    Url(String),
    /// The bytes themselves, with their media type.
    Base64 {
        /// The bytes in base 64.
        data: String,
        /// Their media type; empty where it is not said.
        kind: String,
    },
    /// Uploaded file.
    File(String),
    /// The video that an earlier request gave this name.
    Named,
}

/// Part of a message's content.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Words.
    Text(String),
    /// Video, with the name that it has or gets.
    Video {
        /// Where it is.
        source: Source,
        /// Name for later requests.
        uuid: Option<String>,
    },
}

/// Parts of a message's content, which is a text or a list.
///
/// # Errors
/// `bad_request` for what is no text and no video.
pub fn parts(content: &Value) -> Result<Vec<Part>, Problem> {
    match content {
        Value::Null => Ok(Vec::new()),
        Value::String(text) => Ok(vec![Part::Text(text.clone())]),
        Value::Array(parts) => parts.iter().map(part).collect(),
        _ => Err(Problem::bad_request("the content of a message is a text or a list of parts")),
    }
}

fn part(part: &Value) -> Result<Part, Problem> {
    let text = |name: &str| part.get(name).and_then(Value::as_str).map(str::to_owned);
    let uuid = text("uuid");
    let kind = text("type").unwrap_or_default();
    let incomplete = |needed: &str| Problem::bad_request(format!("a part of type {kind:?} has no {needed}"));
    let source = match kind.as_str() {
        "text" | "input_text" => return text("text").map(Part::Text).ok_or_else(|| incomplete("text")),
        "video_url" => match part.get("video_url") {
            None | Some(Value::Null) if uuid.is_some() => Source::Named,
            Some(Value::String(url)) => Source::Url(url.clone()),
            Some(object) => {
                let url = object.get("url").and_then(Value::as_str);
                Source::Url(url.ok_or_else(|| incomplete("video_url.url"))?.to_owned())
            }
            None => return Err(incomplete("video_url")),
        },
        "video" => {
            let media = text("mime_type").unwrap_or_default();
            let bytes = text("base64").or_else(|| text("data")).map(|data| Source::Base64 { data, kind: media });
            let file = text("file_id").or_else(|| text("id").filter(|_| text("source_type").as_deref() == Some("id")));
            let source = text("url").map(Source::Url).or(bytes).or(file.map(Source::File));
            source.ok_or_else(|| incomplete("url, base64 or file_id"))?
        }
        "file" => {
            let of = |name: &str| part.get("file")?.get(name)?.as_str().map(str::to_owned);
            let source = of("file_id").map(Source::File).or(of("file_data").map(Source::Url));
            source.ok_or_else(|| incomplete("file.file_id"))?
        }
        other => {
            let shown: String = other.chars().take(80).collect();
            let problem = Problem::bad_request(format!("no part of type {shown:?} can be read"));
            return Err(problem.hint("send text, video_url, video or file; pictures and sound go as videos"));
        }
    };
    Ok(Part::Video { source, uuid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn one(value: Value) -> Part {
        parts(&json!([value])).unwrap().remove(0)
    }

    #[test]
    fn videos_are_found_in_all_the_forms_that_clients_send() {
        let video = |source, uuid: Option<&str>| Part::Video { source, uuid: uuid.map(str::to_owned) };
        let url = || Source::Url("file:///v.mp4".to_owned());
        assert_eq!(
            one(json!({"type": "video_url", "video_url": {"url": "file:///v.mp4"}, "uuid": "a"})),
            video(url(), Some("a"))
        );
        assert_eq!(one(json!({"type": "video_url", "video_url": null, "uuid": "a"})), video(Source::Named, Some("a")));
        assert_eq!(one(json!({"type": "video", "url": "file:///v.mp4"})), video(url(), None));
        assert_eq!(one(json!({"type": "video", "source_type": "url", "url": "file:///v.mp4"})), video(url(), None));
        let bytes = Source::Base64 { data: "AAAA".to_owned(), kind: "video/mp4".to_owned() };
        assert_eq!(
            one(json!({"type": "video", "base64": "AAAA", "mime_type": "video/mp4"})),
            video(bytes.clone(), None)
        );
        let old = json!({"type": "video", "source_type": "base64", "data": "AAAA", "mime_type": "video/mp4"});
        assert_eq!(one(old), video(bytes, None));
        let file = || Source::File("file-1".to_owned());
        assert_eq!(one(json!({"type": "video", "file_id": "file-1"})), video(file(), None));
        assert_eq!(one(json!({"type": "video", "source_type": "id", "id": "file-1"})), video(file(), None));
        assert_eq!(one(json!({"type": "file", "file": {"file_id": "file-1"}})), video(file(), None));
        assert_eq!(parts(&json!("when?")).unwrap(), [Part::Text("when?".to_owned())]);
    }

    #[test]
    fn parts_that_cannot_be_read_are_refused_by_their_type() {
        for (wrong, named) in [
            (json!({"type": "image_url", "image_url": {"url": "data:,"}}), "image_url"),
            (json!({"type": "video_url", "video_url": null}), "video_url"),
            (json!({"type": "video"}), "base64"),
            (json!({"type": "text"}), "text"),
            (json!({}), "\"\""),
        ] {
            let problem = parts(&json!([wrong])).unwrap_err();
            assert!(problem.message.contains(named), "{problem:?}");
        }
        assert!(parts(&json!(7)).is_err());
    }
}
