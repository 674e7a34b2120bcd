//! Comparison of tensors with the golden ones, piece by piece as the stages compute them.

use candle_core::{DType, Tensor};
use protocol::rows::RowSet;

use super::golden::{Golden, Stored};
use super::limits::Limits;
use super::report::{Distance, Row, Tolerance, Verdict};

/// Every boundary of tests/oracle/README.md; `#` stands for a number.
const BOUNDARIES: [&str; 31] = [
    "pixel_values",
    "vision_embed_frame#",
    "vision_layer#_frame#",
    "vision_features",
    "vision_features_first#",
    "vision_features_last",
    "pooled",
    "pooled_first#",
    "pooled_last",
    "image_projected",
    "pos_h",
    "pos_w",
    "pos_t_image",
    "image_tokens_before_llm_norm",
    "image_tokens",
    "mel",
    "audio_embed_window#",
    "audio_layer#_window#",
    "audio_features",
    "audio_pooled",
    "audio_projected",
    "pos_t_audio",
    "audio_tokens_before_llm_norm",
    "audio_tokens",
    "image_hidden.#",
    "audio_hidden.#",
    "text_hidden.#",
    "text_final_norm",
    "prefill_logits",
    "prefill_logits_all",
    "step_logits",
];

/// Whether a name follows one of [`BOUNDARIES`].
fn is_boundary(name: &str) -> bool {
    let mut pattern = String::new();
    for c in name.chars() {
        match c {
            '0'..='9' if pattern.ends_with('#') => {}
            '0'..='9' => pattern.push('#'),
            c => pattern.push(c),
        }
    }
    BOUNDARIES.contains(&pattern.as_str())
}

/// One tensor's comparison under way.
struct Check<'g> {
    name: String,
    /// None if the golden directory does not have it.
    stored: Option<&'g Stored>,
    shape: Vec<usize>,
    seen: RowSet,
    max_abs: f64,
    error: f64,
    reference: f64,
    /// Sum of squares of every value of this run, the ones between the stored ones included.
    own: f64,
    trouble: Option<String>,
}

impl Check<'_> {
    /// Takes the values from `first` on, row-major, except those that came before.
    fn take(&mut self, first: u64, values: &[f32]) {
        let Some(stored) = self.stored else { return };
        let stride = stored.stride as u64;
        for new in self.seen.insert(first..first + values.len() as u64) {
            let own = &values[(new.start - first) as usize..(new.end - first) as usize];
            self.own += own.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
            for at in new.start.div_ceil(stride)..new.end.div_ceil(stride) {
                // A shape that differs is reported at the end.
                let Some(&want) = stored.values.get(at as usize) else { break };
                let want = f64::from(want);
                let off = f64::from(values[(at * stride - first) as usize]) - want;
                // Not f64::max, which drops NaN.
                if off.is_nan() || off.abs() > self.max_abs {
                    self.max_abs = off.abs();
                }
                self.error += off * off;
                self.reference += want * want;
            }
        }
    }

    fn row(self, limits: Limits, golden: &Golden) -> Row {
        let Some(stored) = self.stored else {
            return Row { name: self.name, distance: None, verdict: Verdict::Absent };
        };
        let relative = if self.error == 0.0 { 0.0 } else { (self.error / self.reference).sqrt() };
        let distance = Distance {
            compared: stored.values.len(),
            of: stored.count(),
            max_abs: self.max_abs,
            relative_rms: relative,
            tolerance: limits.tolerance(golden, &self.name, self.max_abs),
        };
        let seen = self.seen.len();
        let verdict = if let Some(trouble) = self.trouble {
            Verdict::Failed(trouble)
        } else if self.shape != stored.shape {
            Verdict::Failed(format!("{:?}, golden {:?}", self.shape, stored.shape))
        } else if seen != distance.of as u64 {
            Verdict::Failed(format!("only {seen} of {} values were computed", distance.of))
        } else if !distance.is_within() {
            Verdict::Failed(String::new())
        } else if let Some(off) = off_as_a_whole(self.own, stored, distance.tolerance) {
            Verdict::Failed(format!("between the stored values: the rms of the whole is off by {off:.1e}"))
        } else {
            Verdict::Ok
        };
        Row { name: self.name, distance: Some(distance), verdict }
    }
}

