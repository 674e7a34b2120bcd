//! Fault suite: faults injected into real processes and a real broker, with the outcome that is expected of each.
//!
//! In reading order: this file (a case, its row in the table), [`load`] (mixed jobs with known answers), [`look`] (what a case
//! looks at), [`killed`] (killed workers), [`batches`] (workers with several jobs), [`broker`] (a broker that is killed, stopped or full),
//! [`cluster`] (three of them), [`losses`]
//! (a broker that has lost streams), [`messages`] (malformed, duplicate, reordered and lost messages), [`ends`] (jobs that
//! end early), [`waiting`] (jobs in line), [`flow`] (more work than capacity), [`supervisor`] (`vidi up`
//! itself), [`probes`], [`hung`] engines, a [`clock`] that is off, and [`weights`] of another checkpoint.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub mod batches;
pub mod broker;
pub mod clock;
pub mod cluster;
pub mod ends;
pub mod flow;
pub mod hung;
pub mod killed;
pub mod load;
pub mod long_answer;
pub mod look;
pub mod losses;
pub mod messages;
pub mod probes;
mod shim;
pub mod supervisor;
pub mod waiting;
pub mod weights;

/// Factor by which bounds are stretched on a busy machine. Three times a second and a half is still less than the
/// product's own time-outs, so a case that only those would end still exceeds its bound.
const BUSY: f64 = 3.0;

/// Size of a run of the suite.
#[derive(Clone, Debug)]
pub struct Scale {
    /// Number of jobs of the cases that need many.
    pub jobs: usize,
    /// Number of instants at which a job is cancelled.
    pub cancels: usize,
    /// Number of times that all stages start together.
    pub starts: usize,
    /// Seed of all random choices.
    pub seed: u64,
    /// Executable of the broker; none for the default one.
    pub broker: Option<PathBuf>,
    /// Factor on all bounds, which hold for an idle machine.
    pub slack: f64,
}

impl Scale {
    /// Bound in seconds of a case whose bound on an idle machine is `seconds`.
    pub fn bound(&self, seconds: f64) -> f64 {
        seconds * self.slack
    }

    /// Size for CI, on a machine that may be busy.
    pub fn short() -> Self {
        Scale { jobs: 8, cancels: 8, starts: 2, seed: 1, broker: None, slack: BUSY }
    }

    /// Full size, for an idle machine.
    pub fn full() -> Self {
        Scale { jobs: 100, cancels: 50, starts: 20, seed: 1, broker: None, slack: 1.0 }
    }
}

/// Row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// Name of the case.
    pub case: String,
    /// Injected fault.
    pub injected: String,
    /// Expected outcome.
    pub expected: &'static str,
    /// Observed outcome.
    pub observed: String,
    /// Seconds taken: by the whole case, or by the part that the bound is for.
    pub seconds: f64,
    /// Bound in seconds.
    pub bound_s: f64,
    /// Whether outcome and time are as expected.
    pub passed: bool,
}

/// Case to run.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// Expected outcome.
    pub expected: &'static str,
    /// Bound in seconds.
    pub bound_s: f64,
}

/// Observation of a case.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Injected fault.
    pub injected: String,
    /// Observed outcome.
    pub observed: String,
    /// Seconds of the part that the bound is for; none for the whole case.
    pub seconds: Option<f64>,
}

/// Seconds that a case is waited for at least.
const LEAST_WAIT_S: f64 = 600.0;

impl Case {
    /// Runs a case; an error of `body` is an unexpected outcome, and so is one that does not come: a wait for a broker that has
    /// ended by itself has no end.
    pub async fn run(self, body: impl Future<Output = anyhow::Result<Seen>>) -> Row {
        let started = Instant::now();
        let most = Duration::from_secs_f64((2.0 * self.bound_s).max(LEAST_WAIT_S));
        let outcome = tokio::time::timeout(most, body).await.unwrap_or_else(|_| {
            Err(anyhow::anyhow!("not over after {most:?}: it waits for what does not come, a broker that crashed, say"))
        });
        let took = started.elapsed().as_secs_f64();
        let Case { name: case, expected, bound_s } = self;
        match outcome {
            Ok(Seen { injected, observed, seconds }) => {
                let seconds = seconds.unwrap_or(took);
                Row { case, injected, expected, observed, seconds, bound_s, passed: seconds <= bound_s }
            }
            Err(error) => {
                let observed = format!("{error:#}");
                Row {
                    case,
                    injected: "see observed".to_owned(),
                    expected,
                    observed,
                    seconds: took,
                    bound_s,
                    passed: false,
                }
            }
        }
    }
}

impl Row {
    /// The row, if the case passed.
    ///
    /// # Errors
    /// Expected and observed outcome of a case that failed.
    pub fn check(self) -> anyhow::Result<Row> {
        anyhow::ensure!(
            self.passed,
            "{}: expected {}; observed {} after {:.2} s (bound {} s)",
            self.case,
            self.expected,
            self.observed,
            self.seconds,
            self.bound_s
        );
        Ok(self)
    }
}

/// The rows as a Markdown table.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| case | injected | expected | observed | seconds | bound | verdict |\n| --- | --- | --- | --- | ---: | ---: | --- |\n",
    );
    for r in rows {
        let verdict = if r.passed { "pass" } else { "**fail**" };
        // An error may contain a whole log.
        let observed: String = r.observed.replace('\n', " ").replace('|', "/").chars().take(400).collect();
        writeln!(
            text,
            "| {} | {} | {} | {observed} | {:.2} | {} | {verdict} |",
            r.case, r.injected, r.expected, r.seconds, r.bound_s
        )
        .expect("writing to a String does not fail. This is a bug.");
    }
    text
}
