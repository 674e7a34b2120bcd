//! Pictures in pixels: an SVG of ours, drawn by the librsvg in ffmpeg.
//!
//! ffmpeg takes the frames that are in the pictures, so it is there; those of Debian and Ubuntu read SVG, and bring fonts with
//! them (librsvg needs Pango, Pango fontconfig, fontconfig one of the font packages). A build of one's own may not: hence
//! [`check`].

use std::io::Write;

use super::ffmpeg::BEFORE;
use super::process;

/// Side of a digit's picture, pixels.
const SIDE: usize = 32;
/// Grey level below which a pixel counts as drawn, of 255.
const DARK: u8 = 128;
/// Two digits beside each other.
const DIGITS: &str = "<svg xmlns='http://www.w3.org/2000/svg' width='64' height='32' font-family='sans-serif' font-size='24'>\
                      <rect width='64' height='32' fill='#fff'/><text x='8' y='24'>1</text><text x='40' y='24'>8</text></svg>";

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
    let pixels = drawn(DIGITS, &["-pix_fmt", "gray", "-f", "rawvideo"]).await.map_err(|why| {
        format!(
            "pictures in pixels are drawn by an ffmpeg that reads SVG (built with librsvg, as those of Debian and Ubuntu are), \
             and this one does not ({why}); --timeline FILE.svg needs none"
        )
    })?;
    // Without a font a digit is nothing, or a box that is no digit's.
    let half = |at: usize| -> Vec<u8> { pixels.chunks_exact(SIDE).skip(at).step_by(2).flatten().copied().collect() };
    let (one, eight) = (half(0), half(1));
    let is_drawn = |half: &[u8]| half.iter().any(|&grey| grey < DARK);
    if is_drawn(&one) && is_drawn(&eight) && one != eight {
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
    let mut file = tempfile::NamedTempFile::new().map_err(trouble)?;
    file.write_all(svg.as_bytes()).map_err(trouble)?;
    let input = format!("file:{}", file.path().display());
    let arguments = [&BEFORE[..], &["-f", "svg_pipe", "-i", &input], form, &["pipe:1"]].concat();
    process::run(arguments).await
}
