//! Pictures of videos, as ffmpeg decodes them.

use std::path::Path;

use tests::media::ffmpeg;

/// Width and height at which pictures are compared.
const SMALL: [usize; 2] = [160, 90];

/// Frames a second that a fraction stands for.
///
/// # Errors
/// For what is none.
pub fn per_second(rate: &str) -> anyhow::Result<f64> {
    let (n, d) = rate.split_once('/').unwrap_or((rate, "1"));
    Ok(n.parse::<f64>()? / d.parse::<f64>()?)
}

/// All pictures of what ffmpeg takes for an input, small and grey.
///
/// # Errors
/// ffmpeg's.
pub fn pictures(input: &str, dir: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let raw = dir.join("pictures.raw");
    let [width, height] = SMALL;
    ffmpeg(&format!("{input} -map 0:v:0 -vf scale={width}:{height},format=gray -vsync passthrough -f rawvideo"), &raw)?;
    Ok(std::fs::read(&raw)?.chunks_exact(width * height).map(<[u8]>::to_vec).collect())
}
