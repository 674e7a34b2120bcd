//! Subtitles with a range's title for as long as the range: WebVTT and SubRip.

use super::{Cut, Export};

/// WebVTT (<https://www.w3.org/TR/webvtt1/>).
pub fn vtt(export: &Export) -> String {
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let mut text = format!("WEBVTT\n\nNOTE\nquery: {}\n", escaped(&export.query));
    for note in export.notes() {
        text += &format!("{note}\n");
    }
    text + &cues(export, '.', escaped)
}

/// SubRip. It has no comments and no escapes; the arrow of its times is kept out of titles.
pub fn srt(export: &Export) -> String {
    let text = cues(export, ',', |text| text.replace("-->", "->"));
    text.trim_start_matches('\n').to_owned()
}

/// Numbered cues, an empty line before each.
fn cues(export: &Export, point: char, escaped: impl Fn(&str) -> String) -> String {
    let clock = export.clock();
    let cue = |(at, cut): (usize, &Cut)| {
        let ticks = export.ticks(cut);
        let (start, end) = (clock.stamp(ticks.start, point), clock.stamp(ticks.end, point));
        format!("\n{}\n{start} --> {end}\n{}\n", at + 1, escaped(&cut.title))
    };
    export.cuts.iter().enumerate().map(cue).collect()
}
