//! Chapters: for ffmpeg, and for the description of a video on YouTube.

use super::Export;
use super::media::Media;

/// Least length of a chapter on YouTube, seconds.
const LEAST_S: u64 = 10;
/// Least number of chapters on YouTube.
const LEAST: usize = 3;
/// Title of what lies between ranges.
const BETWEEN: &str = "Other";

/// ffmpeg's metadata file (<https://ffmpeg.org/ffmpeg-formats.html>, "Metadata"), a chapter for each range.
pub fn ffmetadata(export: &Export) -> String {
    let mut text = format!(";FFMETADATA1\n; query: {}\n", export.query);
    for note in export.notes() {
        text += &format!("; {note}\n");
    }
    let per_second = export.clock().per_second();
    for cut in &export.cuts {
        let (ticks, title) = (export.ticks(cut), escaped(&cut.title));
        text +=
            &format!("[CHAPTER]\nTIMEBASE=1/{per_second}\nSTART={}\nEND={}\ntitle={title}\n", ticks.start, ticks.end);
    }
    text
}

/// A value with a backslash before each character that means something to ffmpeg.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if matches!(c, '=' | ';' | '#' | '\\' | '\n') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// Checks that a media file is long enough for chapters on YouTube.
///
/// # Errors
/// For one that is not, with the figures.
pub fn suits(media: &Media) -> Result<(), String> {
    if media.duration_s as u64 >= LEAST as u64 * LEAST_S {
        return Ok(());
    }
    Err(format!(
        "YouTube shows chapters where there are {LEAST} or more of {LEAST_S} s or longer each, and the video has {:.1} s: use \
         ffmetadata",
        media.duration_s
    ))
}

/// Chapters of a description on YouTube: one that begins with each range and one behind it, the first at 0:00, each ten
/// seconds or longer. A range too near to what is before it, or to the end, begins with the chapter there, or joins it.
///
/// # Errors
/// For fewer than three chapters, which YouTube does not show.
pub fn youtube(export: &Export) -> Result<String, String> {
    let chapters = list(export);
    if chapters.len() < LEAST {
        return Err(format!(
            "YouTube shows chapters where there are {LEAST} or more of {LEAST_S} s or longer each; {} ranges in {:.1} s of video \
             make {}: use ffmetadata",
            export.cuts.len(),
            export.media.duration_s,
            chapters.len()
        ));
    }
    // Descriptions must not have these two.
    let fit = |title: &str| title.replace('<', "‹").replace('>', "›");
    let line = |(at, title): &(u64, Option<String>)| {
        format!("{} {}\n", stamp(*at), title.as_deref().map_or_else(|| BETWEEN.to_owned(), fit))
    };
    Ok(chapters.iter().map(line).collect())
}

/// Starts of chapters in seconds, with titles; none for what lies between ranges.
fn list(export: &Export) -> Vec<(u64, Option<String>)> {
    let end = export.media.duration_s as u64;
    let mut chapters: Vec<(u64, Option<String>)> = vec![(0, None)];
    for (at, cut) in export.cuts.iter().enumerate() {
        begin(&mut chapters, cut.start_s.round() as u64, &cut.title, end);
        let last = chapters.last().map_or(0, |(start, _)| *start);
        let next = export.cuts.get(at + 1).map_or(end, |next| next.start_s.round() as u64);
        let behind = (cut.end_s.round() as u64).max(last + LEAST_S);
        if behind + LEAST_S <= next {
            chapters.push((behind, None));
        }
    }
    chapters
}

/// Begins a chapter as near to `start` as their least length allows, within the last one where it does not.
fn begin(chapters: &mut Vec<(u64, Option<String>)>, start: u64, title: &str, end: u64) {
    let start = start.min(end.saturating_sub(LEAST_S));
    match chapters.last_mut() {
        Some((last, titled)) if start < *last + LEAST_S => match titled {
            None => *titled = Some(title.to_owned()),
            Some(there) if there.split("; ").any(|one| one == title) => {}
            Some(there) => *there += &format!("; {title}"),
        },
        _ => chapters.push((start, Some(title.to_owned()))),
    }
}

/// `1:05` or `1:01:05`.
fn stamp(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::super::golden::example;
    use super::*;
    use protocol::event::TimeRange;

    /// Chapters of ranges in a video of 60 s.
    fn chapters(ranges: &[(f64, f64, &str)]) -> Result<String, String> {
        let mut media = example(25.0, false).media;
        media.duration_s = 60.0;
        let range =
            |&(start_s, end_s, title): &(f64, f64, &str)| TimeRange { start_s, end_s, title: Some(title.into()) };
        let ranges: Vec<TimeRange> = ranges.iter().map(range).collect();
        youtube(&Export::new(media, "q", &ranges, 0.6))
    }

    #[test]
    fn chapters_begin_at_zero_and_last_ten_seconds_or_longer() {
        let two = chapters(&[(12.0, 24.0, "a"), (40.0, 45.0, "b <c>")]).unwrap();
        assert_eq!(two, "0:00 Other\n0:12 a\n0:24 Other\n0:40 b ‹c›\n0:50 Other\n");
        // Near the start, near each other, and near the end.
        let near =
            chapters(&[(4.0, 15.0, "a"), (27.0, 29.0, "b"), (30.0, 31.0, "c"), (31.0, 32.0, "b"), (57.0, 60.0, "d")]);
        assert_eq!(near.unwrap(), "0:00 a\n0:15 Other\n0:27 b; c\n0:37 Other\n0:50 d\n");
    }

    #[test]
    fn fewer_than_three_chapters_are_refused_with_the_figures() {
        let error = chapters(&[(4.0, 55.0, "a")]).unwrap_err();
        assert!(error.contains("1 ranges in 60.0 s") && error.contains("make 1"), "{error}");
        assert!(chapters(&[]).is_err());
    }

    #[test]
    fn what_means_something_to_ffmpeg_is_escaped() {
        assert_eq!(escaped("a=b;c#d\\e\nf"), "a\\=b\\;c\\#d\\\\e\\\nf");
    }
}
