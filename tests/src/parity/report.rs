//! Result of a comparison: one row per boundary and per fact, as a table.

use std::fmt;

/// Largest allowed difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// `||a - b|| / ||b||`
    RelativeRms(f64),
    /// `max |a - b|`
    Absolute(f64),
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tolerance::RelativeRms(limit) => write!(f, "rel {limit:.0e}"),
            Tolerance::Absolute(limit) => write!(f, "abs {limit:.0e}"),
        }
    }
}

/// Difference of a tensor from the golden one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distance {
    /// Number of values compared.
    pub compared: usize,
    /// Number of values of the whole tensor.
    pub of: usize,
    /// `max |a - b|`
    pub max_abs: f64,
    /// `||a - b|| / ||b||`
    pub relative_rms: f64,
    /// Allowed difference.
    pub tolerance: Tolerance,
}

impl Distance {
    /// Whether the difference is allowed; NaN never is.
    pub fn is_within(&self) -> bool {
        match self.tolerance {
            Tolerance::RelativeRms(limit) => self.relative_rms <= limit,
            Tolerance::Absolute(limit) => self.max_abs <= limit,
        }
    }
}

/// Outcome of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// As expected.
    Ok,
    /// Not as expected, and how.
    Failed(String),
    /// In the golden directory, but not compared, and why.
    NotCompared(String),
    /// Not in the golden directory.
    Absent,
}

/// Row of one boundary or fact.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Name that the oracle gives it.
    pub name: String,
    /// Difference of a tensor that was compared.
    pub distance: Option<Distance>,
    /// The outcome.
    pub verdict: Verdict,
}

impl Row {
    /// Row of a fact, which is either identical or not.
    pub fn fact<T: PartialEq + fmt::Debug>(name: &str, got: &T, want: &T) -> Self {
        let differ = || Verdict::Failed(format!("{}, golden {}", shown(got), shown(want)));
        let verdict = if got == want { Verdict::Ok } else { differ() };
        Row { name: name.to_owned(), distance: None, verdict }
    }

    /// Row of a fact that was not compared.
    pub fn not_compared(name: &str, why: impl Into<String>) -> Self {
        Row { name: name.to_owned(), distance: None, verdict: Verdict::NotCompared(why.into()) }
    }

    /// Row of a failure.
    pub fn failed(name: &str, how: impl Into<String>) -> Self {
        Row { name: name.to_owned(), distance: None, verdict: Verdict::Failed(how.into()) }
    }
}

fn shown(value: &impl fmt::Debug) -> String {
    let text = format!("{value:?}");
    if text.chars().count() <= 200 { text } else { format!("{}...", text.chars().take(200).collect::<String>()) }
}

/// Report of all rows, in the order of the data flow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Boundaries and facts.
    pub rows: Vec<Row>,
}

impl Report {
    /// Names of the rows that failed.
    pub fn failures(&self) -> Vec<&str> {
        let failed = self.rows.iter().filter(|r| matches!(r.verdict, Verdict::Failed(_)));
        failed.map(|r| r.name.as_str()).collect()
    }

    /// Row of a name.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|r| r.name == name)
    }

    fn count(&self, is: impl Fn(&Verdict) -> bool) -> usize {
        self.rows.iter().filter(|r| is(&r.verdict)).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["boundary", "values", "max abs", "rel rms", "tolerance", "verdict"];
        writeln!(f, "{:<30} {:>17} {:>9} {:>9} {:>10}  {}", head[0], head[1], head[2], head[3], head[4], head[5])?;
        for row in &self.rows {
            let (mut values, mut max_abs, mut rms, mut tolerance) = Default::default();
            if let Some(d) = row.distance {
                values = if d.compared == d.of { d.of.to_string() } else { format!("{}/{}", d.compared, d.of) };
                (max_abs, rms) = (format!("{:.2e}", d.max_abs), format!("{:.2e}", d.relative_rms));
                tolerance = d.tolerance.to_string();
            }
            let verdict = match &row.verdict {
                Verdict::Ok => "ok".to_owned(),
                Verdict::Failed(how) => format!("FAILED {how}"),
                Verdict::NotCompared(why) => format!("not compared ({why})"),
                Verdict::Absent => "absent from the golden directory".to_owned(),
            };
            let verdict = verdict.trim_end();
            writeln!(f, "{:<30} {values:>17} {max_abs:>9} {rms:>9} {tolerance:>10}  {verdict}", row.name)?;
        }
        write!(
            f,
            "{} ok, {} failed, {} not compared, {} absent",
            self.count(|v| *v == Verdict::Ok),
            self.failures().len(),
            self.count(|v| matches!(v, Verdict::NotCompared(_))),
            self.count(|v| *v == Verdict::Absent),
        )
    }
}
