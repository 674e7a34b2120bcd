//! Scores as a table, as JSON and as a picture.

use runtime::answer;
use runtime::output::Unwritten;
use serde_json::{Map, Value, json};

use super::curve::thresholds;
use super::error::EvalError;
use super::sheet::{Figure, Sheet, Totals};
use crate::plot::{Line, Plot};

/// Least width of a column of figures.
const COLUMN: usize = 9;
/// Equal parts at which the axes of a plot are labelled.
const TICKS: u32 = 5;

/// A table that is printed: the first column to the left, the others to the right.
#[derive(Debug, Default)]
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// Adds a line.
    pub fn line(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push(cells.into_iter().collect());
    }

    /// The lines, each column as wide as its widest cell.
    pub fn lines(&self) -> Vec<String> {
        let width = |at: usize| {
            self.0.iter().filter_map(|line| line.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let shown = |line: &Vec<String>| {
            let first = line.first().map(|cell| format!("{cell:<0$}", width(0))).unwrap_or_default();
            let others =
                line.iter().enumerate().skip(1).map(|(at, cell)| format!(" {cell:>0$}", width(at).max(COLUMN)));
            let whole: String = std::iter::once(first).chain(others).collect();
            whole.trim_end().to_owned()
        };
        self.0.iter().map(shown).collect()
    }

    /// Prints it.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn print(&self) -> Result<(), Unwritten> {
        self.lines().iter().try_for_each(|line| answer!("{line}"))
    }
}

/// The first cells of a group's line: a heading above the first group of a property.
pub fn label(table: &mut Table, before: &mut Option<&'static str>, by: Option<&'static str>, group: &str) -> String {
    let Some(by) = by else { return group.to_owned() };
    if *before != Some(by) {
        table.line([by.to_owned()]);
        *before = Some(by);
    }
    format!("  {group}")
}

/// A figure from 0 to 1 in percent.
pub fn percent(value: Option<f64>, decimals: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{:.decimals$}", 100.0 * value))
}

/// Prints the totals in percent, of all queries and of each group, and what was left out.
///
/// # Errors
/// When standard output cannot be written.
pub fn print(sheet: &Sheet) -> Result<(), Unwritten> {
    let totals = sheet.totals();
    let mut table = Table::default();
    let names = sheet.columns.iter().map(|column| column.name.to_owned());
    table.line([sheet.suite.name().to_owned(), "queries".to_owned()].into_iter().chain(names));
    let mut by = None;
    for Totals { by: property, group, queries, figures } in &totals {
        let name = label(&mut table, &mut by, *property, group);
        let figures = figures.iter().map(|figure| percent(figure.value, sheet.suite.decimals()));
        table.line([name, queries.to_string()].into_iter().chain(figures));
    }
    table.print()?;
    for note in sheet.notes.iter().chain(&fewer(sheet, &totals[0])) {
        answer!("{note}")?;
    }
    Ok(())
}

/// Columns in which some queries have no score.
fn fewer(sheet: &Sheet, all: &Totals) -> Vec<String> {
    let columns = sheet.columns.iter().zip(&all.figures);
    let fewer = columns.filter(|(_, figure)| figure.over < all.queries);
    fewer
        .map(|(column, figure)| {
            format!("{} is over {} of {} queries: the others have none", column.name, figure.over, all.queries)
        })
        .collect()
}

/// Totals, curves and the scores of each query as one object. All figures are from 0 to 1, `null` where there is none.
pub fn json(sheet: &Sheet) -> Value {
    let named = |values: Vec<Value>| -> Value {
        let names = sheet.columns.iter().map(|column| column.name.to_owned());
        names.zip(values).collect::<Map<String, Value>>().into()
    };
    let totals = |totals: &Totals| {
        let values = |value: fn(&Figure) -> Value| named(totals.figures.iter().map(value).collect());
        json!({
            "by": totals.by,
            "group": totals.group,
            "queries": totals.queries,
            "scores": values(|figure| json!(figure.value)),
            "over": values(|figure| json!(figure.over)),
        })
    };
    let curves: Map<String, Value> =
        sheet.curves().into_iter().map(|(name, curve)| (name.to_owned(), json!(curve.to_vec()))).collect();
    let rows = sheet.rows.iter().map(
        |row| json!({ "query_id": row.id, "scores": named(row.scores.iter().map(|score| json!(score)).collect()) }),
    );
    json!({
        "suite": sheet.suite,
        "totals": sheet.totals().iter().map(totals).collect::<Vec<_>>(),
        "notes": sheet.notes,
        "thresholds": if curves.is_empty() { Value::Null } else { json!(thresholds().to_vec()) },
        "curves": curves,
        "queries": rows.collect::<Vec<_>>(),
    })
}

