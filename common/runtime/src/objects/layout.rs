//! Names and facts of an object store, as ADR-20 has them.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use serde::{Deserialize, Serialize};

/// Key of the modification time among an object's metadata.
const MODIFIED: &str = "vidi-modified-ns";
/// Algorithm before a digest.
const SHA_256: &str = "SHA-256=";

/// File of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Name in the bucket.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// Its modification time, Unix nanoseconds: a copy has the same, and so the same content id.
    pub modified_ns: u64,
    /// SHA-256 of its bytes.
    pub digest: [u8; 32],
}

/// Subjects and streams of a bucket.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub bucket: String,
    pub stream: String,
}

impl Names {
    /// Names below a prefix; the default one has the short ones, as with other streams.
    pub fn of(prefix: &str) -> Self {
        let bucket = match prefix {
            "vidi.v1" => "VIDI_FILES".to_owned(),
            other => format!("VIDI_FILES_{}", other.replace('.', "_")),
        };
        Names { stream: format!("OBJ_{bucket}"), bucket }
    }

    /// Subjects of all chunks.
    pub fn all_chunks(&self) -> String {
        format!("$O.{}.C.>", self.bucket)
    }

    /// Subjects of the facts of all files.
    pub fn all_facts(&self) -> String {
        format!("$O.{}.M.>", self.bucket)
    }

    /// Subject of the chunks of one writing of a file.
    pub fn chunks(&self, writing: &str) -> String {
        format!("$O.{}.C.{writing}", self.bucket)
    }

    /// Subject of the facts of a file.
    pub fn facts(&self, name: &str) -> String {
        format!("$O.{}.M.{}", self.bucket, URL_SAFE.encode(name))
    }

    /// Name of the file whose facts are on a subject.
    pub fn name_of(&self, subject: &str) -> Option<String> {
        let encoded = subject.strip_prefix(&format!("$O.{}.M.", self.bucket))?;
        String::from_utf8(URL_SAFE.decode(encoded).ok()?).ok()
    }

    /// Writing whose chunks are on a subject.
    pub fn writing_of<'a>(&self, subject: &'a str) -> Option<&'a str> {
        subject.strip_prefix(&format!("$O.{}.C.", self.bucket))
    }
}

/// Message with the facts of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Facts {
    name: String,
    bucket: String,
    /// One writing of the file.
    pub nuid: String,
    size: u64,
    pub chunks: u64,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    options: Options,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Options {
    #[serde(default)]
    max_chunk_size: usize,
}

impl Facts {
    /// Facts of an object that was written in so many chunks.
    pub fn new(object: &Object, names: &Names, nuid: &str, chunks: u64, max_chunk_size: usize) -> Self {
        Facts {
            name: object.name.clone(),
            bucket: names.bucket.clone(),
            nuid: nuid.to_owned(),
            size: object.size,
            chunks,
            digest: format!("{SHA_256}{}", URL_SAFE.encode(object.digest)),
            metadata: BTreeMap::from([(MODIFIED.to_owned(), object.modified_ns.to_string())]),
            options: Options { max_chunk_size },
            deleted: false,
        }
    }

    /// The object; none if it says no digest of its bytes.
    pub fn object(&self) -> Option<Object> {
        let digest = URL_SAFE.decode(self.digest.strip_prefix(SHA_256)?).ok()?;
        let modified_ns = self.metadata.get(MODIFIED).and_then(|ns| ns.parse().ok()).unwrap_or(0);
        Some(Object { name: self.name.clone(), size: self.size, modified_ns, digest: digest.try_into().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_facts_are_read_back_from_what_is_written() {
        for (prefix, bucket) in [("vidi.v1", "VIDI_FILES"), ("seven.b", "VIDI_FILES_seven_b")] {
            let names = Names::of(prefix);
            assert_eq!((names.bucket.as_str(), names.stream.clone()), (bucket, format!("OBJ_{bucket}")));
            for name in ["a.mp4", "ä/ö?.mp4", ""] {
                assert_eq!(names.name_of(&names.facts(name)).as_deref(), Some(name));
            }
            assert_eq!(names.writing_of(&names.chunks("x1")), Some("x1"));
            assert_eq!(names.name_of(&names.chunks("x1")), None);
        }
        let object =
            Object { name: "a.mp4".to_owned(), size: 7, modified_ns: 1_700_000_000_123_456_789, digest: [9; 32] };
        let facts = Facts::new(&object, &Names::of("vidi.v1"), "n", 1, 128);
        let read: Facts = serde_json::from_slice(&serde_json::to_vec(&facts).unwrap()).unwrap();
        assert_eq!(read.object(), Some(object));
        assert!(!read.deleted);
    }
}
