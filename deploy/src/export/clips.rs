//! Clips: every range cut out of the media by ffmpeg, exact to the frame.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::ffmpeg::{arguments, clip_name};
use super::{Cut, Export, process};
use config::replace::Unfinished;

/// Files of all ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clips {
    /// Files, in the order of the ranges.
    pub files: Vec<PathBuf>,
    /// Sentences about those with another number of frames than their range.
    pub uneven: Vec<String>,
}

/// Checks that ffmpeg can be started, and that `dir` is a directory or can become one.
///
/// # Errors
/// When ffmpeg cannot: what to install; when something else is there.
pub async fn check(dir: &Path) -> Result<(), String> {
    if dir.exists() && !dir.is_dir() {
        return Err(format!("--clips {}: there is a file of this name; name a directory", dir.display()));
    }
    process::check("--clips").await
}

/// Cuts each range to a file of its own in `dir`, which is made if it is not there; files of the same names are replaced.
///
/// # Errors
/// The first clip that fails, by its name and range, with ffmpeg's last words. What was cut before it stays, and what
/// had its name before.
pub async fn cut(export: &Export, dir: &Path) -> Result<Clips, String> {
    std::fs::create_dir_all(dir).map_err(|e| format!("no directory {} for clips: {e}", dir.display()))?;
    let mut clips = Clips::default();
    for (at, cut) in export.cuts.iter().enumerate() {
        let file = dir.join(clip_name(export, at + 1));
        let frames = written(export, cut, &file).await.map_err(|why| {
            let (clock, ticks) = (export.clock(), export.ticks(cut));
            let [from, to] = [ticks.start, ticks.end].map(|tick| clock.stamp(tick, '.'));
            let (number, all) = (at + 1, export.cuts.len());
            format!("clip {number} of {all}, {} ({from} to {to}), failed: {why}", file.display())
        })?;
        let due = cut.frames.end - cut.frames.start;
        // Of a variable rate nobody knows how many are due.
        let is_known = export.media.pictures.is_some_and(|pictures| !pictures.rate.is_average);
        if is_known && frames.is_some_and(|frames| frames != due) {
            clips.uneven.push(format!(
                "{} has {} frames, its range {due}: the pictures of {} do not come evenly, or some are missing",
                file.display(),
                frames.unwrap_or(0),
                export.media.name()
            ));
        }
        clips.files.push(file);
    }
    Ok(clips)
}

/// Writes one clip, as [`run`].
async fn written(export: &Export, cut: &Cut, file: &Path) -> Result<Option<u64>, String> {
    let clip = Unfinished::begin(file).map_err(|e| e.to_string())?;
    let frames = run(export, cut, clip.path()).await?;
    clip.finish().map_err(|e| e.to_string())?;
    Ok(frames)
}

/// Runs ffmpeg for one clip; the number of frames that it says it wrote.
async fn run(export: &Export, cut: &Cut, file: &Path) -> Result<Option<u64>, String> {
    let report = ["-progress", "pipe:1", "-nostats"].map(OsString::from);
    let progress = process::run(report.into_iter().chain(arguments(export, cut, file))).await?;
    Ok(frames_of(&String::from_utf8_lossy(&progress)))
}

/// Number of frames in the last report of ffmpeg's progress; none for sound alone.
fn frames_of(progress: &str) -> Option<u64> {
    progress.lines().rev().find_map(|line| line.strip_prefix("frame=")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_report_of_frames_counts() {
        assert_eq!(frames_of("frame=7\nfps=0.0\nprogress=continue\nframe=  12\nprogress=end\n"), Some(12));
        assert_eq!(frames_of("out_time_us=5\nprogress=end\n"), None);
    }
}
