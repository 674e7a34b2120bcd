//! Single frames of the media as JPEG, as they are shown: upright, with square pixels.

use std::ffi::OsString;

use super::ffmpeg::{BEFORE, before_frame, part};
use super::media::{Media, Pictures};
use super::process;

/// Time before a frame that is not there in which another is looked for, microseconds: the one that is still shown then.
const BACK: u64 = 10_000_000;
/// First bytes of a JPEG: no other bytes of one are these (ISO/IEC 10918-1, B.1.1.2).
const START: [u8; 3] = [0xff, 0xd8, 0xff];

/// A frame of the media, by its number, as large as it fits into `most` pixels of width and height. Where there is none of
/// that time or behind it (pictures may end before the sound, or not come evenly), it is the last one of the ten seconds before.
///
/// # Errors
/// When ffmpeg cannot be started or fails, and when there is no frame in all this time.
pub async fn jpeg(media: &Media, pictures: &Pictures, number: u64, most: [u32; 2]) -> Result<Vec<u8>, String> {
    let named = |why: String| {
        let code = pictures.codes.label(pictures.first + number);
        format!("no frame {number} ({code}) of {}: {why}", media.path.display())
    };
    let at = before_frame(media, pictures.rate, number);
    let first = taken(part(media, at, None), Some("1"), most).await.map_err(named)?;
    if !first.is_empty() {
        return Ok(first);
    }
    let from = at.saturating_sub(BACK);
    let before = taken(part(media, from, Some(at - from + 1)), None, most).await.map_err(named)?;
    let last = before.windows(START.len()).rposition(|bytes| bytes == START);
    last.map(|start| before[start..].to_vec())
        .ok_or_else(|| named("there is none at this time, nor in the ten seconds before".to_owned()))
}

/// Frames of a part of the media, one JPEG behind the other.
async fn taken(part: Vec<OsString>, frames: Option<&str>, [width, height]: [u32; 2]) -> Result<Vec<u8>, String> {
    // `dar` is the shape as shown: ffmpeg has turned the picture before this. A JPEG's colours are those of BT.601, whatever
    // the video's are.
    let scale = format!(
        "scale=w='max(1,round(min({width},{height}*dar)))':h='max(1,round(min({height},{width}/dar)))'\
         :out_color_matrix=bt601:out_range=pc,setsar=1,format=yuvj420p"
    );
    let form = ["-map", "0:v:0", "-vf", &scale, "-c:v", "mjpeg", "-q:v", "3", "-f", "image2pipe", "pipe:1"];
    let frames = frames.into_iter().flat_map(|count| ["-frames:v", count]);
    let arguments = BEFORE.into_iter().map(OsString::from).chain(part);
    process::run(arguments.chain(frames.chain(form).map(OsString::from))).await
}
