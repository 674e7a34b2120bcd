//! Two files of answers to the same queries: which answers got better and which worse, and the totals of both.

use std::collections::BTreeMap;

use runtime::answer;
use runtime::output::Unwritten;

use super::sheet::{Row, Sheet, Totals};
use super::show::{Table, label, percent};

/// Query whose score is another one.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Name of the query.
    pub id: String,
    /// Video and words of the query, and what was answered where that is known.
    pub about: String,
    /// First score, 0 to 1.
    pub before: f64,
    /// Second score, 0 to 1.
    pub after: f64,
}

/// Difference between two files of answers.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Scores of both over the queries that both answer.
    pub sheets: [Sheet; 2],
    /// Queries with a higher second score, those that gained most first.
    pub better: Vec<Change>,
    /// Queries with a lower second score, those that lost most first.
    pub worse: Vec<Change>,
    /// Queries that only one of both answers.
    pub unshared: usize,
}

impl Comparison {
    /// Compares the scores of two files by the benchmark's decisive column.
    pub fn between(before: Sheet, after: Sheet) -> Self {
        let ids = |sheet: &Sheet| {
            sheet.rows.iter().map(|row| (row.id.clone(), row.clone())).collect::<BTreeMap<String, Row>>()
        };
        let (of_before, of_after) = (ids(&before), ids(&after));
        let shared = of_before.keys().filter(|id| of_after.contains_key(*id)).count();
        let unshared = of_before.len() + of_after.len() - 2 * shared;
        let column = before.column(before.suite.decisive()).unwrap_or(0);
        let changes = before.rows.iter().filter_map(|row| {
            let other = of_after.get(&row.id)?;
            let (before, after) = (row.scores[column]?, other.scores[column]?);
            Some(Change { id: row.id.clone(), about: other.about.clone(), before, after })
        });
        let gain = |change: &Change| change.after - change.before;
        let (mut better, mut worse): (Vec<Change>, Vec<Change>) =
            changes.filter(|change| change.after != change.before).partition(|change| change.after > change.before);
        better.sort_by(|a, b| gain(b).total_cmp(&gain(a)));
        worse.sort_by(|a, b| gain(a).total_cmp(&gain(b)));
        let kept = |mut sheet: Sheet, other: &BTreeMap<String, Row>| {
            sheet.rows.retain(|row| other.contains_key(&row.id));
            sheet
        };
        Comparison { sheets: [kept(before, &of_after), kept(after, &of_before)], better, worse, unshared }
    }

    /// Prints the totals of both with their difference, then the `top` queries that gained and lost most.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn print(&self, top: usize) -> Result<(), Unwritten> {
        let [before, after] = &self.sheets;
        let mut table = Table::default();
        let compared: Vec<usize> = before.suite.compared().iter().filter_map(|name| before.column(name)).collect();
        let names = compared.iter().flat_map(|&at| [before.columns[at].name, "second", "gain"].map(str::to_owned));
        table.line([before.suite.name().to_owned(), "queries".to_owned()].into_iter().chain(names));
        let decimals = before.suite.decimals();
        let mut by = None;
        for (a, b) in before.totals().iter().zip(&after.totals()) {
            let name = label(&mut table, &mut by, a.by, &a.group);
            table.line([name, a.queries.to_string()].into_iter().chain(figures(a, b, &compared, decimals)));
        }
        table.print()?;
        for (sheet, which) in self.sheets.iter().zip(["first", "second"]) {
            for note in &sheet.notes {
                answer!("the {which}: {note}")?;
            }
        }
        if self.unshared > 0 {
            answer!("{} queries are left out: only one of both answers them", self.unshared)?;
        }
        let decisive = before.suite.decisive();
        let same = before.rows.len() - self.better.len() - self.worse.len();
        answer!("{decisive}: {} better, {} worse, {same} the same", self.better.len(), self.worse.len())?;
        for (changes, which) in [(&self.better, "better"), (&self.worse, "worse")] {
            for Change { id, about, before, after } in changes.iter().take(top) {
                let (before, after) = (percent(Some(*before), decimals), percent(Some(*after), decimals));
                answer!("{which:<6} {before:>6} -> {after:>6}  {id}  {about}")?;
            }
        }
        Ok(())
    }
}

/// First figure, second figure and their difference, of some columns.
fn figures(before: &Totals, after: &Totals, columns: &[usize], decimals: usize) -> Vec<String> {
    let three = |&at: &usize| {
        let (before, after) = (before.figures[at].value, after.figures[at].value);
        let gain = before.zip(after).map(|(before, after)| format!("{:+.decimals$}", 100.0 * (after - before)));
        [percent(before, decimals), percent(after, decimals), gain.unwrap_or("-".to_owned())]
    };
    columns.iter().flat_map(three).collect()
}

#[cfg(test)]
mod tests {
    use super::super::sheet::{Column, Figure, Total};
    use super::super::suite::Suite;
    use super::*;

    fn sheet(scores: &[(&str, Option<f64>)]) -> Sheet {
        let row = |(id, score): &(&str, Option<f64>)| Row {
            id: (*id).to_owned(),
            about: String::new(),
            groups: Vec::new(),
            scores: vec![*score],
        };
        Sheet {
            suite: Suite::Plot,
            properties: Vec::new(),
            columns: vec![Column { name: "accuracy", total: Total::Mean }],
            rows: scores.iter().map(row).collect(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn what_changed_most_comes_first_and_what_did_not_is_in_neither_list() {
        let before = sheet(&[
            ("a", Some(0.5)),
            ("b", Some(0.5)),
            ("c", Some(0.5)),
            ("d", Some(0.5)),
            ("e", None),
            ("f", Some(1.0)),
        ]);
        let after = sheet(&[
            ("b", Some(1.0)),
            ("a", Some(0.75)),
            ("c", Some(0.5)),
            ("d", Some(0.0)),
            ("e", Some(1.0)),
            ("f", Some(0.25)),
        ]);
        let found = Comparison::between(before, after);
        let ids = |changes: &[Change]| changes.iter().map(|change| change.id.clone()).collect::<Vec<_>>();
        assert_eq!(
            (ids(&found.better), ids(&found.worse)),
            (vec!["b".to_owned(), "a".to_owned()], vec!["f".to_owned(), "d".to_owned()])
        );
        assert_eq!((found.better[0].before, found.better[0].after, found.unshared), (0.5, 1.0, 0));
    }

    #[test]
    fn totals_are_over_the_queries_that_both_answer() {
        let found = Comparison::between(
            sheet(&[("a", Some(1.0)), ("b", Some(0.0))]),
            sheet(&[("a", Some(1.0)), ("c", Some(0.0))]),
        );
        assert_eq!(found.unshared, 2);
        for sheet in &found.sheets {
            assert_eq!((sheet.rows.len(), sheet.totals()[0].figures[0].value), (1, Some(1.0)));
        }
    }

    #[test]
    fn a_difference_is_shown_with_its_sign_and_not_where_one_is_missing() {
        let totals =
            |value| Totals { by: None, group: "all".to_owned(), queries: 1, figures: vec![Figure { value, over: 1 }] };
        assert_eq!(figures(&totals(Some(0.5)), &totals(Some(0.25)), &[0], 2), ["50.00", "25.00", "-25.00"]);
        assert_eq!(figures(&totals(Some(0.5)), &totals(Some(0.75)), &[0], 1), ["50.0", "75.0", "+25.0"]);
        assert_eq!(figures(&totals(None), &totals(Some(0.75)), &[0], 1), ["-", "75.0", "-"]);
    }
}
