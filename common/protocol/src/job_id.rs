//! Name of a job.

use serde::{Deserialize, Serialize};

use crate::wire_error::{WireError, WireErrorKind};

/// Name of a job, chosen by the client: `[A-Za-z0-9_-]{1,64}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

impl JobId {
    /// Checks a name.
    ///
    /// # Errors
    /// [`WireErrorKind::Value`] when it is empty, too long or has a character that no subject may have.
    pub fn new(id: impl Into<String>) -> Result<Self, WireError> {
        let id = id.into();
        let ok =
            (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if ok {
            return Ok(JobId(id));
        }
        let shown: String = id.chars().take(80).collect();
        let detail = format!("job id {shown:?} is not [A-Za-z0-9_-]{{1,64}}");
        Err(WireError::new(WireErrorKind::Value, detail))
    }

    /// Name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for JobId {
    type Error = WireError;
    fn try_from(id: String) -> Result<Self, WireError> {
        JobId::new(id)
    }
}

impl From<JobId> for String {
    fn from(id: JobId) -> String {
        id.0
    }
}
