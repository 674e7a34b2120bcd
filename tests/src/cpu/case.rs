//! What is timed: a run in laps, and what each lap cannot do without.

use candle_core::Result;

use super::ceilings::Ceilings;
use super::clock::Laps;

/// One lap of a case.
#[derive(Clone, Debug)]
pub struct Part {
    /// What it does.
    pub name: &'static str,
    /// Multiplications and additions, each one operation.
    pub operations: f64,
    /// Bytes read or written that cannot be in a cache.
    pub bytes: f64,
}

impl Part {
    /// A part of so many operations and bytes.
    pub fn new(name: &'static str, operations: f64, bytes: f64) -> Self {
        Part { name, operations, bytes }
    }

    /// Least seconds of CPU time on a machine of such rates. A part that hardly multiplies moves bytes.
    pub fn floor_s(&self, ceilings: &Ceilings) -> f64 {
        (self.operations / ceilings.operations_per_s).max(self.bytes / ceilings.read_bytes_per_s)
    }
}

/// Runs a case once, ending a lap for each of its parts.
pub type Run = Box<dyn FnMut(&mut Laps) -> Result<()>>;

/// A run that is timed, known by the same name to the peer.
pub struct Case {
    /// Name, e.g. `audio.window`.
    pub name: &'static str,
    /// Its laps.
    pub parts: Vec<Part>,
    /// What is timed.
    pub run: Run,
}

impl Case {
    /// A case of one part that is what `work` does.
    pub fn single(
        name: &'static str,
        operations: f64,
        bytes: f64,
        mut work: impl FnMut() -> Result<()> + 'static,
    ) -> Self {
        let run = move |laps: &mut Laps| {
            work()?;
            laps.lap();
            Ok(())
        };
        Case { name, parts: vec![Part::new("", operations, bytes)], run: Box::new(run) }
    }
}

/// Operations of a matmul of `[rows, inputs]` by `[inputs, outputs]`.
pub fn matmul(rows: usize, inputs: usize, outputs: usize) -> f64 {
    2.0 * rows as f64 * inputs as f64 * outputs as f64
}

/// Bytes of so many values of f32.
pub fn floats(values: usize) -> f64 {
    4.0 * values as f64
}
