//! What a comparison came to: one row per boundary and per fact, and the table of them.

use std::fmt;

/// What a value may be off by.
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

/// How far a tensor is from the golden one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distance {
    /// Values compared.
    pub compared: usize,
    /// Values of the whole tensor.
    pub of: usize,
    /// `max |a - b|`
    pub max_abs: f64,
    /// `||a - b|| / ||b||`
    pub relative_rms: f64,
    /// What is allowed.
    pub tolerance: Tolerance,
}

impl Distance {
    /// Whether it is allowed; what is not a number never is.
    pub fn is_within(&self) -> bool {
        match self.tolerance {
            Tolerance::RelativeRms(limit) => self.relative_rms <= limit,
            Tolerance::Absolute(limit) => self.max_abs <= limit,
        }
    }
}

/// Whether a row is as it must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is.
    Ok,
    /// It is not, and how.
    Failed(String),
    /// The golden directory has it, and it was not compared: why.
    NotCompared(String),
    /// This run has it and the golden directory does not.
    Absent,
}

/// One boundary or fact.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The oracle's name of it.
    pub name: String,
    /// For tensors that were compared.
    pub distance: Option<Distance>,
    /// The outcome.
    pub verdict: Verdict,
}

impl Row {
    /// A fact that is either identical or not.
    pub fn fact<T: PartialEq + fmt::Debug>(name: &str, got: &T, want: &T) -> Self {
        let differ = || Verdict::Failed(format!("{}, golden {}", shown(got), shown(want)));
        let verdict = if got == want { Verdict::Ok } else { differ() };
        Row { name: name.to_owned(), distance: None, verdict }
    }

    /// A fact of the golden directory that was not compared.
    pub fn not_compared(name: &str, why: impl Into<String>) -> Self {
        Row { name: name.to_owned(), distance: None, verdict: Verdict::NotCompared(why.into()) }
    }

    /// Something that went wrong.
    pub fn failed(name: &str, how: impl Into<String>) -> Self {
        Row { name: name.to_owned(), distance: None, verdict: Verdict::Failed(how.into()) }
    }
}

fn shown(value: &impl fmt::Debug) -> String {
    let text = format!("{value:?}");
    if text.chars().count() <= 200 { text } else { format!("{}...", text.chars().take(200).collect::<String>()) }
}

/// All rows, in the order in which data flows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Boundaries and facts.
    pub rows: Vec<Row>,
}

impl Report {
    /// Names of what is not as it must be.
    pub fn failures(&self) -> Vec<&str> {
        let failed = self.rows.iter().filter(|r| matches!(r.verdict, Verdict::Failed(_)));
        failed.map(|r| r.name.as_str()).collect()
    }

    /// The row of a name.
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
