//! Whether a device computes what the CPU does: a self-test for a stage's start, and the parity test of the CUDA kernels.

use std::fmt;

use candle_core::{DType, Device, Result, Tensor};

use super::{
    E4m3Rows, LayerNorm, Rows, add_positions, add_rms_norm, attention, bias_add, bias_gelu_erf, bias_gelu_tanh, geglu,
    layer_norm, linear, linear_gelu_tanh, patchify, pool, residual_add, rms, rms_norm, rms_norm_rows,
};

use crate::random::Draws;
use config::MediaProducts;

/// What a family of kernels makes of small made-up inputs, the same in every run, held against the CPU.
#[derive(Clone, Debug)]
pub struct Check {
    /// Which kernels.
    pub name: String,
    /// Root mean square of the difference over that of the CPU's outcome, the worst of all outcomes and shapes.
    pub error: f64,
    /// What `error` may be.
    pub tolerance: f64,
    /// Whether it is, and no single value stands out.
    pub ok: bool,
    /// Why there is no outcome.
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
    // rounded after the division by their sum on the CPU and before it on a card: each on its own.
    let (usual, rounded_weights) = match dtype {
        DType::BF16 => (1e-3, 6e-3),
        DType::F16 => (3e-4, 8e-4),
        _ => (2e-6, 3e-6),
    };
    // The CPU rounds a product, its sum with a bias and an activation of that; a card rounds once.
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
        family("rms", usual, case.rms()),
        family("layer_norm", usual, case.layer_norm()),
        family("add_layer_norm", usual, case.add_layer_norm()),
        family("bias and activation", usual, case.bias_act()),
        family("geglu", usual, case.geglu()),
        family("product, bias and activation", rounded_once, case.linear()),
        family("E4M3 rows", 1e-7, case.e4m3()),
        // A row whose largest value turns a rounding has another scale, and with it other codes, whose steps are wide.
        judged("E4M3 of activations", 1e-2, 0.15, case.e4m3_of_activations()),
        judged("E4M3 of norms", 1e-2, 0.15, case.e4m3_of_norms()),
        family("attention", rounded_weights, case.attention()),
        family("patchify", usual, case.patchify()),
        family("pool", usual, case.pool()),
    ];
    if dtype == DType::BF16 {
        checks.push(judged("E4M3 products", 6e-3, 0.15, case.e4m3_products()));
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

/// How far two outcomes are apart.
#[derive(Clone, Copy, Default)]
struct Difference {
    rms: f64,
    /// The greatest difference of a value, over its size and the outcome's root mean square together.
    outlier: f64,
}

impl Difference {
    fn between(got: &Tensor, want: &Tensor) -> Result<Self> {
        let flat = |x: &Tensor| x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        if got.dims() != want.dims() || got.dtype() != want.dtype() {
            candle_core::bail!("{got:?} where the CPU makes {want:?}");
        }
        let (got, want) = (flat(got)?, flat(want)?);
        let square = |x: f32| f64::from(x) * f64::from(x);
        let mean = |sum: f64| (sum / want.len() as f64).sqrt();
        let size = mean(want.iter().map(|&w| square(w)).sum());
        let rms = mean(got.iter().zip(&want).map(|(g, w)| square(g - w)).sum()) / size;
        let outlier = got.iter().zip(&want).map(|(g, w)| f64::from((g - w).abs()) / (f64::from(w.abs()) + size));
        Ok(Difference { rms, outlier: outlier.fold(0.0, f64::max) })
    }

    /// The worse of both; what is not a number is worst.
    fn or(self, other: Self) -> Self {
        let worse = |a: f64, b: f64| if a.is_nan() || a > b { a } else { b };
        Difference { rms: worse(self.rms, other.rms), outlier: worse(self.outlier, other.outlier) }
    }
}

struct Case<'a> {
    device: &'a Device,
    dtype: DType,
    draws: Draws,
}

