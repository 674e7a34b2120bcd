//! A trace as an SVG: parts of the job below each other, on one time axis.
//!
//! Of a stage's bar, the dark part of the height is the share of the bar's time that the stage computed, the light part above
//! it the share that it waited for others; areas are times. Where within the bar either happened, the timings do not know.

use super::{Kind, Row, Trace};
use crate::draw::ticks::Ticks;
use crate::draw::{Anchor, Drawing, Tone, wrapped};

/// Width of the picture, pixels.
const WIDTH: f64 = 960.0;
/// Margin on each side, pixels.
const MARGIN: f64 = 24.0;
/// Start of the time axis, pixels: names stand before it.
const AXIS: f64 = 124.0;
/// Length of the time axis, pixels: figures stand behind it.
const LENGTH: f64 = 580.0;
/// Start of the figures, pixels.
const FIGURES: f64 = AXIS + LENGTH + 16.0;
/// Height of a row, pixels.
const ROW: f64 = 30.0;
/// Height of a bar, pixels.
const BAR: f64 = 20.0;
/// Width of a bar at least, pixels.
const LEAST: f64 = 1.5;
/// Distances between ticks at most.
const TICKS: usize = 10;
/// Height of the font of labels, pixels.
const LABEL: f64 = 13.0;

/// The whole file.
pub fn svg(trace: &Trace) -> String {
    let mut drawing = Drawing::new(WIDTH);
    let title = format!("{}: {}", trace.job, trace.state);
    for (line, text) in wrapped(&title, 18.0, FIGURES - MARGIN - 16.0, 1).iter().enumerate() {
        drawing.text(Tone::Ink, 18.0, Anchor::Start, [MARGIN, 34.0 + 22.0 * line as f64], text);
    }
    let total = format!("total {:.3} s", trace.total_s);
    drawing.text(Tone::Ink, 18.0, Anchor::End, [WIDTH - MARGIN, 34.0], &total);
    let top = 52.0;
    let bottom = top + ROW * trace.rows.len() as f64 + 4.0;
    axis(&mut drawing, trace, top, bottom);
    for (at, row) in trace.rows.iter().enumerate() {
        let y = top + ROW * at as f64 + (ROW - BAR) / 2.0;
        bar(&mut drawing, trace, row, y);
        drawing.text(Tone::Ink, LABEL, Anchor::End, [AXIS - 10.0, y + 15.0], row.name);
        drawing.text(Tone::Faint, LABEL, Anchor::Start, [FIGURES, y + 15.0], &figures(row));
    }
    let mut y = bottom + 44.0;
    let legend =
        "Dark: computing. Light: waiting for others. Grey: in the queue. The height is the share of the bar's time.";
    for line in trace.notes.iter().map(String::as_str).chain([legend]) {
        for line in wrapped(line, LABEL, WIDTH - 2.0 * MARGIN, 3) {
            drawing.text(Tone::Faint, LABEL, Anchor::Start, [MARGIN, y], &line);
            y += 18.0;
        }
    }
    drawing.svg(y, &format!("{title}, {total}"))
}

/// Place of a time from left to right, pixels.
fn x(trace: &Trace, seconds: f64) -> f64 {
    let length_s = trace.length_s();
    AXIS + if length_s > 0.0 { LENGTH * seconds / length_s } else { 0.0 }
}

/// Draws the axis below the rows, with its ticks through them.
fn axis(drawing: &mut Drawing, trace: &Trace, top: f64, bottom: f64) {
    let ticks = Ticks::new(trace.length_s(), TICKS);
    let decimals = (0..3).find(|&decimals| ticks.step_s * 10f64.powi(decimals) >= 0.999).unwrap_or(3) as usize;
    for &time in &ticks.times {
        let x = x(trace, time);
        drawing.rect(Tone::Rule, [x - 0.25, top, 0.5, bottom - top + 4.0], None);
        drawing.text(Tone::Faint, 12.0, Anchor::Middle, [x, bottom + 18.0], &format!("{time:.decimals$} s"));
    }
    drawing.rect(Tone::Rule, [AXIS, bottom, LENGTH, 1.0], None);
}

/// Draws the bar of a part, with its top at `y`.
fn bar(drawing: &mut Drawing, trace: &Trace, row: &Row, y: f64) {
    let from = x(trace, row.from_s);
    let width = (x(trace, row.to_s) - from).max(LEAST);
    let hint = format!("{}: {:.3} s to {:.3} s; {}", row.name, row.from_s, row.to_s, figures(row));
    let (busy, waited) = match row.kind {
        Kind::Queue => return drawing.rect(Tone::Rule, [from, y + BAR * 0.25, width, BAR * 0.5], Some(&hint)),
        Kind::Part => (1.0, 0.0),
        Kind::Stage { busy_s, wait_s } => shares(busy_s, wait_s, row.to_s - row.from_s),
    };
    drawing.rect(Tone::Soft, [from, y + BAR * (1.0 - busy - waited), width, BAR * waited], Some(&hint));
    drawing.rect(Tone::Bar, [from, y + BAR * (1.0 - busy), width, BAR * busy], Some(&hint));
    // What was neither: the bar is as long as it lasted.
    drawing.rect(Tone::Rule, [from, y + BAR - 1.0, width, 1.0], None);
}

/// Shares of a bar's time that a stage computed and waited. Several processes may do more than one could: the two then share
/// the whole as their times do.
fn shares(busy_s: f64, wait_s: f64, length_s: f64) -> (f64, f64) {
    let whole = length_s.max(busy_s + wait_s);
    if whole > 0.0 { (busy_s / whole, wait_s / whole) } else { (1.0, 0.0) }
}

/// Figures of a part.
fn figures(row: &Row) -> String {
    match row.kind {
        Kind::Stage { busy_s, wait_s } => format!("busy {busy_s:.3} s, waited {wait_s:.3} s"),
        Kind::Queue => format!("waited {:.3} s", row.to_s - row.from_s),
        Kind::Part => format!("{:.3} s", row.to_s - row.from_s),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::answered;
    use super::*;

    #[test]
    fn a_bar_lies_where_its_times_are_and_is_as_dark_as_its_stage_was_busy() {
        let svg = svg(&Trace::of(&answered()).unwrap());
        // stage-decode from 0.7 s to 1.7 s of 4 s, 0.75 s busy, 0.25 s waiting, in the third row.
        let (from, width) = (AXIS + LENGTH * 0.175, LENGTH * 0.25);
        let y = 52.0 + 2.0 * ROW + 5.0;
        for (class, y, height) in [("soft", y, 5.0), ("bar", y + 5.0, 15.0)] {
            let due = format!("<rect x='{from:.2}' y='{y:.2}' width='{width:.2}' height='{height:.2}' class='{class}'");
            assert!(svg.contains(&due), "{due}: {svg}");
        }
        assert!(svg.contains(">total 4.000 s</text>") && svg.contains(">busy 0.750 s, waited 0.250 s</text>"), "{svg}");
        assert!(svg.contains(">0.5 s</text>"), "{svg}");
    }

    #[test]
    fn several_processes_fill_a_bar_and_no_more() {
        assert_eq!(shares(3.0, 1.0, 2.0), (0.75, 0.25));
        assert_eq!(shares(1.0, 0.5, 4.0), (0.25, 0.125));
        assert_eq!(shares(0.0, 0.0, 0.0), (1.0, 0.0));
    }
}
