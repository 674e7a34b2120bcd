//! What one instance of stage-decode asks all of them: who has a file.

use serde::{Deserialize, Serialize};

use crate::error::JobError;
use crate::wire::{Message, version};
use crate::wire_error::WireError;

/// Question who has a file, made to every stage-decode; each answers for itself, at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhereRequest {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Path or `file:` URI.
    pub video: String,
    /// Content that it is to have ([`crate::plan::MediaInfo::content_id`]); none for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_id: Option<String>,
}

impl Message for WhereRequest {
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}

/// Answer of one instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhereReply {
    /// Protocol version.
    #[serde(default = "version")]
    pub v: u32,
    /// Instance that answers.
    pub instance: String,
    /// Name of its host.
    pub host: String,
    /// Directories below which it opens files.
    pub media_roots: Vec<String>,
    /// Content of the file at that path; none if it cannot be opened here, empty if it is known only once the file is fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_id: Option<String>,
    /// Whether this instance has told of the content that was asked for: a plan was made from its word.
    #[serde(default)]
    pub told: bool,
    /// Reason for which it cannot be opened here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
}

impl WhereReply {
    /// Whether the instance has the file, with the content that was asked for if one was.
    pub fn has(&self, content_id: Option<&str>) -> bool {
        self.content_id.as_deref().is_some_and(|own| own.is_empty() || content_id.is_none_or(|wanted| own == wanted))
    }
}

impl Message for WhereReply {
    fn check(&self) -> Result<(), WireError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_as_there_only_with_the_content_that_was_asked_for() {
        let reply = |content_id: Option<&str>| WhereReply {
            v: version(),
            instance: "decode-1-0000".to_owned(),
            host: "alpha".to_owned(),
            media_roots: vec!["/media".to_owned()],
            content_id: content_id.map(str::to_owned),
            told: false,
            error: None,
        };
        assert!(reply(Some("sampled:a")).has(None) && reply(Some("sampled:a")).has(Some("sampled:a")));
        assert!(reply(Some("")).has(Some("sampled:a")), "fetched, and looked at then");
        assert!(!reply(Some("sampled:a")).has(Some("sampled:b")));
        assert!(!reply(None).has(None) && !reply(None).has(Some("sampled:a")));
    }
}
