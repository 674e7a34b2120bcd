//! Parked videos as a person sees them, without the model that they are of.

use std::fs::File;
use std::io::Result;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::job::parked::directory::{Directory, ParkedFile};
use crate::job::parked::format::Head;

/// Parked video.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// Its id: the name of its file, without the ending.
    pub id: String,
    /// Size of its file.
    pub bytes: u64,
    /// When it was written or read last, Unix milliseconds.
    pub used_ms: u64,
    /// What it is; none where the file is damaged.
    pub about: Option<About>,
    /// What is wrong with the file; none where nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

/// What a parked video is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct About {
    /// The video as the request by which it came names it.
    pub video: String,
    /// Seconds of it.
    pub duration_s: f64,
    /// Part of the video, seconds; none for all of it.
    pub span: Option<[f64; 2]>,
    /// Frames a second that were looked at.
    pub fps: f64,
    /// Image and audio tokens.
    pub tokens: u64,
    /// Model that computed it.
    pub model: String,
    /// Compute type.
    pub dtype: String,
    /// Type of the keys and values.
    pub kv: String,
    /// Fingerprint of the model's checkpoint.
    pub fingerprint: String,
}

/// Parked videos of a directory, the last one used first; none where it is not there yet. Heads are read, not what they describe.
///
/// # Errors
/// The file system's.
pub fn list(directory: &Path) -> Result<Vec<Entry>> {
    let mut files = Directory::new(directory).files()?;
    files.reverse();
    let entry = |file: ParkedFile| {
        let head = File::open(&file.path).map_err(|e| e.to_string()).and_then(|file| Head::read(&file));
        let used_ms = file.used.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let (about, damage) = match head {
            Ok(head) => (Some(about(&head)), None),
            Err(why) => (None, Some(why)),
        };
        Entry { id: file.name, bytes: file.bytes, used_ms, about, damage }
    };
    Ok(files.into_iter().map(entry).collect())
}

fn about(head: &Head) -> About {
    let description = &head.description;
    let image = description.plan.image.as_ref().map_or(0, |image| image.tokens);
    let audio = description.plan.audio.as_ref().map_or(0, |audio| audio.tokens);
    About {
        video: description.video.clone(),
        duration_s: description.plan.duration_s,
        span: description.span,
        fps: description.fps,
        tokens: image + audio,
        model: description.model.name.clone(),
        dtype: description.model.dtype.clone(),
        kv: description.model.kv.clone(),
        fingerprint: description.key.fingerprint().to_owned(),
    }
}

/// Removes a parked video by its id; false if there is none.
///
/// # Errors
/// The file system's.
pub fn remove(directory: &Path, id: &str) -> Result<bool> {
    // Nothing is made where nothing is.
    if !directory.is_dir() {
        return Ok(false);
    }
    Directory::new(directory).remove(id)
}

/// Seconds since a parked video was written or read last.
pub fn age_s(entry: &Entry) -> u64 {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    now_ms.saturating_sub(entry.used_ms) / 1000
}
