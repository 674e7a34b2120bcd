//! Families of kernels over made-up inputs: each of them on a device and on the CPU, and how far they are apart.

use candle_core::{DType, Device, Result, Tensor};

use super::difference::Difference;
use crate::kernels::{
    Activation, E4m3Rows, LayerNorm, Rows, add_positions, add_rms_norm, add_rms_norm_then, add_then_rms_norm,
    attention, bias_add, bias_gelu_erf, bias_gelu_tanh, gelu_erf, gelu_tanh, glu, layer_norm, linear, linear_gelu_tanh,
    patchify, pool, residual_add, rms, rms_norm, rms_norm_rows,
};
use crate::random::Draws;
use config::MediaProducts;

/// A device that is checked, the type that it computes in, and where inputs come from.
pub struct Case<'a> {
    /// What is held against the CPU.
    pub device: &'a Device,
    /// The type of activations.
    pub dtype: DType,
    /// The source of inputs.
    pub draws: Draws,
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
        [(3, 3584), (2, 4096), (5, 1152), (2, 1280), (7, 72), (4, 50), (1, 6)]
            .into_iter()
            .try_fold(Difference::default(), |worst, (rows, columns)| Ok(worst.or(difference(rows, columns)?)))
    }

    pub fn rms_norm(&self) -> Result<Difference> {
        self.over_widths(|n, d| {
            self.compare(&[self.random(&[n, d])?, self.gain(d)?], |x| Ok(vec![rms_norm(&x[0], &x[1], 1e-6)?]))
        })
    }

    pub fn add_rms_norm(&self) -> Result<Difference> {
        self.over_widths(|n, d| {
            let inputs = [self.random(&[n, d])?, self.random(&[n, d])?, self.gain(d)?, self.gain(d)?];
            let both = self.compare(&inputs, |x| {
                let normed = add_rms_norm_then(&x[0], &x[1], &x[2], &x[3], 1e-6, MediaProducts::Dense)?;
                Ok(vec![x[0].clone(), normed.dense()])
            })?;
            let sum = self.compare(&inputs, |x| {
                add_rms_norm(&x[0], &x[1], &x[2], 1e-6)?;
                Ok(vec![x[0].clone()])
            })?;
            Ok(both.or(sum))
        })
    }

    pub fn add_then_rms_norm(&self) -> Result<Difference> {
        self.over_widths(|n, d| {
            self.compare(&[self.random(&[n, d])?, self.random(&[n, d])?, self.gain(d)?], |x| {
                let normed = add_then_rms_norm(&x[0], &x[1], &x[2], 1e-5, MediaProducts::Dense)?;
                Ok(vec![x[0].clone(), normed.dense()])
            })
        })
    }

    pub fn rms(&self) -> Result<Difference> {
        self.over_widths(|n, d| {
            let inputs = [self.random(&[n, d])?, self.random(&[d])?];
            self.compare(&inputs, |x| Ok(vec![rms(&x[0], Some(&x[1]), 1e-5)?, rms(&x[0], None, 1e-5)?]))
        })
    }

    pub fn layer_norm(&self) -> Result<Difference> {
        self.over_widths(|n, d| {
            let inputs = [self.random(&[n, d])?, self.random(&[d])?, self.random(&[d])?];
            self.compare(&inputs, |x| Ok(vec![layer_norm(&x[0], &x[1], &x[2], 1e-6)?]))
        })
    }

    pub fn add_layer_norm(&self) -> Result<Difference> {
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

    pub fn bias_act(&self) -> Result<Difference> {
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

    pub fn glu(&self, activation: Activation) -> Result<Difference> {
        self.over_widths(|n, d| {
            self.compare(&[(self.random(&[n, 2 * d])? * 2.0)?], |x| Ok(vec![glu(&x[0], activation)?]))
        })
    }

    pub fn linear(&self) -> Result<Difference> {
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
    pub fn e4m3(&self) -> Result<Difference> {
        self.over_e4m3_widths(|n, d| {
            self.compare(&[self.random(&[n, 2 * d])?], |x| {
                Ok(vec![E4m3Rows::quantize(&x[0].narrow(1, d, d)?)?.expanded()?])
            })
        })
    }

    /// Matmuls and their activations, scaled by the library and apart, beside the device's own matmul, activation and quantization one
    /// after the other. The outcome of a matmul is bf16 alone.
    pub fn e4m3_of_activations(&self) -> Result<Difference> {
        let mut worst = Difference::default();
        for (n, k, d) in [(5, 64, 3584), (2, 128, 4304), (3, 32, 14336), (7, 16, 16)] {
            let rows = |shape: &[usize]| E4m3Rows::quantize(&self.random(shape)?.to_device(self.device)?);
            let (x, wide, narrow) = (rows(&[n, k])?, rows(&[2 * d, k])?, rows(&[d, k])?);
            let bias = (self.random(&[d])? * 50.0)?.to_device(self.device)?;
            let mut compare = |got: E4m3Rows, want: &Tensor| -> Result<()> {
                let want = E4m3Rows::quantize(want)?.expanded()?;
                worst = worst.or(Difference::between(&got.expanded()?, &want)?);
                Ok(())
            };
            for product in [E4m3Rows::product, E4m3Rows::product_scaled_apart] {
                for activation in [Activation::GeluTanh, Activation::Silu] {
                    let outcome = || product(&x, &wide, None, self.dtype);
                    compare(E4m3Rows::glu(outcome()?, activation)?, &glu(&outcome()?.finished()?, activation)?)?;
                }
                let outcome = || product(&x, &narrow, Some(&bias), self.dtype);
                let (tanh, erf) = (outcome()?.finished()?, outcome()?.finished()?);
                gelu_tanh(&tanh)?;
                gelu_erf(&erf)?;
                compare(E4m3Rows::gelu_tanh(outcome()?)?, &tanh)?;
                compare(E4m3Rows::gelu_erf(outcome()?)?, &erf)?;
            }
        }
        Ok(worst)
    }

    /// A norm's outcome in 8 bits, alone and after an addition: a row whose largest value turns a rounding has another
    /// scale here, too.
    pub fn e4m3_of_norms(&self) -> Result<Difference> {
        let products = MediaProducts::Fp8;
        // A norm of f32 holds rows of half the width.
        self.over_e4m3_widths(|n, d| {
            let d = d.min(4304);
            let (rows, row) = (|| self.random(&[n, d]), || self.random(&[d]));
            let inputs = [rows()?, rows()?, row()?, row()?, self.gain(d)?, self.gain(d)?];
            self.compare(&inputs, |x| {
                let norm = LayerNorm { weight: &x[2], bias: &x[3], eps: 1e-6, products };
                let (first, second, third) = (x[0].copy()?, x[0].copy()?, x[0].copy()?);
                let made = [
                    rms_norm_rows(&x[0], &x[4], 1e-6, products)?,
                    norm.forward(&x[0])?,
                    norm.after_adding(&first, &x[1], Some(&x[2]), None)?,
                    add_rms_norm_then(&second, &x[1], &x[4], &x[5], 1e-6, products)?,
                    add_then_rms_norm(&third, &x[1], &x[4], 1e-5, products)?,
                ];
                let expanded = |rows: &Rows| match rows {
                    Rows::E4m3(rows) => rows.expanded(),
                    Rows::Dense(x) => Ok(x.clone()),
                };
                made.iter().map(expanded).collect()
            })
        })
    }

    fn over_e4m3_widths(&self, difference: impl Fn(usize, usize) -> Result<Difference>) -> Result<Difference> {
        [(5, 3584), (2, 4096), (3, 4304), (2, 14336), (7, 16)]
            .into_iter()
            .try_fold(Difference::default(), |worst, (n, d)| Ok(worst.or(difference(n, d)?)))
    }

    /// Both ways of scaling, where the library has both. The outcome is bf16 alone.
    pub fn e4m3_matmuls(&self) -> Result<Difference> {
        [(37, 3584, 80), (1, 64, 16), (300, 4304, 1152)].into_iter().try_fold(
            Difference::default(),
            |worst, (n, k, m)| {
                let inputs = [self.random(&[n, k])?, self.random(&[m, k])?, (self.random(&[m])? * 50.0)?];
                Ok(worst.or(self.compare(&inputs, |x| {
                    let (rows, weight) = (E4m3Rows::quantize(&x[0])?, E4m3Rows::quantize(&x[1])?);
                    let outcomes = [
                        rows.matmul(&weight, None, self.dtype)?,
                        rows.matmul(&weight, Some(&x[2]), self.dtype)?,
                        rows.product_scaled_apart(&weight, Some(&x[2]), self.dtype)?.finished()?,
                    ];
                    Ok(outcomes.to_vec())
                })?))
            },
        )
    }

    /// The towers' heads with rows that fill their tiles, and that do not; and heads of test models.
    pub fn attention(&self) -> Result<Difference> {
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

    pub fn patchify(&self) -> Result<Difference> {
        [(2, 384, 14), (1, 60, 8)].into_iter().try_fold(Difference::default(), |worst, (n, size, patch)| {
            let frames = self.draws.bytes(&[n, size, size, 3])?;
            Ok(worst.or(self.compare(&[frames], |x| Ok(vec![patchify(&x[0], patch, self.dtype)?]))?))
        })
    }

    pub fn pool(&self) -> Result<Difference> {
        [(14, 48), (13, 48), (7, 20), (5, 7)].into_iter().try_fold(Difference::default(), |worst, (grid, channels)| {
            let features = self.random(&[2, 729, channels])?;
            Ok(worst.or(self.compare(&[features], |x| Ok(vec![pool(&x[0], grid)?]))?))
        })
    }
}
