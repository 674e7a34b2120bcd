//! A trace as text: a line for each part, with its place on a scale beside its figures.

use std::fmt::Write;

use super::{Kind, Trace};

/// Characters of the scale.
const SCALE: usize = 48;

/// The whole trace, without a line break at its end.
pub fn text(trace: &Trace) -> String {
    let mut text = format!("{}: {}, total {:.3} s\n", trace.job, trace.state, trace.total_s);
    let _ = writeln!(text, "{:<13}{:>9}{:>9}{:>9}{:>9}", "", "from s", "to s", "busy s", "waited s");
    for row in &trace.rows {
        let [busy, waited] = match row.kind {
            Kind::Stage { busy_s, wait_s } => [busy_s, wait_s].map(|seconds| format!("{seconds:.3}")),
            Kind::Queue => [String::new(), format!("{:.3}", row.to_s - row.from_s)],
            Kind::Part => Default::default(),
        };
        let sign = if row.kind == Kind::Queue { '.' } else { '=' };
        let [before, on, after] = scale(row.from_s, row.to_s, trace.length_s());
        let _ = writeln!(
            text,
            "{:<13}{:>9.3}{:>9.3}{busy:>9}{waited:>9}  |{}{}{}|",
            row.name,
            row.from_s,
            row.to_s,
            " ".repeat(before),
            sign.to_string().repeat(on),
            " ".repeat(after),
        );
    }
    for note in &trace.notes {
        let _ = writeln!(text, "{}", note.replace(char::is_control, " "));
    }
    text.truncate(text.trim_end().len());
    text
}

/// Characters of the scale before, on and behind a part of it; on it at least one.
fn scale(from_s: f64, to_s: f64, length_s: f64) -> [usize; 3] {
    let place = |seconds: f64| if length_s > 0.0 { (seconds / length_s * SCALE as f64).round() as usize } else { 0 };
    let from = place(from_s).min(SCALE - 1);
    let to = place(to_s).clamp(from + 1, SCALE);
    [from, to - from, SCALE - to]
}

#[cfg(test)]
mod tests {
    use super::super::tests::answered;
    use super::*;

    #[test]
    fn a_part_stands_on_the_scale_where_its_times_are() {
        let text = text(&Trace::of(&answered()).unwrap());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "a-job: answered, total 4.000 s");
        assert_eq!(lines[2], format!("queue            0.000    0.500             0.500  |......{}|", " ".repeat(42)));
        let due = format!(
            "decode           0.700    1.700    0.750    0.250  |{}{}{}|",
            " ".repeat(8),
            "=".repeat(12),
            " ".repeat(28)
        );
        assert_eq!(lines[4], due);
        assert_eq!((scale(0.0, 0.0, 0.0), scale(9.0, 9.0, 9.0)), ([0, 1, 47], [47, 1, 0]));
    }
}
