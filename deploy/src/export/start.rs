//! Start of a media file: time code and time stamps of its first picture, as ffprobe tells them.
//!
//! The answers of stage-decode count from the first picture on, whatever time the file gives it; editors and ffmpeg want that
//! time too. Only where a time code or stamp is other than 0 does it matter that ffprobe is not installed.

use std::path::Path;
use std::process::Stdio;

use serde::Deserialize;
use tokio::process::Command;

use super::process::of_file;
use super::timecode::Code;

/// Start of a media file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Start {
    /// Time code of the first picture; none where the file has none.
    pub code: Option<Code>,
    /// Time stamp of the first picture, seconds; of the file where it has no picture.
    pub picture_s: f64,
    /// Least time stamp of any track, seconds, from which ffmpeg's `-ss` counts.
    pub file_s: f64,
}

impl Start {
    /// Start of a file on this host; as it is by default where ffprobe is not installed or does not know.
    pub async fn of(file: &Path) -> Self {
        let entries = "format=start_time:format_tags=timecode:stream=codec_type,start_time:stream_tags=timecode";
        // What the file names is not opened.
        let output = Command::new("ffprobe")
            .args(["-v", "error", "-protocol_whitelist", "file", "-of", "json", "-show_entries", entries])
            .arg(of_file(file))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await;
        match output {
            Ok(output) => Start::told(&output.stdout),
            Err(error) => {
                tracing::debug!(%error, "ffprobe not started, the file is taken to start at 0");
                Start::default()
            }
        }
    }

    /// Start in what ffprobe writes; as it is by default where that says nothing of it.
    fn told(json: &[u8]) -> Self {
        let told: Told = serde_json::from_slice(json).unwrap_or_default();
        let seconds = |text: &Option<String>| text.as_ref()?.parse::<f64>().ok().filter(|s| s.is_finite());
        let file_s = seconds(&told.format.start_time).unwrap_or(0.0);
        let picture = told.streams.iter().find(|s| s.codec_type.as_deref() == Some("video"));
        let picture_s = picture.and_then(|s| seconds(&s.start_time)).unwrap_or(file_s);
        let mut parts = told.streams.iter().chain([&told.format]);
        let code = parts.find_map(|part| part.tags.timecode.as_ref()?.parse().ok());
        Start { code, picture_s, file_s }
    }
}

/// What ffprobe writes.
#[derive(Debug, Default, Deserialize)]
struct Told {
    #[serde(default)]
    streams: Vec<Part>,
    #[serde(default)]
    format: Part,
}

/// A stream, or the format.
#[derive(Debug, Default, Deserialize)]
struct Part {
    codec_type: Option<String>,
    start_time: Option<String>,
    #[serde(default)]
    tags: Tags,
}

#[derive(Debug, Default, Deserialize)]
struct Tags {
    timecode: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_code_and_time_stamps_are_those_of_the_first_picture() {
        let camera = br#"{ "programs": [], "streams": [
            { "codec_type": "audio", "start_time": "1.400000" },
            { "codec_type": "video", "start_time": "1.480000", "tags": { "timecode": "01:00:00;00" } },
            { "codec_type": "data", "tags": { "timecode": "01:00:00;00" } } ],
            "format": { "start_time": "1.400000" } }"#;
        let code = "01:00:00;00".parse().ok();
        assert!(code.is_some_and(|code: Code| code.is_drop));
        assert_eq!(Start::told(camera), Start { code, picture_s: 1.48, file_s: 1.4 });

        let of_format = br#"{ "streams": [ { "codec_type": "audio" } ],
            "format": { "start_time": "0.025057", "tags": { "timecode": "10:00:00:00" } } }"#;
        let code = Some(Code::hour(10));
        assert_eq!(Start::told(of_format), Start { code, picture_s: 0.025_057, file_s: 0.025_057 });
        for nothing in [&b"{}"[..], b"", br#"{ "format": { "start_time": "N/A" }, "streams": [] }"#] {
            assert_eq!(Start::told(nothing), Start::default());
        }
    }
}