impl Case<'_> {
    fn random(&self, shape: &[usize]) -> Result<Tensor> {
        self.draws.normal(shape)?.to_dtype(self.dtype)
    }

    /// A norm's gain in f32, around one.
    fn gain(&self, columns: usize) -> Result<Tensor> {
        (self.draws.normal(&[columns])? * 0.2)? + 1.0
    }

    /// Computes on the CPU and on the device with copies of the inputs, which the operation may overwrite.
    fn compare(&self, inputs: &[Tensor], op: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>) -> Result<Difference> {
        let copies = |device: &Device| inputs.iter().map(|x| x.copy()?.to_device(device)).collect::<Result<Vec<_>>>();
        let want = op(&copies(&Device::Cpu)?)?;
        let got = op(&copies(self.device)?)?;
        got.iter().zip(&want).try_fold(Difference::default(), |worst, (g, w)| Ok(worst.or(Difference::between(g, w)?)))
    }

    /// The worst over rows of several widths: the models', one that does not fill its threads and one that is no whole
    /// number of 16 bytes.
    fn over_widths(&self, difference: impl Fn(usize, usize) -> Result<Difference>) -> Result<Difference> {
        [(3, 3584), (5, 1152), (2, 1280), (7, 72), (4, 50), (1, 6)]
            .into_iter()
            .try_fold(Difference::default(), |worst, (rows, columns)| Ok(worst.or(difference(rows, columns)?)))
    }

    fn rms_norm(&self) -> Result<Difference> {
        self.over_widths(|n, d| {
            self.compare(&[self.random(&[n, d])?, self.gain(d)?], |x| Ok(vec![rms_norm(&x[0], &x[1], 1e-6)?]))
        })
    }

    fn add_rms_norm(&self) -> Result<Difference> {
        self.over_widths(|n, d| {
            let inputs = [self.random(&[n, d])?, self.random(&[n, d])?, self.gain(d)?, self.gain(d)?];
            let both = self.compare(&inputs, |x| {
                let normed = add_rms_norm(&x[0], &x[1], &x[2], Some(&x[3]), 1e-6, MediaProducts::Dense)?;
                Ok([Some(x[0].clone()), normed.map(Rows::dense)].into_iter().flatten().collect())
            })?;
            let sum = self.compare(&inputs, |x| {
                add_rms_norm(&x[0], &x[1], &x[2], None, 1e-6, MediaProducts::Dense)?;
                Ok(vec![x[0].clone()])
            })?;
            Ok(both.or(sum))
        })
    }

    fn rms(&self) -> Result<Difference> {
        self.over_widths(|n, d| {
            let inputs = [self.random(&[n, d])?, self.random(&[d])?];
            self.compare(&inputs, |x| Ok(vec![rms(&x[0], Some(&x[1]), 1e-5)?, rms(&x[0], None, 1e-5)?]))
        })
    }

    fn layer_norm(&self) -> Result<Difference> {
        self.over_widths(|n, d| {
            let inputs = [self.random(&[n, d])?, self.random(&[d])?, self.random(&[d])?];
            self.compare(&inputs, |x| Ok(vec![layer_norm(&x[0], &x[1], &x[2], 1e-6)?]))
        })
    }

    fn add_layer_norm(&self) -> Result<Difference> {
        self.over_widths(|n, d| {
            let (rows, row) = (|| self.random(&[n, d]), || self.random(&[d]));
            let inputs = [rows()?, rows()?, row()?, row()?, row()?];
            let both = self.compare(&inputs, |x| {
                let norm = LayerNorm { weight: &x[3], bias: &x[4], eps: 1e-5, products: MediaProducts::Dense };
                let normed = norm.after_adding(&x[0], &x[1], Some(&x[2]), Some(1.5))?.dense();
                Ok(vec![x[0].clone(), normed])
            })?;
            let sum = self.compare(&inputs, |x| {
                residual_add(&x[0], &x[1], None, None)?;
                Ok(vec![x[0].clone()])
            })?;
            Ok(both.or(sum))
        })
    }

    fn bias_act(&self) -> Result<Difference> {
        self.over_widths(|n, d| {
            let table = n.div_ceil(2);
            let wide = (self.random(&[n, d])? * 3.0)?;
            self.compare(&[wide, self.random(&[d])?, self.random(&[table, d])?], |x| {
                let apply = |op: &dyn Fn(&Tensor) -> Result<()>| -> Result<Tensor> {
                    let y = x[0].copy()?;
                    op(&y)?;
                    Ok(y)
                };
                Ok(vec![
                    apply(&|y| bias_add(y, &x[1]))?,
                    apply(&|y| bias_gelu_tanh(y, &x[1]))?,
                    apply(&|y| bias_gelu_erf(y, &x[1]))?,
                    apply(&|y| add_positions(y, Some(&x[1]), &x[2]))?,
                ])
            })
        })
    }

    fn geglu(&self) -> Result<Difference> {
        self.over_widths(|n, d| self.compare(&[(self.random(&[n, 2 * d])? * 2.0)?], |x| Ok(vec![geglu(&x[0])?])))
    }

    fn linear(&self) -> Result<Difference> {
        [(37, 1152, 80), (3, 64, 16), (130, 128, 4304)].into_iter().try_fold(
            Difference::default(),
            |worst, (n, k, m)| {
                let inputs = [self.random(&[n, k])?, (self.random(&[m, k])? * 0.05)?, self.random(&[m])?];
                Ok(worst.or(self.compare(&inputs, |x| {
                    Ok(vec![linear(&x[0], &x[1], &x[2])?, linear_gelu_tanh(&x[0], &x[1], &x[2])?])
                })?))
            },
        )
    }

    /// Some columns of a wider matrix: the CPU's codes and scales to the bit.
    fn e4m3(&self) -> Result<Difference> {
        self.over_e4m3_widths(|n, d| {
            self.compare(&[self.random(&[n, 2 * d])?], |x| {
                Ok(vec![E4m3Rows::quantize(&x[0].narrow(1, d, d)?)?.expanded()?])
            })
        })
    }

    fn e4m3_of_activations(&self) -> Result<Difference> {
        self.over_e4m3_widths(|n, d| {
            self.compare(&[self.random(&[n, 2 * d])?, self.random(&[n, d])?, self.random(&[d])?], |x| {
                let rows = [
                    E4m3Rows::geglu(&x[0])?,
                    E4m3Rows::gelu_tanh(&x[1].copy()?, &x[2])?,
                    E4m3Rows::gelu_erf(&x[1].copy()?, &x[2])?,
                ];
                rows.iter().map(E4m3Rows::expanded).collect()
            })
        })
    }

    /// A norm's outcome in 8 bits, alone and after an addition: a row whose largest value turns a rounding has another
    /// scale here, too.
    fn e4m3_of_norms(&self) -> Result<Difference> {
        let products = MediaProducts::Fp8;
        // A norm of f32 holds rows of half the width.
        self.over_e4m3_widths(|n, d| {
            let d = d.min(4304);
            let (rows, row) = (|| self.random(&[n, d]), || self.random(&[d]));
            let inputs = [rows()?, rows()?, row()?, row()?, self.gain(d)?, self.gain(d)?];
            self.compare(&inputs, |x| {
                let norm = LayerNorm { weight: &x[2], bias: &x[3], eps: 1e-6, products };
                let (first, second) = (x[0].copy()?, x[0].copy()?);
                let made = [
                    Some(rms_norm_rows(&x[0], &x[4], 1e-6, products)?),
                    Some(norm.forward(&x[0])?),
                    Some(norm.after_adding(&first, &x[1], Some(&x[2]), None)?),
                    add_rms_norm(&second, &x[1], &x[4], Some(&x[5]), 1e-6, products)?,
                ];
                let expanded = |rows: &Rows| match rows {
                    Rows::E4m3(rows) => rows.expanded(),
                    Rows::Dense(x) => Ok(x.clone()),
                };
                made.iter().flatten().map(expanded).collect()
            })
        })
    }

    fn over_e4m3_widths(&self, difference: impl Fn(usize, usize) -> Result<Difference>) -> Result<Difference> {
        [(5, 3584), (3, 4304), (2, 14336), (7, 16)]
            .into_iter()
            .try_fold(Difference::default(), |worst, (n, d)| Ok(worst.or(difference(n, d)?)))
    }

    /// Both ways of scaling, where the library has both. Only bf16 comes of them.
    fn e4m3_products(&self) -> Result<Difference> {
        [(37, 3584, 80), (1, 64, 16), (300, 4304, 1152)].into_iter().try_fold(
            Difference::default(),
            |worst, (n, k, m)| {
                let inputs = [self.random(&[n, k])?, self.random(&[m, k])?, (self.random(&[m])? * 50.0)?];
                Ok(worst.or(self.compare(&inputs, |x| {
                    let (rows, weight) = (E4m3Rows::quantize(&x[0])?, E4m3Rows::quantize(&x[1])?);
                    let outcomes = [
                        rows.product(&weight, None, self.dtype)?,
                        rows.product(&weight, Some(&x[2]), self.dtype)?,
                        rows.product_scaled_apart(&weight, Some(&x[2]), self.dtype)?,
                    ];
                    Ok(outcomes.to_vec())
                })?))
            },
        )
    }

    /// The towers' heads with rows that fill their tiles, and that do not; and heads of test models.
    fn attention(&self) -> Result<Difference> {
        [
            (2, 2, 72, 729),
            (1, 2, 64, 300),
            (1, 1, 64, 256),
            (1, 3, 72, 1),
            (2, 1, 72, 65),
            (2, 3, 16, 37),
            (1, 1, 136, 40),
        ]
        .into_iter()
        .try_fold(Difference::default(), |worst, (batch, heads, head, rows)| {
            let qkv = (self.random(&[batch, rows, 3 * heads * head])? * 1.5)?;
            let scale = (head as f32).powf(-0.5);
            Ok(worst.or(self.compare(&[qkv], |x| Ok(vec![attention(&x[0], heads, scale)?]))?))
        })
    }

    fn patchify(&self) -> Result<Difference> {
        [(2, 384, 14), (1, 60, 8)].into_iter().try_fold(Difference::default(), |worst, (n, size, patch)| {
            let frames = self.draws.bytes(&[n, size, size, 3])?;
            Ok(worst.or(self.compare(&[frames], |x| Ok(vec![patchify(&x[0], patch, self.dtype)?]))?))
        })
    }

    fn pool(&self) -> Result<Difference> {
        [(14, 48), (13, 48), (7, 20), (5, 7)].into_iter().try_fold(Difference::default(), |worst, (grid, channels)| {
            let features = self.random(&[2, 729, channels])?;
            Ok(worst.or(self.compare(&[features], |x| Ok(vec![pool(&x[0], grid)?]))?))
        })
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

    #[test]
    fn one_wrong_value_among_many_stands_out() -> Result<()> {
        let want = Draws::default().normal(&[100_000])?;
        let but_one = |value: f32| -> Result<Difference> {
            let mut got = want.to_vec1::<f32>()?;
            got[77_777] = value;
            Difference::between(&Tensor::from_vec(got, want.dims(), &Device::Cpu)?, &want)
        };
        let off = but_one(3.0)?;
        assert!(off.rms < 0.02 && off.outlier > 0.05, "{} {}", off.rms, off.outlier);
        let worst = Difference::default().or(but_one(f32::NAN)?).or(Difference::default());
        assert!(worst.rms.is_nan(), "what is not a number is never within a tolerance");
        Ok(())
    }
}
