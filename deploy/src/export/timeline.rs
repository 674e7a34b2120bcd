//! A time line as SVG: the ranges over the length of the media, a time axis, and frames of the video below it.

use super::frames;
use super::heading::{INSIDE, LABEL, MARGIN, WIDTH, heading, shape};
use super::media::{Media, Pictures};
use super::{Cut, Export, clock::Clock};
use crate::draw::ticks::Ticks;
use crate::draw::{Anchor, Drawing, Tone, fitted, width_of};

/// Height of a row of ranges, pixels; with labels, and without.
const ROW: [f64; 2] = [38.0, 16.0];
/// Height of a bar, pixels.
const BAR: f64 = 14.0;
/// Width of a bar at least, pixels: what is shorter would not be seen.
const LEAST_BAR: f64 = 2.0;
/// Distance between labels of a row, pixels.
const APART: f64 = 12.0;
/// Rows at most that labels may lead to; with more, ranges have hints alone.
const LABELLED_ROWS: usize = 12;
/// Width of a label at most, pixels.
const MOST_LABEL: f64 = 320.0;
/// Distances between ticks at most.
const TICKS: usize = 12;
/// Longer side of a thumbnail, about, and distance between two, pixels.
const THUMB: [f64; 2] = [112.0, 4.0];
/// Number of thumbnails, from the fewest to the most.
const THUMBS: [f64; 2] = [3.0, 12.0];
/// Pixels of a thumbnail's JPEG for each pixel of the picture, for displays with finer ones.
const DENSITY: f64 = 2.0;

/// Thumbnails below the axis, each the frame of the time above its middle.
struct Strip {
    /// Width and height of a thumbnail, pixels.
    size: [f64; 2],
    /// Number of each frame, and its JPEG.
    frames: Vec<(u64, Vec<u8>)>,
}

/// Time line of an export; without thumbnails where there is no picture.
///
/// # Errors
/// When a thumbnail cannot be taken.
pub async fn svg(export: &Export) -> Result<String, String> {
    let strip = match &export.media.pictures {
        Some(pictures) => Some(Strip::of(&export.media, pictures).await?),
        None => None,
    };
    Ok(drawn(export, strip.as_ref()))
}

impl Strip {
    async fn of(media: &Media, pictures: &Pictures) -> Result<Self, String> {
        let ([longer, apart], shape) = (THUMB, shape(pictures));
        let count = ((INSIDE + apart) / (longer * shape.min(1.0) + apart)).floor().clamp(THUMBS[0], THUMBS[1]);
        let width = (INSIDE + apart) / count - apart;
        let size = [width, width / shape];
        let mut frames = Vec::new();
        for at in 0..count as usize {
            let middle = (at as f64 * (width + apart) + width / 2.0) / INSIDE;
            let number = pictures.rate.frame_at(media.duration_s * middle).min(pictures.count - 1);
            let most = size.map(|side| (side * DENSITY) as u32);
            frames.push((number, frames::jpeg(media, pictures, number, most).await?));
        }
        Ok(Strip { size, frames })
    }
}

/// Range as it is drawn.
struct Bar<'a> {
    cut: &'a Cut,
    /// Start and width, pixels.
    span: [f64; 2],
    label: String,
    /// Start of its label, pixels.
    label_x: f64,
    row: usize,
}

/// The whole picture.
fn drawn(export: &Export, strip: Option<&Strip>) -> String {
    let mut drawing = Drawing::new(WIDTH);
    let top = heading(&mut drawing, export);
    let axis = ranges(&mut drawing, export, top);
    let mut end = ticks(&mut drawing, export, axis);
    if let Some(Strip { size: [width, height], frames }) = strip {
        for (at, (number, jpeg)) in frames.iter().enumerate() {
            let x = MARGIN + at as f64 * (width + THUMB[1]);
            drawing.frame([x, end, *width, *height], *number, jpeg);
        }
        end += height + MARGIN / 2.0;
    }
    drawing.svg(end, &export.name())
}

/// Place of a time from left to right, pixels.
fn x(export: &Export, seconds: f64) -> f64 {
    MARGIN + INSIDE * (seconds / export.media.duration_s).clamp(0.0, 1.0)
}

/// Draws the ranges; the place of the axis below them.
fn ranges(drawing: &mut Drawing, export: &Export, top: f64) -> f64 {
    if export.cuts.is_empty() {
        drawing.text(Tone::Ink, LABEL, Anchor::Start, [MARGIN, top + 12.0], "The answer has no ranges.");
        return top + 24.0;
    }
    let bars = bars(export);
    let rows = bars.iter().map(|bar| bar.row + 1).max().unwrap_or(0);
    let is_labelled = bars.iter().any(|bar| !bar.label.is_empty());
    let row = ROW[usize::from(!is_labelled)];
    for bar in &bars {
        let below = top + row * (bar.row + 1) as f64;
        drawing.text(Tone::Ink, LABEL, Anchor::Start, [bar.label_x, below - BAR - 9.0], &bar.label);
        let [from, width] = bar.span;
        drawing.rect(Tone::Bar, [from, below - BAR - 4.0, width, BAR], Some(&hint(export, bar.cut)));
    }
    top + row * rows as f64 + 4.0
}

