//! Where a chat's video comes from: a path or file URL, bytes in the request, an upload, or the name of an earlier one.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::part::Source;
use crate::gateway::fetch;
use crate::gateway::intake::file_id;
use crate::gateway::problem::{Kind, Problem};
use crate::gateway::spool::{Held, no_file};
use crate::gateway::state::State;
use crate::gateway::upload::Upload;

/// Bytes of base 64 that are decoded at a time; a multiple of four.
const AT_ONCE: usize = 64 << 10;

/// Video that stage-decode can open.
pub struct Video {
    /// Path or `file:` URL; empty where it was uploaded.
    pub path: String,
    /// Hold on it, where it was uploaded.
    pub held: Option<Held>,
}

/// Finds the video, and notes its name where it gets one.
///
/// # Errors
/// `bad_request`, `not_found`, those of uploads, and of [`fetch::fetch`].
pub async fn find(app: &State, source: Source, uuid: Option<&str>) -> Result<Video, Problem> {
    let video = match source {
        Source::Named => named(app, uuid.unwrap_or_default())?,
        Source::File(id) => uploaded(app, &id)?,
        Source::Base64 { data, kind } => bytes(app, &data, &kind).await?,
        Source::Url(url) => at(app, &url).await?,
    };
    if let Some(uuid) = uuid {
        let noted = video.held.as_ref().map_or(video.path.clone(), |held| format!("file-{}", held.facts.id));
        app.name_video(uuid, &noted);
    }
    Ok(video)
}

fn named(app: &State, uuid: &str) -> Result<Video, Problem> {
    let unknown = || {
        let shown: String = uuid.chars().take(80).collect();
        Problem::new(Kind::NotFound, format!("no video is known by the uuid {shown:?}"))
            .hint("send its video_url once more")
    };
    let noted = app.named_video(uuid).ok_or_else(unknown)?;
    match noted.starts_with("file-") {
        true => uploaded(app, &noted).map_err(|_| unknown()),
        false => Ok(Video { path: noted, held: None }),
    }
}

fn uploaded(app: &State, id: &str) -> Result<Video, Problem> {
    let held = app.spool.hold(file_id(id)).ok_or_else(|| no_file(id))?;
    Ok(Video { path: String::new(), held: Some(held) })
}

async fn at(app: &State, url: &str) -> Result<Video, Problem> {
    let scheme = url.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
    match scheme.as_deref() {
        Some("data") => {
            let (head, data) = url["data:".len()..].split_once(',').unwrap_or_default();
            let kind = head
                .strip_suffix(";base64")
                .ok_or_else(|| Problem::bad_request("a data URL has the form data:video/mp4;base64,..."))?;
            bytes(app, data, kind).await
        }
        Some("http" | "https") => {
            let held = fetch::fetch(app, url).await?;
            Ok(Video { path: String::new(), held: Some(held) })
        }
        // stage-decode refuses what is not below a media root.
        Some("file") => Ok(Video { path: app.mapped(url), held: None }),
        _ if url.starts_with('/') => Ok(Video { path: app.mapped(url), held: None }),
        _ => {
            let shown: String = url.chars().take(80).collect();
            Err(Problem::bad_request(format!("no URL of a video: {shown:?}"))
                .hint("send a file: or data: URL, or a path"))
        }
    }
}

/// Puts bytes into the spool.
async fn bytes(app: &State, data: &str, kind: &str) -> Result<Video, Problem> {
    let ending = kind.split(['/', ';']).nth(1).unwrap_or_default();
    let mut upload = Upload::begin(&app.spool, &format!("video.{ending}"), app.http.upload_bytes)?;
    for piece in data.trim().as_bytes().chunks(AT_ONCE) {
        let decoded = STANDARD.decode(piece);
        let decoded = decoded.map_err(|e| Problem::bad_request(format!("the video is not in base 64: {e}")))?;
        upload.write(&decoded).await?;
    }
    let (_, held) = upload.finish().await?;
    Ok(Video { path: String::new(), held: Some(held) })
}
