//! Self-test of the kernels: whether a device computes what the CPU does, at a stage's start and as the CUDA kernels' parity
//! test.

mod cases;
mod difference;

use std::fmt;

use candle_core::{DType, Device, Result};

use super::Activation;
use crate::random::Draws;
use cases::Case;
use difference::Difference;

/// Outcome of the self-test of one family of kernels: small made-up inputs, the same in every run, held against the CPU.
#[derive(Clone, Debug)]
pub struct Check {
    /// The family's name.
    pub name: String,
    /// Root mean square of the difference over that of the CPU's outcome, the worst of all outcomes and shapes.
    pub error: f64,
    /// The largest `error` that passes.
    pub tolerance: f64,
    /// Whether `error` is within `tolerance`, and no single value stands out.
    pub ok: bool,
    /// The error of a family that had no outcome.
    pub failure: Option<String>,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.ok { "ok" } else { "WRONG" };
        write!(f, "{:<64} {:>9.1e} of {:>9.1e} {verdict}", self.name, self.error, self.tolerance)?;
        self.failure.as_ref().map_or(Ok(()), |why| write!(f, ": {why}"))
    }
}

/// Runs every family of kernels on `device` in `dtype`. Takes some tenths of a second, most of them the CPU's.
pub fn check(device: &Device, dtype: DType) -> Vec<Check> {
    // Sums in another order and other exponentials turn a rounding now and then. The weights of attention's values are
    // rounded after the division by their sum on the CPU and before it on a GPU: each on its own.
    let (usual, rounded_weights) = match dtype {
        DType::BF16 => (1e-3, 6e-3),
        DType::F16 => (3e-4, 8e-4),
        _ => (2e-6, 3e-6),
    };
    // The CPU rounds a matmul, its sum with a bias and an activation of that; a GPU rounds once.
    let rounded_once = match dtype {
        DType::BF16 => 5e-3,
        DType::F16 => 1e-3,
        _ => 5e-6,
    };
    let case = Case { device, dtype, draws: Draws::default() };
    let usual_outlier = if dtype == DType::F32 { 1e-4 } else { 0.05 };
    let family = |name, tolerance, outcome| judged(name, tolerance, usual_outlier, outcome);
    let mut checks = vec![
        family("rms_norm", usual, case.rms_norm()),
        family("add_rms_norm", usual, case.add_rms_norm()),
        family("add_then_rms_norm", usual, case.add_then_rms_norm()),
        family("rms", usual, case.rms()),
        family("layer_norm", usual, case.layer_norm()),
        family("add_layer_norm", usual, case.add_layer_norm()),
        family("bias and activation", usual, case.bias_act()),
        family("geglu", usual, case.glu(Activation::GeluTanh)),
        family("swiglu", usual, case.glu(Activation::Silu)),
        family("matmul, bias and activation", rounded_once, case.linear()),
        family("E4M3 rows", 1e-7, case.e4m3()),
        // A row whose largest value turns a rounding has another scale, and with it other codes, whose steps are wide.
        judged("E4M3 of norms", 1e-2, 0.15, case.e4m3_of_norms()),
        family("attention", rounded_weights, case.attention()),
        family("patchify", usual, case.patchify()),
        family("pool", usual, case.pool()),
    ];
    if dtype == DType::BF16 {
        checks.push(judged("E4M3 matmuls", 6e-3, 0.15, case.e4m3_matmuls()));
        checks.push(family("E4M3 of activations", 1e-7, case.e4m3_of_activations()));
    }
    checks
}

/// Whether a difference is within its bounds, on the whole and for every value.
fn judged(name: &str, tolerance: f64, outlier: f64, outcome: Result<Difference>) -> Check {
    let name = name.to_owned();
    match outcome {
        Ok(d) => {
            let ok = d.rms <= tolerance && d.outlier <= outlier;
            Check { name, error: d.rms, tolerance, ok, failure: None }
        }
        Err(e) => Check { name, error: f64::NAN, tolerance, ok: false, failure: Some(e.to_string()) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_agrees_with_itself_on_the_cpu() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            for check in check(&Device::Cpu, dtype) {
                assert!(check.ok && check.error == 0.0, "{check:?}");
            }
        }
    }
}
