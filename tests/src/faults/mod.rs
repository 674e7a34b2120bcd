//! What goes wrong in practice, done on purpose to real processes and a real broker, with what must come of it.
//!
//! In reading order: this file (a case, its row in the table), [`load`] (mixed jobs with known answers, and what must hold
//! once they have ended), [`killed`] (workers that die), [`broker`] (a broker that dies, stands still, is full),
//! [`messages`] (messages that nobody sent in good faith), [`ends`] (jobs that end early), [`flow`] (more work than room).

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub mod broker;
pub mod ends;
pub mod flow;
pub mod killed;
pub mod load;
pub mod messages;

/// How much longer everything may take on a machine that is busy. Three times a second and a half is still less than
/// the product waits before it falls back on its safety nets, so a bound that only these would keep is still missed.
const BUSY: f64 = 3.0;

/// How large the suite is run.
#[derive(Clone, Debug)]
pub struct Scale {
    /// Jobs of the cases that need many.
    pub jobs: usize,
    /// Instants at which a job is cancelled.
    pub cancels: usize,
    /// Times that all stages start together.
    pub starts: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// The broker's executable; none for the default one.
    pub broker: Option<PathBuf>,
    /// Bounds are stretched by this: they are promises for a machine with nothing else to do.
    pub slack: f64,
}

impl Scale {
    /// Seconds that a case may take which takes so many at most on a machine with nothing else to do.
    pub fn bound(&self, seconds: f64) -> f64 {
        seconds * self.slack
    }

    /// What fits a run of CI, on a machine that may have more to do.
    pub fn short() -> Self {
        Scale { jobs: 16, cancels: 8, starts: 2, seed: 1, broker: None, slack: BUSY }
    }

    /// What the issue asks for.
    pub fn full() -> Self {
        Scale { jobs: 100, cancels: 50, starts: 20, seed: 1, broker: None, slack: 1.0 }
    }
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// What is tried.
    pub case: String,
    /// What was done.
    pub injected: String,
    /// What must come of it.
    pub expected: &'static str,
    /// What came of it.
    pub observed: String,
    /// Seconds that it took: the whole case, or what the bound is for.
    pub seconds: f64,
    /// Seconds that it may take.
    pub bound_s: f64,
    /// Whether all was as expected.
    pub passed: bool,
}

/// A case as it is run: what must come of it, and how long that may take.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is tried.
    pub name: String,
    /// What must come of it.
    pub expected: &'static str,
    /// Seconds that it may take.
    pub bound_s: f64,
}

/// What a case saw.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What was done.
    pub injected: String,
    /// What came of it.
    pub observed: String,
    /// Seconds that the bound is for; none for the whole case.
    pub seconds: Option<f64>,
}

impl Case {
    /// Runs a case; an error is what was not as expected.
    pub async fn run(self, body: impl Future<Output = anyhow::Result<Seen>>) -> Row {
        let started = Instant::now();
        let outcome = body.await;
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
    /// The row, or what was wrong with it.
    ///
    /// # Errors
    /// What was observed instead of what was expected.
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
        // An error may quote a whole log.
        let observed: String = r.observed.replace('\n', " ").replace('|', "/").chars().take(400).collect();
        writeln!(
            text,
            "| {} | {} | {} | {observed} | {:.2} | {} | {verdict} |",
            r.case, r.injected, r.expected, r.seconds, r.bound_s
        )
        .expect("a String takes all. This is a bug.");
    }
    text
}

/// Numbers that are the same for the same seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice for a seed.
    pub fn new(seed: u64) -> Self {
        Dice(seed)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }

    /// A time between two, in milliseconds.
    pub fn pause(&mut self, from_ms: usize, to_ms: usize) -> Duration {
        Duration::from_millis((from_ms + self.below(to_ms - from_ms)) as u64)
    }
}
