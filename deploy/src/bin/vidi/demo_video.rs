//! `vidi demo-video`: a video with a known truth.

use std::path::Path;

use runtime::answer;
use runtime::process::{Exit, Fatal};

/// Writes the video and its truth, and prints what can be asked and what is true.
///
/// # Errors
/// For a name without an ending of its own, and when a file cannot be made.
pub fn demo_video(out: &Path, seed: u64, seconds: u32) -> Result<(), Fatal> {
    if out.extension().is_none_or(|ending| ending == "json") {
        let text = format!("{}: the video needs a name like demo.mp4; its truth goes to demo.json", out.display());
        return Err(Fatal(Exit::Usage, text));
    }
    let (truth, file) = made(out, seed, seconds)?;
    answer!("{}: {seconds} s of seed {seed}; truth in {}", out.display(), file.display())?;
    for question in &truth.questions {
        answer!("{:<10} {:<34} {}", question.task, question.query, question.answer)?;
    }
    Ok(())
}

#[cfg(feature = "gstreamer")]
fn made(out: &Path, seed: u64, seconds: u32) -> Result<(demo_video::truth::Truth, std::path::PathBuf), Fatal> {
    demo_video::make(out, seed, seconds).map_err(|e| Fatal(Exit::Other, format!("{e:#}")))
}

#[cfg(not(feature = "gstreamer"))]
fn made(_: &Path, _: u64, _: u32) -> Result<(demo_video::truth::Truth, std::path::PathBuf), Fatal> {
    let text = "this vidi was built without GStreamer and cannot make a video: build with `--features gstreamer`";
    Err(Fatal(Exit::Usage, text.to_owned()))
}
