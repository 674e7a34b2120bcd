//! Paths in a configuration, which is UTF-8 where a file's name need not be: such a path stands in it as a `file:` URI with
//! percent-encoding, and any path may.

use std::path::{Path, PathBuf};

use protocol::file_uri;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path as text.
struct Named(PathBuf);

impl Serialize for Named {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize(deserializer).map(Named)
    }
}

/// Writes a path.
pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&file_uri::text(path))
}

/// Reads a path.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    String::deserialize(deserializer).map(|text| file_uri::path(&text))
}

/// A path that may be missing.
pub mod optional {
    use super::{Deserialize, Deserializer, Named, PathBuf, Serialize, Serializer};

    /// Writes it.
    pub fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
        path.clone().map(Named).serialize(serializer)
    }

    /// Reads it; an empty text is none.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
        let path = Option::<Named>::deserialize(deserializer)?;
        Ok(path.map(|Named(path)| path).filter(|path| !path.as_os_str().is_empty()))
    }
}

/// Several paths.
pub mod list {
    use super::{Deserialize, Deserializer, Named, PathBuf, Serializer};

    /// Writes them.
    pub fn serialize<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(paths.iter().cloned().map(Named))
    }

    /// Reads them.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
        Ok(Vec::<Named>::deserialize(deserializer)?.into_iter().map(|Named(path)| path).collect())
    }
}
