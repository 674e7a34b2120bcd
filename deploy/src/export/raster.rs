//! Pictures in pixels: an SVG of ours, drawn by the librsvg in ffmpeg.
//!
//! ffmpeg takes the frames that are in the pictures, so it is there; those of Debian and Ubuntu read SVG, and bring fonts with
//! them (librsvg needs Pango, Pango fontconfig, fontconfig one of the font packages). A build of one's own may not: hence
//! [`check`].

use std::ffi::OsStr;
use std::io::Write;
use std::ops::Range;

use super::ffmpeg::BEFORE;
use super::process::{self, of_file};

/// Side of a character's picture, pixels.
const SIDE: usize = 64;
/// Rows of it above which a point has nothing.
const ABOVE: usize = 36;
/// Grey level below which a pixel counts as drawn, of 255.
const DARK: u8 = 128;
/// A point and a digit beside each other.
const PROBE: &str = "<svg xmlns='http://www.w3.org/2000/svg' width='128' height='64' font-family='sans-serif' font-size='48'>\
                     <rect width='128' height='64' fill='#fff'/><text x='16' y='52'>.</text><text x='80' y='52'>8</text></svg>";

/// Format of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raster {
    /// PNG.
    Png,
    /// JPEG.
    Jpeg,
}

/// Checks that pictures can be drawn here, text included.
///
/// # Errors
/// When ffmpeg reads no SVG, and when no font is installed: what to install.
pub async fn check() -> Result<(), String> {
    let pixels = drawn(PROBE, &["-pix_fmt", "gray", "-f", "rawvideo"]).await.map_err(|why| {
        format!(
            "pictures in pixels are drawn by an ffmpeg that reads SVG (built with librsvg, as those of Debian and Ubuntu are), \
             and this one does not ({why}); --timeline FILE.svg needs none"
        )
    })?;
    // Without a font a character is nothing or a box, now this and now that: a point is as high as a digit then, or missing.
    let is_dark = |side: usize, rows: Range<usize>| {
        let lines = pixels.chunks_exact(SIDE).skip(side).step_by(2);
        lines.skip(rows.start).take(rows.len()).flatten().any(|&grey| grey < DARK)
    };
    if is_dark(0, ABOVE..SIDE) && !is_dark(0, 0..ABOVE) && is_dark(1, 0..ABOVE) {
        return Ok(());
    }
    Err("no font is installed, and pictures would have no text: install one (apt install fonts-dejavu-core)".to_owned())
}

/// An SVG as pixels.
///
/// # Errors
/// When ffmpeg fails.
pub async fn pixels(svg: &str, raster: Raster) -> Result<Vec<u8>, String> {
    let form: &[&str] = match raster {
        Raster::Png => &["-c:v", "png", "-f", "image2pipe"],
        Raster::Jpeg => &["-c:v", "mjpeg", "-q:v", "3", "-pix_fmt", "yuvj444p", "-f", "image2pipe"],
    };
    drawn(svg, form).await
}

/// An SVG as ffmpeg draws it, in some form.
async fn drawn(svg: &str, form: &[&str]) -> Result<Vec<u8>, String> {
    let trouble = |e: std::io::Error| format!("no temporary file: {e}");
    // ffmpeg must know the length of what it reads, and of a pipe it does not.
    let mut file = tempfile::NamedTempFile::new_in(config::temp_dir()).map_err(trouble)?;
    file.write_all(svg.as_bytes()).map_err(trouble)?;
    let input = of_file(file.path());
    let before = BEFORE.into_iter().chain(["-f", "svg_pipe", "-i"]).map(OsStr::new);
    let after = form.iter().copied().chain(["pipe:1"]).map(OsStr::new);
    process::run(before.chain([input.as_os_str()]).chain(after)).await
}
