//! Boxes over time of VUE-STG: one box a second for each query, from a table with a row for each.

use std::collections::BTreeMap;
use std::path::Path;

use super::csv;
use super::error::EvalError;

/// Columns of the table.
const COLUMNS: [&str; 6] = ["query_id", "time_ms", "x0", "y0", "x1", "y1"];
/// Added to a union so that an empty one can be divided by.
const TINY: f64 = 2.2e-16;

/// Box in a picture: left, top, right and bottom as shares of its width and height, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region([f64; 4]);

impl Region {
    /// Box between two corners: reversed ones are swapped, and what is outside of the picture is cut off.
    pub fn between([x0, y0, x1, y1]: [f64; 4]) -> Self {
        Region([x0.min(x1), y0.min(y1), x0.max(x1), y0.max(y1)].map(|side| side.clamp(0.0, 1.0)))
    }

    /// Share of the picture, 0 to 1.
    pub fn area(self) -> f64 {
        let Region([left, top, right, bottom]) = self;
        (right - left).max(0.0) * (bottom - top).max(0.0)
    }

    /// Intersection over union with another box, 0 to 1.
    pub fn iou(self, other: Region) -> f64 {
        let (Region([l, t, r, b]), Region([left, top, right, bottom])) = (self, other);
        let shared = (r.min(right) - l.max(left)).max(0.0) * (b.min(bottom) - t.max(top)).max(0.0);
        shared / (self.area() + other.area() - shared + TINY)
    }
}

/// Boxes by the second, counted from the start of the video, at which they are.
pub type Tube = BTreeMap<i64, Region>;

/// The second that a time belongs to, half a second rounded up.
fn whole_second(time_ms: f64) -> i64 {
    ((2.0 * time_ms + 1000.0) / 2000.0).floor() as i64
}

/// Boxes of every query that a table names; of several at one second the first one. A row in which a number is missing adds
/// no box, and of a query that has only such rows there is an empty tube.
///
/// # Errors
/// A file that cannot be used; the line of what is no number.
pub fn read(path: &Path) -> Result<BTreeMap<String, Tube>, EvalError> {
    let mut tubes: BTreeMap<String, Tube> = BTreeMap::new();
    for record in csv::read(path, COLUMNS)? {
        let [id, numbers @ ..] = &record.fields;
        let tube = tubes.entry(id.trim().to_owned()).or_default();
        let mut found = [0.0; 5];
        let mut is_whole = true;
        for ((found, text), column) in found.iter_mut().zip(numbers).zip(&COLUMNS[1..]) {
            let wrong =
                || EvalError::malformed(path, format!("line {}: {column} is {text:?}, and no number", record.line));
            match number(text).ok_or_else(wrong)? {
                Some(number) => *found = number,
                None => is_whole = false,
            }
        }
        let [time_ms, corners @ ..] = found;
        if is_whole {
            tube.entry(whole_second(time_ms)).or_insert(Region::between(corners));
        }
    }
    Ok(tubes)
}

/// Number that a field holds: inner none where it is missing, outer none where the field holds something else.
fn number(text: &str) -> Option<Option<f64>> {
    let text = text.trim();
    if ["", "nan", "none", "null"].contains(&text.to_ascii_lowercase().as_str()) {
        return Some(None);
    }
    text.parse().ok().filter(|number: &f64| number.is_finite()).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tubes(rows: &str) -> Result<BTreeMap<String, Tube>, EvalError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("query_id,time_ms,x0,y0,x1,y1\n{rows}")).unwrap();
        read(file.path())
    }

    #[test]
    fn half_a_second_belongs_to_the_next_one() {
        assert_eq!([0.0, 499.0, 500.0, 999.0, 1499.0, 1500.0].map(whole_second), [0, 0, 1, 1, 1, 2]);
        assert_eq!([1_545_599.0, -499.0, -500.0, -501.0].map(whole_second), [1546, 0, 0, -1]);
    }

    #[test]
    fn corners_are_swapped_and_kept_in_the_picture() {
        assert_eq!(Region::between([0.75, 1.5, 0.25, -0.5]), Region([0.25, 0.0, 0.75, 1.0]));
        assert_eq!(Region::between([1.2, 0.0, 1.4, 1.0]).area(), 0.0);
        assert_eq!(Region::between([0.0, 0.0, 0.5, 0.5]).area(), 0.25);
    }

    #[test]
    fn boxes_are_compared_by_the_area_that_they_share() {
        let iou = |a, b| Region::between(a).iou(Region::between(b));
        assert!((iou([0.0, 0.0, 0.5, 1.0], [0.25, 0.0, 0.75, 1.0]) - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(iou([0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]), 0.0);
        assert_eq!(iou([0.5; 4], [0.5; 4]), 0.0);
    }

    #[test]
    fn the_first_box_of_a_second_counts_and_rows_with_a_missing_number_add_none() {
        let rows =
            "a,1000,0,0,1,1\na,1400,0,0,0.5,0.5\nb,,0,0,1,1\nb,2000,nan,0,1,1\nc,2000,0,0,1,None\nc,2000,0,0,0.5,1\n";
        let tubes = tubes(rows).unwrap();
        assert_eq!(tubes["a"], Tube::from([(1, Region([0.0, 0.0, 1.0, 1.0]))]));
        assert_eq!(tubes["b"], Tube::new());
        assert_eq!(tubes["c"], Tube::from([(2, Region([0.0, 0.0, 0.5, 1.0]))]));
    }

    #[test]
    fn what_is_no_number_is_told_with_its_line() {
        let error = tubes("a,1000,0,0,1,1\na,soon,0,0,1,1\n").unwrap_err().to_string();
        assert!(error.contains("line 3: time_ms is \"soon\""), "{error}");
        assert!(tubes("a,1000,0,0,1,inf\n").is_err());
    }
}