/// SVG of the share of queries over each threshold.
///
/// # Errors
/// For a benchmark whose scores are means, and no areas below a curve.
pub fn plot(sheet: &Sheet) -> Result<String, EvalError> {
    let curves = sheet.curves();
    if curves.is_empty() {
        let text = format!(
            "--plot draws the curves whose areas are the scores, and those of {} are means: leave it out",
            sheet.suite.name()
        );
        return Err(EvalError::Option(text));
    }
    let all = &sheet.totals()[0];
    let lines: Vec<Line> = curves
        .iter()
        .zip(["#06c", "#2a2", "#c30"])
        .map(|((name, curve), colour)| {
            let value = sheet.column(name).and_then(|at| all.figures[at].value);
            let points = thresholds().into_iter().zip(*curve).collect();
            let name = format!("{name} {}", percent(value, sheet.suite.decimals()));
            Line { name, colour, points, marked: false }
        })
        .collect();
    let title = format!("{}: share of {} queries over a threshold", sheet.suite.name(), all.queries);
    Ok(Plot { title: &title, most: (1.0, 1.0), ticks: TICKS, lines: &lines }.svg())
}

#[cfg(test)]
mod tests {
    use super::super::curve::Reach;
    use super::super::sheet::{Column, Property, Row, Total};
    use super::super::suite::Suite;
    use super::*;

    fn sheet(total: Total, scores: [Option<f64>; 2]) -> Sheet {
        let row = |(at, score): (usize, Option<f64>)| Row {
            id: at.to_string(),
            about: String::new(),
            groups: vec![Some("long".to_owned())],
            scores: vec![score],
        };
        Sheet {
            suite: Suite::TrV2,
            properties: vec![Property { name: "length", values: &[] }],
            columns: vec![Column { name: "IoU", total }],
            rows: scores.into_iter().enumerate().map(row).collect(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_nine_at_least() {
        let mut table = Table::default();
        table.line(["é".to_owned(), "much wider".to_owned(), "x".to_owned()]);
        table.line(["name".to_owned(), "1".to_owned()]);
        assert_eq!(table.lines(), ["é    much wider         x", "name          1"]);
    }

    #[test]
    fn a_heading_stands_once_above_the_groups_of_a_property() {
        let (mut table, mut before) = (Table::default(), None);
        let labels = [(None, "all"), (Some("a"), "x"), (Some("a"), "y"), (Some("b"), "x")]
            .map(|(by, group)| label(&mut table, &mut before, by, group));
        assert_eq!(
            (labels, table.lines()),
            (["all", "  x", "  y", "  x"].map(str::to_owned), vec!["a".to_owned(), "b".to_owned()])
        );
    }

    #[test]
    fn json_has_every_figure_and_null_where_there_is_none() {
        let json = json(&sheet(Total::Mean, [Some(0.25), None]));
        assert_eq!(
            json["totals"][1],
            json!({ "by": "length", "group": "long", "queries": 2, "scores": { "IoU": 0.25 }, "over": { "IoU": 1 } })
        );
        assert_eq!(
            json["queries"],
            json!([{ "query_id": "0", "scores": { "IoU": 0.25 } }, { "query_id": "1", "scores": { "IoU": null } }])
        );
        assert_eq!((&json["suite"], &json["thresholds"], &json["curves"]), (&json!("tr-v2"), &Value::Null, &json!({})));
    }

    #[test]
    fn queries_without_a_score_are_told() {
        let sheet = sheet(Total::Mean, [Some(0.25), None]);
        assert_eq!(fewer(&sheet, &sheet.totals()[0]), ["IoU is over 1 of 2 queries: the others have none"]);
    }

    #[test]
    fn curves_are_drawn_with_their_scores_and_means_are_not() {
        let svg = plot(&sheet(Total::Area(Reach::Above), [Some(1.0), Some(0.0)])).unwrap();
        assert!(svg.contains(">IoU 49.75</text>") && svg.matches("<polyline").count() == 1, "{svg}");
        assert!(matches!(plot(&sheet(Total::Mean, [Some(1.0), None])), Err(EvalError::Option(_))));
    }
}