/// How far the rms of a whole thinned tensor is off, if further than its values may be: `| ||a|| - ||b|| |` is at most
/// `||a - b||`.
fn off_as_a_whole(sum_of_squares: f64, stored: &Stored, tolerance: Tolerance) -> Option<f64> {
    let (Some(want), Tolerance::RelativeRms(limit)) = (stored.rms.filter(|_| stored.stride > 1), tolerance) else {
        return None;
    };
    let off = ((sum_of_squares / stored.count() as f64).sqrt() / want - 1.0).abs();
    (off > limit).then_some(off)
}

/// All comparisons of a run.
pub struct Ledger<'g> {
    golden: &'g Golden,
    limits: Limits,
    /// In the order in which they were first seen.
    checks: Vec<Check<'g>>,
}

impl<'g> Ledger<'g> {
    /// Nothing compared yet.
    pub fn new(golden: &'g Golden, limits: Limits) -> Self {
        Ledger { golden, limits, checks: Vec::new() }
    }

    /// The golden directory.
    pub fn golden(&self) -> &'g Golden {
        self.golden
    }

    /// Takes rows `first..` of a boundary whose whole is `shape`. Rows may come in any order and more than once; the
    /// first two and the last one also stand for what a lightly saved golden directory has of the boundary.
    pub fn see(&mut self, name: &str, shape: &[usize], first: u64, values: &Tensor) {
        let rows = shape[0] as u64;
        let (first2, last) = (format!("{name}_first2"), format!("{name}_last"));
        let light = self.golden.tensor(&first2).is_some() && self.golden.tensor(&last).is_some();
        if !light || self.golden.tensor(name).is_some() {
            self.see_part(name, shape, 0, first, values);
        }
        for (part, range) in [(first2, 0..rows.min(2)), (last, rows.saturating_sub(1)..rows)] {
            if self.golden.tensor(&part).is_some() {
                let shape: Vec<usize> =
                    [(range.end - range.start) as usize].iter().chain(&shape[1..]).copied().collect();
                self.see_part(&part, &shape, range.start, first, values);
            }
        }
    }

    /// Takes what lies in the part `start..start + shape[0]` of rows `first..` of a boundary.
    fn see_part(&mut self, name: &str, shape: &[usize], start: u64, first: u64, values: &Tensor) {
        let at = self.checks.iter().position(|c| c.name == name).unwrap_or_else(|| {
            self.checks.push(Check {
                name: name.to_owned(),
                stored: self.golden.tensor(name),
                shape: shape.to_vec(),
                seen: RowSet::new(),
                max_abs: 0.0,
                error: 0.0,
                reference: 0.0,
                own: 0.0,
                trouble: None,
            });
            self.checks.len() - 1
        });
        let check = &mut self.checks[at];
        let row = shape[1..].iter().product::<usize>() as u64;
        let end = start + shape[0] as u64;
        if check.stored.is_none() || row == 0 {
            return;
        }
        let flat = values.flatten_all().and_then(|v| v.to_dtype(DType::F32)?.to_vec1::<f32>());
        match flat {
            Ok(flat) => {
                let last = (first + flat.len() as u64 / row).min(end);
                let from = first.max(start);
                if from < last {
                    let inside = &flat[((from - first) * row) as usize..((last - first) * row) as usize];
                    check.take((from - start) * row, inside);
                }
            }
            Err(e) => check.trouble = Some(e.to_string()),
        }
    }

    /// The rows of the report: everything seen, and then whatever else the golden directory has.
    pub fn finish(self) -> Vec<Row> {
        let unseen: Vec<Row> = self
            .golden
            .names()
            .filter(|name| !self.checks.iter().any(|c| c.name == *name))
            .map(|name| {
                if is_boundary(name) {
                    Row::failed(name, "this run never gets there")
                } else {
                    Row::not_compared(name, "no boundary of that name is known")
                }
            })
            .collect();
        self.checks.into_iter().map(|check| check.row(self.limits, self.golden)).chain(unseen).collect()
    }
}
