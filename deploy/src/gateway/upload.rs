//! One upload on its way to the spool: written as it comes, hashed on the way; dropped half-way, it leaves nothing.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use protocol::bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::problem::{Kind, Problem};
use super::spool::{Facts, Held, Spool, UNFINISHED};

/// Characters of an ending that is kept.
const ENDING: usize = 5;

/// File that is being uploaded.
pub struct Upload {
    spool: Arc<Spool>,
    file: tokio::fs::File,
    /// Removes the file when it is dropped; none once that is not ours to do.
    path: Option<tempfile::TempPath>,
    hash: Sha256,
    name: String,
    bytes: u64,
    limit: u64,
}

impl Upload {
    /// Begins an upload of at most `limit` bytes; `name` is the client's for the file.
    ///
    /// # Errors
    /// The file system's.
    pub fn begin(spool: &Arc<Spool>, name: &str, limit: u64) -> Result<Self, Problem> {
        let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(spool.dir());
        let (file, path) = file.context("upload failed: no file in the spool").map_err(on_disk)?.into_parts();
        // The last part of whatever it is: a name for people, never a path.
        let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
        let name = name.chars().filter(|c| !c.is_control()).take(200).collect();
        let (file, hash) = (tokio::fs::File::from_std(file), Sha256::new());
        Ok(Upload { spool: spool.clone(), file, path: Some(path), hash, name, bytes: 0, limit })
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// `too_large` and `spool_full` with the figures, and the file system's.
    pub async fn write(&mut self, chunk: &[u8]) -> Result<(), Problem> {
        let bytes = self.bytes + chunk.len() as u64;
        if bytes > self.limit {
            return Err(too_large(self.limit));
        }
        self.spool.reserve(chunk.len() as u64)?;
        self.bytes = bytes;
        self.hash.update(chunk);
        self.file.write_all(chunk).await.context("upload failed: writing to the spool").map_err(on_disk)
    }

    /// Keeps what was written; returns whether the spool did not have it yet.
    ///
    /// # Errors
    /// For a file of no bytes, and the file system's.
    pub async fn finish(mut self) -> Result<(bool, Held), Problem> {
        if self.bytes == 0 {
            return Err(Problem::bad_request("the uploaded file has no bytes"));
        }
        self.file.flush().await.context("upload failed: writing to the spool").map_err(on_disk)?;
        let mut id = String::new();
        for byte in std::mem::take(&mut self.hash).finalize() {
            // Writing to a string cannot fail.
            let _ = write!(id, "{byte:02x}");
        }
        let created_s = runtime::bus::events::now_ms() / 1000;
        let file = format!("{id}{}", ending(&self.name));
        let name = std::mem::take(&mut self.name);
        let facts = Facts { id, file, name, bytes: self.bytes, created_s };
        let path = self.path.take().context("an upload ends once. This is a bug.").map_err(on_disk)?;
        self.spool.take(path, facts).map_err(on_disk)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.spool.release(self.bytes);
    }
}

/// A file of more bytes than are taken.
pub fn too_large(limit: u64) -> Problem {
    Problem::new(Kind::TooLarge, format!("upload refused: the file has more than {} (http.upload_bytes)", Bytes(limit)))
        .hint("send a shorter or smaller video, or name it by its path under a media root")
        .detail("limit_bytes", limit)
}

fn on_disk(error: anyhow::Error) -> Problem {
    Problem::unavailable(&error).hint("look at the disk of http.spool")
}

/// `.mp4` of `clip.MP4`; empty for what is no plain ending.
fn ending(name: &str) -> String {
    let ending = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    let is_plain = (1..=ENDING).contains(&ending.len()) && ending.bytes().all(|b| b.is_ascii_alphanumeric());
    // Facts about files end so.
    if is_plain && ending != "json" { format!(".{ending}") } else { String::new() }
}
