//! What stands above the pictures of an export, and what they share.

use super::Export;
use super::media::Pictures;
use crate::draw::{Anchor, Drawing, Tone, wrapped};

/// Width of a picture, pixels.
pub const WIDTH: f64 = 960.0;
/// Margin on each side, pixels.
pub const MARGIN: f64 = 32.0;
/// Width between the margins, pixels.
pub const INSIDE: f64 = WIDTH - 2.0 * MARGIN;
/// Height of the font of labels, pixels.
pub const LABEL: f64 = 13.0;
/// Height of the font of the question, pixels.
const TITLE: f64 = 18.0;
/// Lines of a question at most.
const TITLE_LINES: usize = 2;

/// Draws the question and the facts of its answer; the place below them, pixels from the top.
pub fn heading(drawing: &mut Drawing, export: &Export) -> f64 {
    let mut y = MARGIN;
    for line in wrapped(&export.name(), TITLE, INSIDE, TITLE_LINES) {
        drawing.text(Tone::Ink, TITLE, Anchor::Start, [MARGIN, y], &line);
        y += 24.0;
    }
    for line in wrapped(&facts(export), LABEL, INSIDE, TITLE_LINES) {
        drawing.text(Tone::Faint, LABEL, Anchor::Start, [MARGIN, y], &line);
        y += 18.0;
    }
    y
}

/// File, its length, number of ranges, and how exact they are.
fn facts(export: &Export) -> String {
    let clock = export.clock();
    let ranges = match export.cuts.len() {
        0 => "no ranges".to_owned(),
        1 => "1 range".to_owned(),
        ranges => format!("{ranges} ranges"),
    };
    let length = clock.short(clock.ticks(export.media.duration_s));
    let known = (!export.cuts.is_empty()).then(|| format!("times known to {} s", export.resolution_s));
    let left_out = match export.left_out {
        0 => None,
        left_out => Some(format!("{left_out} left out, not in the video")),
    };
    let facts = [export.media.name().into_owned(), length, ranges].into_iter();
    facts.chain(known).chain(left_out).collect::<Vec<_>>().join(" · ")
}

/// Width to height of the picture, as far as its pixels are square; a picture without a side is square.
pub fn shape(pictures: &Pictures) -> f64 {
    let [width, height] = pictures.size.map(|side| f64::from(side.max(1)));
    // Of the narrowest strip something is seen, and the picture stays of a size.
    (width / height).clamp(0.2, 5.0)
}