/// Ranges with their places: in the first row where nothing is in the way of bar and label.
fn bars(export: &Export) -> Vec<Bar<'_>> {
    let bar = |cut: &'_ Cut| {
        let from = x(export, cut.start_s);
        let width = (x(export, cut.end_s) - from).max(LEAST_BAR);
        (from, width)
    };
    let mut bars: Vec<Bar> = Vec::new();
    for cut in &export.cuts {
        let (from, width) = bar(cut);
        let label = fitted(&hint(export, cut), LABEL, MOST_LABEL);
        let label_x = from.min(MARGIN + INSIDE - width_of(&label, LABEL));
        bars.push(Bar { cut, span: [from, width], label, label_x, row: 0 });
    }
    let extents = |bar: &Bar| {
        let end = (bar.span[0] + bar.span[1]).max(bar.label_x + width_of(&bar.label, LABEL));
        [bar.span[0].min(bar.label_x), end + APART]
    };
    let mut rows = rows(bars.iter().map(extents));
    if rows.iter().any(|&row| row >= LABELLED_ROWS) {
        bars.iter_mut().for_each(|bar| bar.label.clear());
        rows = self::rows(bars.iter().map(|bar| [bar.span[0], bar.span[0] + bar.span[1] + 1.0]));
    }
    bars.iter_mut().zip(rows).for_each(|(bar, row)| bar.row = row);
    bars
}

/// The first row for each extent in which it meets no other one.
fn rows(extents: impl Iterator<Item = [f64; 2]>) -> Vec<usize> {
    let mut taken: Vec<Vec<[f64; 2]>> = Vec::new();
    let mut place = |[from, to]: [f64; 2]| {
        let is_free = |row: &Vec<[f64; 2]>| row.iter().all(|&[start, end]| to <= start || end <= from);
        let row = taken.iter().position(is_free).unwrap_or_else(|| {
            taken.push(Vec::new());
            taken.len() - 1
        });
        taken[row].push([from, to]);
        row
    };
    extents.map(&mut place).collect()
}

/// Start and end of a range, and its title where it has one of its own.
pub fn hint(export: &Export, cut: &Cut) -> String {
    let (clock, ticks) = (export.clock(), export.ticks(cut));
    let times = format!("{}–{}", clock.short(ticks.start), clock.short(ticks.end));
    // Without one it is called like the whole.
    let is_own = cut.title != export.query && cut.title != export.media.stem();
    if is_own { format!("{times} {}", cut.title) } else { times }
}

/// Draws the axis with its ticks; the place below it.
fn ticks(drawing: &mut Drawing, export: &Export, axis: f64) -> f64 {
    drawing.rect(Tone::Rule, [MARGIN, axis, INSIDE, 1.0], None);
    let ticks = Ticks::new(export.media.duration_s, TICKS);
    let clock = Clock::new(ticks.step_s);
    for &time in &ticks.times {
        let x = x(export, time);
        drawing.rect(Tone::Rule, [x - 0.5, axis, 1.0, 6.0], None);
        drawing.text(Tone::Faint, 12.0, Anchor::Middle, [x, axis + 20.0], &clock.short(clock.ticks(time)));
    }
    axis + 30.0
}

#[cfg(test)]
mod tests {
    use super::super::golden::example;
    use super::*;

    /// Example of 3660 s with ranges of these starts and ends.
    fn export(ranges: &[[f64; 2]]) -> Export {
        let mut export = example(25.0, false);
        let template = export.cuts[1].clone();
        let cut = |&[start_s, end_s]: &[f64; 2]| Cut {
            start_s,
            end_s,
            title: "a red box, or so".to_owned(),
            ..template.clone()
        };
        export.cuts = ranges.iter().map(cut).collect();
        export
    }

    fn rows_of(export: &Export) -> Vec<usize> {
        bars(export).iter().map(|bar| bar.row).collect()
    }

    #[test]
    fn ranges_that_overlap_have_rows_of_their_own_and_others_share_one() {
        assert_eq!(rows_of(&export(&[[0.0, 100.0], [50.0, 900.0], [1800.0, 1900.0]])), [0, 1, 0]);
        // Labels are in each other's way before their ranges are; the last one's is kept inside of the picture.
        let near = export(&[[0.0, 100.0], [200.0, 300.0], [3600.0, 3660.0]]);
        assert_eq!(rows_of(&near), [0, 1, 0]);
        let last = &bars(&near)[2];
        assert!((last.label_x + width_of(&last.label, LABEL) - MARGIN - INSIDE).abs() < 1e-6);
    }

    #[test]
    fn many_ranges_lose_their_labels_and_not_their_places() {
        let many: Vec<[f64; 2]> = (0..180).map(|at| [f64::from(at) * 20.0, f64::from(at) * 20.0 + 10.0]).collect();
        let export = export(&many);
        assert!(bars(&export).iter().all(|bar| bar.row == 0 && bar.label.is_empty()));
        let svg = drawn(&export, None);
        assert_eq!((svg.matches("class='bar'").count(), svg.matches("<title>59:40.0").count()), (180, 1));
    }

    #[test]
    fn a_range_is_drawn_where_its_times_are_and_named_with_the_decimals_that_are_known() {
        let svg = drawn(&export(&[[1830.0, 2745.0], [3659.9, 3660.0]]), None);
        let half = format!("<rect x='{:.2}' y='", MARGIN + INSIDE / 2.0);
        assert!(svg.contains(&half) && svg.contains(&format!("width='{:.2}'", INSIDE / 4.0)), "{svg}");
        assert!(svg.contains(">30:30.0–45:45.0</text>") && svg.contains("width='2.00'"), "{svg}");
        assert!(svg.contains(">1:00:00</text>") && svg.contains("times known to 0.366 s"), "{svg}");
        assert!(drawn(&export(&[]), None).contains("The answer has no ranges."));
    }
}
