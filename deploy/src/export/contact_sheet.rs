//! A contact sheet as SVG: the first, the middle and the last frame of each range.

use super::heading::{INSIDE, LABEL, MARGIN, WIDTH, heading, shape};
use super::timeline::hint;
use super::{Cut, Export, frames};
use crate::draw::{Anchor, Drawing, Tone, fitted};

/// Frames of a range.
const FRAMES: usize = 3;
/// Distance between two frames, pixels.
const APART: f64 = 16.0;
/// Width of a frame, pixels.
const TILE: f64 = (INSIDE - (FRAMES - 1) as f64 * APART) / FRAMES as f64;
/// Height of a frame at most, pixels.
const MOST_HEIGHT: f64 = 360.0;
/// Height of the line above the frames of a range, pixels.
const ABOVE: f64 = 24.0;
/// Height of the lines below them, and of the distance to the next range, pixels.
const BELOW: f64 = 44.0;

/// Contact sheet of an export.
#[derive(Clone, Debug)]
pub struct Sheet {
    /// The picture.
    pub svg: String,
    /// Ranges that are not on it.
    pub left_out: usize,
}

/// Frame of a range.
struct Tile {
    number: u64,
    /// Time of the range that it stands for.
    time: String,
    jpeg: Vec<u8>,
}

/// Contact sheet with the first `most` ranges of an export, one below the other.
///
/// # Errors
/// For a file without pictures, and when a frame cannot be taken.
pub async fn sheet(export: &Export, most: usize) -> Result<Sheet, String> {
    let pictures = export.pictures("a contact sheet")?;
    let height = (TILE / shape(pictures)).min(MOST_HEIGHT);
    let mut rows = Vec::new();
    for cut in export.cuts.iter().take(most) {
        let mut tiles = Vec::new();
        for (number, time) in moments(export, cut) {
            let jpeg = frames::jpeg(&export.media, pictures, number, [TILE as u32, height as u32]).await?;
            tiles.push(Tile { number, time, jpeg });
        }
        rows.push(tiles);
    }
    Ok(Sheet { svg: drawn(export, &rows, height)?, left_out: export.cuts.len() - rows.len() })
}

/// First, middle and last frame of a range, each with the time of the range that it stands for.
fn moments(export: &Export, cut: &Cut) -> [(u64, String); FRAMES] {
    let (clock, ticks) = (export.clock(), export.ticks(cut));
    let last = cut.frames.end - 1;
    let middle = cut.frames.start + (last - cut.frames.start) / 2;
    let ends = [ticks.start, clock.ticks((cut.start_s + cut.end_s) / 2.0), ticks.end];
    let [start, half, end] = ends.map(|tick| clock.short(tick));
    [(cut.frames.start, start), (middle, half), (last, end)]
}

/// The whole picture, of rows of frames that are `height` pixels high.
fn drawn(export: &Export, rows: &[Vec<Tile>], height: f64) -> Result<String, String> {
    let pictures = export.pictures("a contact sheet")?;
    let mut drawing = Drawing::new(WIDTH);
    let mut y = heading(&mut drawing, export);
    for (at, (tiles, cut)) in rows.iter().zip(&export.cuts).enumerate() {
        let name = fitted(&format!("{}. {}", at + 1, hint(export, cut)), LABEL + 1.0, INSIDE);
        drawing.text(Tone::Ink, LABEL + 1.0, Anchor::Start, [MARGIN, y + ABOVE - 8.0], &name);
        y += ABOVE;
        for (column, tile) in tiles.iter().enumerate() {
            let x = MARGIN + column as f64 * (TILE + APART);
            drawing.frame([x, y, TILE, height], tile.number, &tile.jpeg);
            let (middle, code) = (x + TILE / 2.0, pictures.codes.label(pictures.first + tile.number));
            drawing.text(Tone::Ink, LABEL, Anchor::Middle, [middle, y + height + 16.0], &tile.time);
            drawing.text(Tone::Faint, LABEL - 2.0, Anchor::Middle, [middle, y + height + 31.0], &code);
        }
        y += height + BELOW;
    }
    let left_out = export.cuts.len() - rows.len();
    let below = match (rows.len(), left_out) {
        (0, _) => Some("The answer has no ranges.".to_owned()),
        (_, 0) => None,
        (rows, _) => Some(format!("{rows} of {} ranges: the others are left out of this sheet.", export.cuts.len())),
    };
    if let Some(sentence) = below {
        drawing.text(Tone::Ink, LABEL, Anchor::Start, [MARGIN, y + 14.0], &sentence);
        y += 34.0;
    }
    Ok(drawing.svg(y, &export.name()))
}

#[cfg(test)]
mod tests {
    use super::super::golden::example;
    use super::*;

    #[test]
    fn the_frames_of_a_range_are_its_first_its_middle_and_its_last() {
        let mut export = example(25.0, false);
        let numbers = |export: &Export| moments(export, &export.cuts[1]).map(|(number, _)| number);
        // 600 s to 612.3 s: frames 15000 up to 15308.
        assert_eq!(numbers(&export), [15_000, 15_153, 15_307]);
        assert_eq!(moments(&export, &export.cuts[1]).map(|(_, time)| time), ["10:00.0", "10:06.2", "10:12.3"]);
        export.cuts[1].frames = 7..8;
        assert_eq!(numbers(&export), [7, 7, 7]);
    }

    #[test]
    fn what_is_left_out_stands_below() {
        let export = example(25.0, false);
        let row = |cut| moments(&export, cut).map(|(number, time)| Tile { number, time, jpeg: Vec::new() }).into();
        let rows: Vec<Vec<Tile>> = export.cuts.iter().map(row).collect();
        let svg = |rows: &[Vec<Tile>]| drawn(&export, rows, 100.0).unwrap();
        assert!(svg(&rows[..2]).contains("2 of 3 ranges: the others are left out") && !svg(&rows).contains("left out"));
        assert_eq!((svg(&rows).matches("<image ").count(), svg(&rows[..2]).matches("<image ").count()), (9, 6));
        // The first frame of the range from 10:00 on, by its time code.
        assert!(svg(&rows).contains(">00:10:00:00</text>"), "{}", svg(&rows));
        assert!(svg(&[]).contains("no ranges"));
    }
}
