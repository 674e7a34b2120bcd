//! A run of ffmpeg.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

/// A file as ffmpeg and ffprobe take it: a name is a file's whatever it looks like, and need not be UTF-8.
pub fn of_file(path: &Path) -> OsString {
    let mut argument = OsString::from("file:");
    argument.push(path);
    argument
}

/// Checks that ffmpeg can be started, for an option.
///
/// # Errors
/// When it cannot: what to install.
pub async fn check(option: &str) -> Result<(), String> {
    let mut ffmpeg = Command::new("ffmpeg");
    let started = ffmpeg.arg("-version").stdin(Stdio::null()).kill_on_drop(true).output().await;
    started.map(|_| ()).map_err(|e| {
        format!("{option} is made by ffmpeg, which cannot be started ({e}): install it (apt install ffmpeg)")
    })
}

/// Runs ffmpeg; what it writes to standard output.
///
/// # Errors
/// When it cannot be started, and its last words when it fails.
pub async fn run(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Vec<u8>, String> {
    let output = Command::new("ffmpeg")
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| format!("ffmpeg cannot be started: {e}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(format!("ffmpeg ended with {}: {last}", output.status))
}
