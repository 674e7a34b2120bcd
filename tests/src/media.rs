//! Videos of tests. Many tests of a program ask for the same one: it is made once, and then copied.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use anyhow::{Context, ensure};
use demo_video::truth::Truth;

use crate::built::vidi;

/// Bytes of files that were made together, in the order of their paths; none before they are.
type Made = Arc<Mutex<Vec<Vec<u8>>>>;

/// What this process has made, by how it was made.
static MADE: Mutex<BTreeMap<String, Made>> = Mutex::new(BTreeMap::new());

/// Writes the files that `make` makes at `paths`: the first time with it, later as they were made for the same `key`.
fn once(key: String, paths: &[&Path], make: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let made = MADE.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone();
    let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
    if made.is_empty() {
        make()?;
        *made = paths.iter().map(std::fs::read).collect::<Result<_, _>>()?;
        return Ok(());
    }
    for (path, bytes) in paths.iter().zip(&*made) {
        std::fs::write(path, bytes)?;
    }
    Ok(())
}

/// Makes a file with ffmpeg; `args` are its inputs and options.
///
/// # Errors
/// ffmpeg's.
pub fn ffmpeg(args: &str, output: &Path) -> anyhow::Result<()> {
    let status = Command::new("ffmpeg")
        .args(["-v", "error", "-y"])
        .args(args.split_whitespace())
        .arg(output)
        .stdin(Stdio::null())
        .status()
        .context("ffmpeg")?;
    ensure!(status.success(), "ffmpeg {args} {}: {status}", output.display());
    Ok(())
}

/// A video that `vidi demo-video` makes, in a directory, and its truth. A build of `vidi` makes each once, for all test programs.
///
/// # Errors
/// The command's.
pub fn demo_video(dir: &Path, seed: u64, seconds: u32) -> anyhow::Result<(PathBuf, Truth)> {
    let video = dir.join(format!("{seed}.mp4"));
    let truth = video.with_extension("json");
    once(format!("scene {seed} of {seconds} s"), &[&video, &truth], || {
        let made = made(seed, seconds)?;
        std::fs::copy(&made, &video)?;
        std::fs::copy(made.with_extension("json"), &truth)?;
        Ok(())
    })?;
    let truth = Truth::read(&truth).map_err(anyhow::Error::msg)?;
    Ok((video, truth))
}

/// Path of a scene that this build of `vidi` has made, for this program or another, with its truth beside it.
fn made(seed: u64, seconds: u32) -> anyhow::Result<PathBuf> {
    let vidi = vidi()?;
    let built = std::fs::metadata(&vidi)?.modified()?.duration_since(UNIX_EPOCH)?.as_nanos();
    let all = vidi.with_file_name("demo-videos");
    let (dir, name) = (all.join(built.to_string()), format!("{seed}-{seconds}.mp4"));
    if dir.join(&name).is_file() {
        return Ok(dir.join(name));
    }
    std::fs::create_dir_all(&dir)?;
    for other in std::fs::read_dir(&all)?.flatten().map(|entry| entry.path()).filter(|other| *other != dir) {
        // Of an earlier build; another program may be removing it as well.
        let _ = std::fs::remove_dir_all(other);
    }
    let making = tempfile::tempdir_in(&dir)?;
    let video = making.path().join(&name);
    let mut command = Command::new(vidi);
    command.arg("demo-video").arg(&video).args(["--seed", &seed.to_string(), "--seconds", &seconds.to_string()]);
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout)?;
    let truth = Truth::read(&video.with_extension("json")).map_err(anyhow::Error::msg)?;
    ensure!(truth.questions.iter().all(|q| said.contains(&q.query)), "not every question is printed: {said}");
    // The video last: where it is, its truth is.
    for name in [video.with_extension("json"), video].iter().filter_map(|path| path.file_name()) {
        std::fs::rename(making.path().join(name), dir.join(name))?;
    }
    Ok(dir.join(name))
}

/// Makes a test video of `seconds`, with video and audio.
///
/// # Errors
/// ffmpeg's.
pub fn video(path: &Path, seconds: u32) -> anyhow::Result<()> {
    let args = format!(
        "-f lavfi -i testsrc2=size=320x180:rate=25:duration={seconds} \
         -f lavfi -i sine=frequency=440:beep_factor=4:duration={seconds} \
         -c:v libx264 -preset ultrafast -pix_fmt yuv420p -c:a aac -shortest"
    );
    let kind = path.extension().unwrap_or_default().display();
    once(format!("{kind} of {args}"), &[path], || ffmpeg(&args, path))
}
