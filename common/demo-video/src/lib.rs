//! Videos with a known truth: coloured shapes that come and go, and sounds.
//!
//! In reading order: [`scene`] (what a video is made of), [`chance`] (random choices by seed), [`draw`] (a scene of a seed),
//! [`picture`] and [`sound`] (what it looks and sounds like), `encoding` (to a file), [`questions`] (what can be asked about
//! it), [`truth`] (the truth as a file), [`verdict`] (how right an answer is).

pub mod chance;
pub mod draw;
#[cfg(feature = "gstreamer")]
mod encoding;
pub mod picture;
pub mod questions;
pub mod scene;
pub mod sound;
pub mod truth;
pub mod verdict;

/// Pictures a second.
pub const RATE: u32 = 10;
/// Lengths that the demo model was trained on, seconds.
pub const SECONDS: std::ops::RangeInclusive<u32> = 8..=64;

/// Writes the video of a seed to `out`, and its truth beside it with the ending `json`; returns the truth and its file.
///
/// # Errors
/// What cannot be encoded or written.
#[cfg(feature = "gstreamer")]
pub fn make(out: &std::path::Path, seed: u64, seconds: u32) -> anyhow::Result<(truth::Truth, std::path::PathBuf)> {
    use std::io::Write;

    use anyhow::Context;

    use config::replace;

    let scene = draw::scene(seed, seconds);
    let painter = picture::Painter::new(&scene, seed);
    let pictures = encoding::Pictures {
        size: scene.size,
        rate: RATE,
        count: u64::from(seconds * RATE),
        picture: &|at| painter.picture(at, at as f64 / f64::from(RATE)),
    };
    let track =
        scene.voice.audible.then(|| encoding::Track { rate: sound::RATE, samples: sound::samples(&scene, seed) });
    let file = out.with_extension("json");
    let named = |file: &std::path::Path| format!("cannot write {}", file.display());
    let video = replace::Unfinished::begin(out).with_context(|| named(out))?;
    let mut beside = replace::Unfinished::begin(&file).with_context(|| named(&file))?;
    encoding::encode(video.path(), &pictures, track)?;
    let truth = truth::Truth::of(&scene, seed, questions::questions(&scene));
    let text = serde_json::to_string_pretty(&truth).context("truth to JSON. This is a bug.")?;
    writeln!(beside.file(), "{text}").with_context(|| named(&file))?;
    video.finish().with_context(|| named(out))?;
    beside.finish().with_context(|| named(&file))?;
    Ok((truth, file))
}
