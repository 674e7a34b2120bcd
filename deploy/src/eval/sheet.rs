//! Scores of queries in columns, and the totals of a column over all queries and over groups of them.

use super::curve::{self, Reach, THRESHOLDS};
use super::suite::Suite;

/// Way in which the scores of a column become one figure. Queries without a score in the column are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Total {
    /// Their mean.
    Mean,
    /// Area below the share of queries that reach a threshold.
    Area(Reach),
}

impl Total {
    /// The figure of scores, 0 to 1; none of none.
    pub fn of(self, scores: &[f64]) -> Option<f64> {
        match self {
            Total::Mean => {
                let sum = scores.iter().fold(0.0, |sum, score| sum + score);
                (!scores.is_empty()).then(|| sum / scores.len() as f64)
            }
            Total::Area(reach) => curve::curve(scores, reach).map(|curve| curve::area(&curve)),
        }
    }
}

/// One kind of score.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Name of the score.
    pub name: &'static str,
    /// Way to its total.
    pub total: Total,
}

/// Property by which queries are grouped.
#[derive(Clone, Copy, Debug)]
pub struct Property {
    /// Name of the property.
    pub name: &'static str,
    /// Its values in the order in which they are shown; others follow as they come.
    pub values: &'static [&'static str],
}

/// Scores of one query.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Name of the query.
    pub id: String,
    /// Video and words of the query, for a person.
    pub about: String,
    /// Value of each property, where the query has one.
    pub groups: Vec<Option<String>>,
    /// Score in each column, 0 to 1, where the query has one.
    pub scores: Vec<Option<f64>>,
}

/// Scores of all queries that were scored.
#[derive(Clone, Debug)]
pub struct Sheet {
    /// The benchmark.
    pub suite: Suite,
    /// Properties by which queries are grouped.
    pub properties: Vec<Property>,
    /// Kinds of scores.
    pub columns: Vec<Column>,
    /// Scores of each query, in the truth's order.
    pub rows: Vec<Row>,
    /// What was left out or taken otherwise than it stood there, in words.
    pub notes: Vec<String>,
}

/// Total of a column over some queries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// The total, 0 to 1; none where no query has a score.
    pub value: Option<f64>,
    /// Queries that have a score.
    pub over: usize,
}

/// Totals over some queries.
#[derive(Clone, Debug, PartialEq)]
pub struct Totals {
    /// Property that these queries have in common; none for all queries.
    pub by: Option<&'static str>,
    /// Its value.
    pub group: String,
    /// Number of the queries.
    pub queries: usize,
    /// Total of each column.
    pub figures: Vec<Figure>,
}

impl Sheet {
    /// Totals over all queries, then over those of each value of each property.
    pub fn totals(&self) -> Vec<Totals> {
        let mut all = vec![self.totals_of(None, "all", |_| true)];
        for (at, property) in self.properties.iter().enumerate() {
            for value in self.values(at) {
                all.push(self.totals_of(Some(property.name), value, |row| row.groups[at].as_deref() == Some(value)));
            }
        }
        all
    }

    fn totals_of(&self, by: Option<&'static str>, group: &str, has: impl Fn(&Row) -> bool) -> Totals {
        let rows: Vec<&Row> = self.rows.iter().filter(|row| has(row)).collect();
        let figure = |(at, column): (usize, &Column)| {
            let scores: Vec<f64> = rows.iter().filter_map(|row| row.scores[at]).collect();
            Figure { value: column.total.of(&scores), over: scores.len() }
        };
        let figures = self.columns.iter().enumerate().map(figure).collect();
        Totals { by, group: group.to_owned(), queries: rows.len(), figures }
    }

    /// Values of a property that queries have.
    fn values(&self, property: usize) -> Vec<&str> {
        let order = self.properties[property].values;
        let mut found: Vec<&str> = Vec::new();
        for value in self.rows.iter().filter_map(|row| row.groups[property].as_deref()) {
            if !found.contains(&value) {
                found.push(value);
            }
        }
        found.sort_by_key(|value| order.iter().position(|known| known == value).unwrap_or(order.len()));
        found
    }

    /// Place of a column; none where there is no such score.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// Share of queries over each threshold, of the columns that are areas below one.
    pub fn curves(&self) -> Vec<(&'static str, [f64; THRESHOLDS])> {
        let curve = |(at, column): (usize, &Column)| {
            let Total::Area(reach) = column.total else { return None };
            let scores: Vec<f64> = self.rows.iter().filter_map(|row| row.scores[at]).collect();
            Some((column.name, curve::curve(&scores, reach)?))
        };
        self.columns.iter().enumerate().filter_map(curve).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, group: Option<&str>, scores: [Option<f64>; 2]) -> Row {
        let groups = vec![group.map(str::to_owned)];
        Row { id: id.to_owned(), about: String::new(), groups, scores: scores.to_vec() }
    }

    fn sheet(rows: Vec<Row>) -> Sheet {
        let columns = [("plain", Total::Mean), ("area", Total::Area(Reach::Above))];
        Sheet {
            suite: Suite::TrV2,
            properties: vec![Property { name: "length", values: &["short", "long"] }],
            columns: columns.map(|(name, total)| Column { name, total }).to_vec(),
            rows,
            notes: Vec::new(),
        }
    }

    #[test]
    fn totals_are_told_of_all_and_of_each_group_in_the_order_of_its_values() {
        let sheet = sheet(vec![
            row("a", Some("odd"), [Some(1.0), None]),
            row("b", Some("long"), [Some(0.5), None]),
            row("c", Some("short"), [None, Some(1.0)]),
            row("d", None, [Some(0.0), Some(0.0)]),
        ]);
        let shown: Vec<String> = sheet
            .totals()
            .into_iter()
            .map(|t| format!("{:?} {} {}: {:?}", t.by, t.group, t.queries, t.figures[0]))
            .collect();
        assert_eq!(
            shown,
            [
                "None all 4: Figure { value: Some(0.5), over: 3 }",
                "Some(\"length\") short 1: Figure { value: None, over: 0 }",
                "Some(\"length\") long 1: Figure { value: Some(0.5), over: 1 }",
                "Some(\"length\") odd 1: Figure { value: Some(1.0), over: 1 }",
            ]
        );
    }

    #[test]
    fn a_property_that_no_query_has_is_not_shown_and_no_queries_have_no_figure() {
        let sheet = sheet(vec![row("a", None, [None, None])]);
        assert_eq!(sheet.totals().len(), 1);
        assert_eq!(sheet.totals()[0].figures, [Figure { value: None, over: 0 }; 2]);
        assert!(sheet.curves().is_empty());
    }

    #[test]
    fn only_columns_that_are_areas_have_curves() {
        let sheet = sheet(vec![row("a", None, [Some(1.0), Some(0.5)])]);
        let curves = sheet.curves();
        assert_eq!((curves.len(), curves[0].0, curves[0].1[49], curves[0].1[50]), (1, "area", 1.0, 0.0));
        assert_eq!((sheet.column("area"), sheet.column("depth")), (Some(1), None));
    }
}
