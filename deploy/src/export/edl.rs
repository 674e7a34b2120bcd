//! Edit decision lists (CMX 3600): the ranges cut together, or marked in the whole video as DaVinci Resolve imports it.

use super::Export;
use super::media::Pictures;
use super::timecode::Code;

/// Events of a list at most: their numbers have three digits.
const MOST_EVENTS: usize = 999;
/// Frames a second at most: their number has two digits.
const MOST_FRAMES: u32 = 99;
/// Characters of a title at most.
const TITLE: usize = 70;
/// Hour at which recordings begin.
const RECORD_HOUR: u32 = 1;

/// A list that plays the ranges one after the other, from 01:00:00:00 on.
///
/// # Errors
/// As [`Export::pictures`], and for more events or frames a second than the format has digits for.
pub fn cuts(export: &Export) -> Result<String, String> {
    let (pictures, mut list) = head(export)?;
    let codes = pictures.codes;
    let mut record = codes.frame(Code::hour(RECORD_HOUR))?;
    for (at, cut) in export.cuts.iter().enumerate() {
        let length = cut.frames.end - cut.frames.start;
        let frames = [pictures.first + cut.frames.start, pictures.first + cut.frames.end, record, record + length];
        list += &event(at + 1, "AX", frames.map(|frame| codes.label(frame)));
        list += &format!("* FROM CLIP NAME: {}\n* COMMENT: {}\n", export.media.name(), cut.title);
        if at == 0 {
            list.extend(export.notes().iter().map(|note| format!("* COMMENT: {note}\n")));
        }
        record += length;
    }
    Ok(list)
}

/// A list of markers, one for each range, for a timeline that begins at 01:00:00:00 with the whole video on it.
///
/// # Errors
/// As [`cuts`].
pub fn markers(export: &Export) -> Result<String, String> {
    let (pictures, mut list) = head(export)?;
    let codes = pictures.codes;
    let start = codes.frame(Code::hour(RECORD_HOUR))?;
    // Resolve takes what stands before the first bar as a note.
    let note = export.average().unwrap_or_default().replace('|', "/");
    for (at, cut) in export.cuts.iter().enumerate() {
        let frame = start + cut.frames.start;
        let labels = [frame, frame + 1, frame, frame + 1].map(|frame| codes.label(frame));
        list += &event(at + 1, "001", labels);
        let (title, length) = (cut.title.replace('|', "/"), cut.frames.end - cut.frames.start);
        list += &format!("{note} |C:ResolveColorBlue |M:{title} |D:{length}\n\n");
    }
    Ok(list)
}

/// Pictures of an export, and the lines before the first event.
fn head(export: &Export) -> Result<(&Pictures, String), String> {
    let pictures = export.pictures("edl")?;
    if export.cuts.len() > MOST_EVENTS {
        let count = export.cuts.len();
        return Err(format!("an edl holds {MOST_EVENTS} ranges at most, these are {count}: use otio or fcpxml"));
    }
    if pictures.rate.base() > MOST_FRAMES {
        let rate = pictures.rate;
        return Err(format!(
            "an edl counts {MOST_FRAMES} frames a second at most, here are {rate}: use otio or fcpxml"
        ));
    }
    let title: String = export.name().chars().take(TITLE).collect();
    let mode = if pictures.codes.is_drop() { "DROP FRAME" } else { "NON-DROP FRAME" };
    Ok((pictures, format!("TITLE: {title}\nFCM: {mode}\n\n")))
}

/// Line of a cut in the picture: source in and out, record in and out.
fn event(number: usize, reel: &str, [source_in, source_out, record_in, record_out]: [String; 4]) -> String {
    format!("{number:03}  {reel:<8} V     C        {source_in} {source_out} {record_in} {record_out}\n")
}

#[cfg(test)]
mod tests {
    use super::super::golden::example;
    use super::*;

    #[test]
    fn what_has_no_digits_in_the_format_is_refused() {
        let mut export = example(25.0, false);
        export.cuts = vec![export.cuts[0].clone(); MOST_EVENTS];
        assert!(cuts(&export).unwrap().contains("\n999  AX"));
        export.cuts.push(export.cuts[0].clone());
        assert!(cuts(&export).unwrap_err().contains("1000") && markers(&export).unwrap_err().contains("999"));
        assert!(cuts(&example(120.0, false)).unwrap_err().contains("here are 120"));
    }

    #[test]
    fn source_codes_count_from_the_files_own_one_and_markers_from_the_timelines() {
        let mut export = example(25.0, false);
        export.cuts.truncate(1);
        if let Some(pictures) = &mut export.media.pictures {
            pictures.first = 10 * 3600 * 25;
        }
        let frames = export.cuts[0].frames.clone();
        assert_eq!(frames, 1763..2380);
        assert!(cuts(&export).unwrap().contains("10:01:10:13 10:01:35:05 01:00:00:00 01:00:24:17"));
        assert!(markers(&export).unwrap().contains("01:01:10:13 01:01:10:14 01:01:10:13 01:01:10:14\n |C:"));
    }
}
