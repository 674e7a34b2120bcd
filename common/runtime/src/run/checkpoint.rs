//! Which checkpoint a process computes with. What is made with one is of no use with another, though it has the same shape:
//! processes and messages of another are refused by name.

use std::fmt;

use async_nats::HeaderMap;

use protocol::error::{ErrorKind, JobError};

/// Header with the checkpoint that a message was made for.
const CHECKPOINT: &str = "Vidi-Checkpoint";
/// Between name and fingerprint in that header.
const BETWEEN: char = '@';

/// Checkpoint of a process or a message: unknown to stage-decode, which needs none, and in messages of earlier releases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name, for a person.
    pub name: String,
    /// [Fingerprint](config::ModelSource::fingerprint); empty if unknown.
    pub fingerprint: String,
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{BETWEEN}{}", self.name, self.fingerprint)
    }
}

impl Checkpoint {
    /// Checkpoint that a message was made for, by its headers.
    pub fn of(headers: Option<&HeaderMap>) -> Self {
        let header = headers.and_then(|h| h.get(CHECKPOINT)).map_or("", |value| value.as_str());
        let (name, fingerprint) = header.rsplit_once(BETWEEN).unwrap_or_default();
        Checkpoint { name: name.to_owned(), fingerprint: fingerprint.to_owned() }
    }

    /// This one, or the other where it is unknown.
    pub fn or(&self, other: Checkpoint) -> Checkpoint {
        if self.fingerprint.is_empty() { other } else { self.clone() }
    }

    /// Adds it to the headers of a message, if it is known.
    pub fn note(&self, headers: &mut HeaderMap) {
        if !self.fingerprint.is_empty() {
            // A directory's name may have what no header may.
            let shown = |c: char| if c.is_ascii_graphic() { c } else { '_' };
            headers.insert(CHECKPOINT, self.to_string().chars().map(shown).collect::<String>().as_str());
        }
    }

    /// Whether both may be the same.
    pub fn agrees(&self, other: &Checkpoint) -> bool {
        self.fingerprint == other.fingerprint || self.fingerprint.is_empty() || other.fingerprint.is_empty()
    }

    /// Refuses a message that was made for another one.
    ///
    /// # Errors
    /// `model`, with both and the instance that refuses.
    pub fn check(&self, headers: Option<&HeaderMap>, instance: &str) -> Result<(), JobError> {
        let other = Checkpoint::of(headers);
        if self.agrees(&other) {
            return Ok(());
        }
        let text = format!("the message was made for checkpoint {other}, and {instance} computes with {self}");
        Err(JobError::new(ErrorKind::Model, text).hint("serve every stage from the same checkpoint"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(name: &str, fingerprint: &str) -> Checkpoint {
        Checkpoint { name: name.to_owned(), fingerprint: fingerprint.to_owned() }
    }

    fn message_of(checkpoint: &Checkpoint) -> HeaderMap {
        let mut headers = HeaderMap::new();
        checkpoint.note(&mut headers);
        headers
    }

    #[test]
    fn a_message_is_refused_by_both_names_if_it_was_made_for_another_checkpoint() {
        let (own, other) = (checkpoint("tied", "01"), checkpoint("un tied@x", "02"));
        let error = own.check(Some(&message_of(&other)), "vision-7-abcd").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Model);
        for word in ["tied@01", "un_tied@x@02", "vision-7-abcd"] {
            assert!(error.message.contains(word), "{error}");
        }
    }

    #[test]
    fn the_same_weights_by_another_name_and_messages_that_tell_none_are_taken() {
        let own = checkpoint("tied", "01");
        for headers in [message_of(&checkpoint("copy", "01")), message_of(&Checkpoint::default()), HeaderMap::new()] {
            assert!(own.check(Some(&headers), "vision-7-abcd").is_ok());
        }
        assert!(own.check(None, "vision-7-abcd").is_ok());
        let unknown = Checkpoint::default();
        assert!(unknown.check(Some(&message_of(&own)), "decode-7-abcd").is_ok());
        assert_eq!((unknown.or(own.clone()), own.or(unknown.clone())), (own.clone(), own));
    }
}
