//! Pixels of pictures and frames, as ffmpeg decodes them.

use std::path::Path;

use anyhow::{Context, ensure};
use tests::media::ffmpeg;

/// Largest difference of mean colours that are the same, of 255: two JPEGs, or a JPEG and the video.
pub const NEAR: f64 = 4.0;
/// Least difference of a pixel from white, of 255, that is no trace of a JPEG's.
const SEEN: u8 = 48;

/// Mean colour.
pub type Colour = [f64; 3];

/// Picture of three bytes a pixel.
pub struct Pixels {
    /// Width, pixels.
    pub width: usize,
    /// Height, pixels.
    pub height: usize,
    rgb: Vec<u8>,
}

impl Pixels {
    /// The first picture of what ffmpeg takes for an input, with options.
    ///
    /// # Errors
    /// ffmpeg's.
    pub fn of(input: &str, dir: &Path) -> anyhow::Result<Self> {
        let file = dir.join("pixels.ppm");
        ffmpeg(&format!("{input} -frames:v 1 -c:v ppm -pix_fmt rgb24"), &file)?;
        let bytes = std::fs::read(&file)?;
        let mut head = bytes.split(|byte| *byte == b'\n').take(3).map(String::from_utf8_lossy);
        let (kind, size, most) = (head.next(), head.next().context("size")?, head.next());
        ensure!(kind.as_deref() == Some("P6") && most.as_deref() == Some("255"), "{kind:?} {most:?}");
        let (width, height) = size.split_once(' ').context("sides")?;
        let (width, height): (usize, usize) = (width.parse()?, height.parse()?);
        Ok(Pixels { width, height, rgb: bytes[bytes.len() - width * height * 3..].to_vec() })
    }

    /// A pixel.
    pub fn at(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        [self.rgb[at], self.rgb[at + 1], self.rgb[at + 2]]
    }

    /// Mean colour of an area: x, y, width, height.
    pub fn mean(&self, [x, y, width, height]: [usize; 4]) -> Colour {
        let mut sum = [0.0; 3];
        for (x, y) in (y..y + height).flat_map(|y| (x..x + width).map(move |x| (x, y))) {
            sum.iter_mut().zip(self.at(x, y)).for_each(|(sum, value)| *sum += f64::from(value));
        }
        sum.map(|sum| sum / (width * height) as f64)
    }

    /// Areas of tiles on a white sheet, row by row: lines of which half is not white, and their parts.
    pub fn tiles(&self) -> Vec<Vec<[usize; 4]>> {
        let is_seen = |x: usize, y: usize| self.at(x, y).iter().any(|&value| value < 255 - SEEN);
        let seen_of = |y: usize| (0..self.width).filter(|&x| is_seen(x, y)).count();
        let bands = runs(self.height, |y| seen_of(y) * 2 > self.width);
        let tiles = |&[y, end]: &[usize; 2]| {
            let seen_of = |x: usize| (y..end).filter(|&y| is_seen(x, y)).count();
            let columns = runs(self.width, |x| seen_of(x) * 2 > end - y);
            columns.into_iter().map(|[x, right]| [x, y, right - x, end - y]).collect()
        };
        bands.iter().map(tiles).collect()
    }
}

/// Starts and ends of the runs of numbers below `end` that something holds for.
fn runs(end: usize, holds: impl Fn(usize) -> bool) -> Vec<[usize; 2]> {
    let mut runs: Vec<[usize; 2]> = Vec::new();
    for at in (0..end).filter(|&at| holds(at)) {
        match runs.last_mut() {
            Some(run) if run[1] == at => run[1] = at + 1,
            _ => runs.push([at, at + 1]),
        }
    }
    runs
}

/// Mean colours of all frames of a video.
///
/// # Errors
/// ffmpeg's.
pub fn means(video: &Path, dir: &Path) -> anyhow::Result<Vec<Colour>> {
    let raw = dir.join("means.raw");
    let small = "scale=16:16:flags=area,format=rgb24";
    ffmpeg(&format!("-i {} -map 0:v:0 -vf {small} -vsync passthrough -f rawvideo", video.display()), &raw)?;
    let bytes = std::fs::read(&raw)?;
    let mean = |frame: &[u8]| {
        let mut sum = [0.0; 3];
        frame.iter().enumerate().for_each(|(at, value)| sum[at % 3] += f64::from(*value));
        sum.map(|sum| sum / 256.0)
    };
    Ok(bytes.chunks_exact(16 * 16 * 3).map(mean).collect())
}

/// Largest difference of two colours in a channel.
pub fn distance(a: Colour, b: Colour) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}
