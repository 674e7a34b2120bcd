//! The CPU implementations against the chains of tensor operations that they stand for, and against figures.

use candle_core::{D, DType, Device, Result, Tensor};

use super::*;
use crate::random::Draws;
use config::MediaProducts;

/// Differences of at most so many steps of f32 at the size of the largest value: what a few roundings of sums, roots,
/// quotients and products in another order come to. 0: the same bits.
fn assert_near(got: &Tensor, want: &Tensor, steps: f32) -> Result<()> {
    assert_eq!((got.dims(), got.dtype()), (want.dims(), want.dtype()));
    let wide = |x: &Tensor| x.to_dtype(DType::F32)?.flatten_all();
    let largest = |x: Tensor| x.abs()?.max(0)?.to_scalar::<f32>();
    let (off, by) = (largest((wide(got)? - wide(want)?)?)?, steps * f32::EPSILON * largest(wide(want)?)?);
    assert!(off <= by, "{off} of {by}");
    Ok(())
}

fn layer_norm_by_parts(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)?.broadcast_mul(weight)?.broadcast_add(bias)
}

fn rms_by_parts(x: &Tensor, eps: f64) -> Result<Tensor> {
    x.broadcast_div(&(x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?)
}

#[test]
fn the_gemma_norm_multiplies_by_its_gain() -> Result<()> {
    let draws = Draws::default();
    let (x, gain) = (draws.normal(&[3, 2, 100])?, draws.normal(&[100])?);
    assert_near(&rms_norm(&x, &gain, 1e-6)?, &rms_by_parts(&x, 1e-6)?.broadcast_mul(&gain)?, 4.0)
}

#[test]
fn the_gemma_norm_rounds_once_and_the_adapters_norm_twice() -> Result<()> {
    let draws = Draws::default();
    let x = draws.normal(&[5, 64])?.to_dtype(DType::BF16)?;
    let weight = draws.normal(&[64])?.to_dtype(DType::BF16)?;
    let wide = rms_by_parts(&x.to_dtype(DType::F32)?, 1e-5)?;
    let once = wide.broadcast_mul(&weight.to_dtype(DType::F32)?)?.to_dtype(DType::BF16)?;
    let twice = wide.to_dtype(DType::BF16)?.broadcast_mul(&weight)?;
    let bits = |x: &Tensor| x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    assert_eq!(bits(&rms_norm(&x, &weight.to_dtype(DType::F32)?, 1e-5)?)?, bits(&once)?);
    assert_eq!(bits(&rms(&x, Some(&weight), 1e-5)?)?, bits(&twice)?);
    assert_ne!(bits(&once)?, bits(&twice)?);
    Ok(())
}

#[test]
fn the_adapters_norm_has_its_epsilon_inside_and_a_plain_weight() -> Result<()> {
    let x = Tensor::new(&[[3f32, -4.0], [0.003, 0.004]], &Device::Cpu)?;
    let by = |mean: f64| (mean + 1e-5).sqrt();
    let want = [[3.0 / by(12.5), -4.0 / by(12.5)], [0.003 / by(1.25e-5), 0.004 / by(1.25e-5)]];
    for (got, want) in rms(&x, None, 1e-5)?.to_vec2::<f32>()?.iter().flatten().zip(want.iter().flatten()) {
        assert!((f64::from(*got) / want - 1.0).abs() < 1e-6, "{got} {want}");
    }
    let weighted = rms(&x, Some(&Tensor::new(&[0f32, 2.0], &Device::Cpu)?), 1e-5)?.to_vec2::<f32>()?;
    assert!(weighted[0][0] == 0.0 && (f64::from(weighted[0][1]) - 2.0 * want[0][1]).abs() < 1e-6);
    Ok(())
}

#[test]
fn layer_norm_keeps_its_digits_where_the_mean_is_large() -> Result<()> {
    let weight = Tensor::new(&[1f32, 2.0, 3.0, 4.0], &Device::Cpu)?;
    let bias = Tensor::new(&[0.5f32, 0.0, 0.0, -0.5], &Device::Cpu)?;
    let x = Tensor::new(&[[1000f32, 1001.0, 1002.0, 1005.0]], &Device::Cpu)?;
    let y = layer_norm(&x, &weight, &bias, 1e-6)?.to_vec2::<f32>()?;
    let deviation = (3.5f64 + 1e-6).sqrt();
    for (got, want) in y[0].iter().zip([-2.0 / deviation + 0.5, -2.0 / deviation, 0.0, 12.0 / deviation - 0.5]) {
        assert!((f64::from(*got) - want).abs() < 2e-6, "{y:?} {want}");
    }
    let tiny = Tensor::new(&[[0.002f32, -0.002]], &Device::Cpu)?;
    let (one, zero) = (Tensor::ones(2, DType::F32, &Device::Cpu)?, Tensor::zeros(2, DType::F32, &Device::Cpu)?);
    let y = layer_norm(&tiny, &one, &zero, 1e-6)?.to_vec2::<f32>()?;
    assert!((f64::from(y[0][0]) - 0.002 / 5e-6f64.sqrt()).abs() < 1e-6, "{y:?}");
    Ok(())
}

#[test]
fn an_addition_in_place_goes_before_the_norm() -> Result<()> {
    let draws = Draws::default();
    let (x, y, gain, next) =
        (draws.normal(&[4, 30])?, draws.normal(&[4, 30])?, draws.normal(&[30])?, draws.normal(&[30])?);
    let want = (&x + rms_by_parts(&y, 1e-6)?.broadcast_mul(&gain)?)?;
    let (sum, other) = (x.copy()?, x.copy()?);
    let normed = add_rms_norm_then(&sum, &y, &gain, &next, 1e-6, MediaProducts::Dense)?.dense();
    assert_near(&sum, &want, 4.0)?;
    assert_near(&normed, &rms_by_parts(&want, 1e-6)?.broadcast_mul(&next)?, 4.0)?;
    add_rms_norm(&other, &y, &gain, 1e-6)?;
    assert_near(&other, &want, 4.0)?;

    let (sum, want) = (x.copy()?, (&x + &y)?);
    let normed = add_then_rms_norm(&sum, &y, &next, 1e-5, MediaProducts::Dense)?.dense();
    assert_near(&sum, &want, 0.0)?;
    assert_near(&normed, &rms_by_parts(&want, 1e-5)?.broadcast_mul(&next)?, 4.0)?;

    let (bias, weight) = (draws.normal(&[30])?, draws.normal(&[30])?);
    let want = (&x + y.broadcast_add(&bias)?)?.clamp(-1.0, 1.0)?;
    let (sum, other) = (x.copy()?, x.copy()?);
    let norm = LayerNorm { weight: &weight, bias: &next, eps: 1e-6, products: MediaProducts::Dense };
    let normed = norm.after_adding(&sum, &y, Some(&bias), Some(1.0))?.dense();
    assert_near(&sum, &want, 4.0)?;
    assert_near(&normed, &layer_norm_by_parts(&want, &weight, &next, 1e-6)?, 4.0)?;
    residual_add(&other, &y, None, None)?;
    assert_near(&other, &(x + y)?, 4.0)
}

#[test]
fn half_precision_sums_round_as_the_reference_stores_them() -> Result<()> {
    // 256 + 1 is 256 in bf16, and so is (1 + 0.5 -> 1.5) + 256 = 258: the bias goes first.
    let row = |v: f32| Tensor::full(v, (1, 8), &Device::Cpu)?.to_dtype(DType::BF16);
    let (x, bias) = (row(256.0)?, row(0.5)?.squeeze(0)?);
    residual_add(&x, &row(1.0)?, Some(&bias), None)?;
    assert_near(&x, &row(258.0)?, 0.0)?;
    let x = row(256.0)?;
    add_then_rms_norm(&x, &row(1.0)?, &Tensor::ones(8, DType::F32, &Device::Cpu)?, 1e-5, MediaProducts::Dense)?;
    assert_near(&x, &row(256.0)?, 0.0)?;
    let table = row(1.0)?;
    let x = row(256.0)?;
    add_positions(&x, Some(&bias), &table)?;
    assert_near(&x, &row(256.0)?, 0.0)
}

/// What candle's activations and ours, by `1 / (1 + e^-x)` and by the error function, round differently, in f32's steps.
const ACTIVATED: f32 = 4.0;

#[test]
fn activations_are_taken_of_the_sum() -> Result<()> {
    let draws = Draws::default();
    let (x, bias) = (draws.normal(&[6, 20])?, draws.normal(&[20])?);
    let sum = x.broadcast_add(&bias)?;
    let apply = |op: fn(&Tensor, &Tensor) -> Result<()>| {
        let y = x.copy()?;
        op(&y, &bias)?;
        Ok::<_, candle_core::Error>(y)
    };
    assert_near(&apply(bias_add)?, &sum, 0.0)?;
    assert_near(&apply(bias_gelu_tanh)?, &sum.gelu()?, ACTIVATED)?;
    assert_near(&apply(bias_gelu_erf)?, &sum.gelu_erf()?, ACTIVATED)?;
    let (tanh, erf) = (sum.copy()?, sum.copy()?);
    gelu_tanh(&tanh)?;
    gelu_erf(&erf)?;
    assert_near(&tanh, &sum.gelu()?, ACTIVATED)?;
    assert_near(&erf, &sum.gelu_erf()?, ACTIVATED)
}

#[test]
fn positions_repeat_every_so_many_rows() -> Result<()> {
    let draws = Draws::default();
    let (x, table) = (draws.normal(&[2, 3, 5])?, draws.normal(&[3, 5])?);
    let y = x.copy()?;
    add_positions(&y, None, &table)?;
    assert_near(&y, &x.broadcast_add(&table)?, 0.0)
}

#[test]
fn the_gate_is_the_first_half() -> Result<()> {
    let draws = Draws::default();
    // A gate beside the middle of two numbers of 16 bits may become the other one: a step of theirs.
    for (dtype, steps) in [(DType::F32, ACTIVATED), (DType::BF16, 65_536.0), (DType::F16, 8_192.0)] {
        let x = draws.normal(&[2, 3, 26])?.to_dtype(dtype)?;
        let gate = x.narrow(2, 0, 13)?.to_dtype(DType::F32)?;
        for (activation, gate) in [(Activation::GeluTanh, gate.gelu()?), (Activation::Silu, gate.silu()?)] {
            let want = (gate.to_dtype(dtype)? * x.narrow(2, 13, 13)?)?;
            assert_near(&glu(&x, activation)?, &want, steps)?;
        }
    }
    Ok(())
}

#[test]
fn silu_is_a_share_of_its_argument_and_vanishes_far_below() -> Result<()> {
    let gates = [0f32, 1.0, -1.0, 20.0, -200.0];
    let x = Tensor::cat(&[Tensor::new(&gates, &Device::Cpu)?, Tensor::ones(5, DType::F32, &Device::Cpu)?], 0)?;
    let y = glu(&x, Activation::Silu)?.to_vec1::<f32>()?;
    for (got, want) in y.iter().zip([0.0, 0.731_058_6, -0.268_941_4, 20.0, 0.0]) {
        assert!((got - want).abs() < 1e-6, "{y:?}");
    }
    Ok(())
}

#[test]
fn patches_are_the_pixels_that_a_convolution_sees() -> Result<()> {
    let (n, size, patch, side) = (2, 20, 6, 3);
    let frames = Draws::default().bytes((n, size, size, 3))?;
    let wide = frames.to_dtype(DType::F64)?;
    let pixels = (((wide * 0.003_921_568_627_450_98)?.to_dtype(DType::F32)? - 0.5)? / 0.5)?;
    let want = pixels
        .permute((0, 3, 1, 2))?
        .narrow(2, 0, side * patch)?
        .narrow(3, 0, side * patch)?
        .contiguous()?
        .reshape((n, 3, side, patch, side, patch))?
        .permute((0, 2, 4, 1, 3, 5))?
        .reshape((n * side * side, 3 * patch * patch))?;
    assert_near(&patchify(&frames, patch, DType::F32)?, &want, 0.0)?;
    assert_near(&patchify(&frames, patch, DType::BF16)?, &want.to_dtype(DType::BF16)?, 0.0)
}

#[test]
fn four_patches_become_one_cell_and_beyond_the_border_is_zero() -> Result<()> {
    // Value row*100 + column + 1, and its negative in channel 1.
    let value = |p: usize| (p / 27 * 100 + p % 27 + 1) as f32;
    let data: Vec<f32> = (0..729).flat_map(|p| [value(p), -value(p)]).collect();
    let ramp = Tensor::from_vec(data, (1, 729, 2), &Device::Cpu)?;
    let whole = pool(&ramp, 14)?;
    let cell =
        |x: &Tensor, grid: usize, row: usize, column: usize| x.get(0)?.get(row * grid + column)?.to_vec1::<f32>();
    assert_eq!(whole.dims(), [1, 196, 8]);
    assert_eq!(cell(&whole, 14, 0, 0)?, [1., 2., 101., 102., -1., -2., -101., -102.]);
    assert_eq!(cell(&whole, 14, 13, 13)?, [2627., 0., 0., 0., -2627., 0., 0., 0.]);
    assert_eq!(cell(&whole, 14, 0, 13)?[..4], [27., 0., 127., 0.]);
    // Side 14 has source coordinates 2i + 0.5: the mean of a 2x2 square; the last has one patch and three zeros.
    let half = pool(&ramp, 7)?;
    assert_eq!(cell(&half, 7, 0, 0)?[..4], [51.5, 53.5, 251.5, 253.5]);
    assert_eq!(cell(&half, 7, 6, 6)?[3], 2627.0 / 4.0);
    // A plane stays one, away from the border: (i + 0.5) 28/20 - 0.5.
    let at = |i: usize| (i as f32 + 0.5) * 1.4 - 0.5;
    let shrunk = cell(&pool(&ramp, 10)?, 10, 3, 4)?;
    assert!((shrunk[3] - (at(7) * 100.0 + at(9) + 1.0)).abs() < 1e-3, "{shrunk:?}");
    Ok(())
}

#[test]
fn operands_that_do_not_fit_are_refused() -> Result<()> {
    let draws = Draws::default();
    let x = draws.normal(&[2, 8])?;
    assert!(rms_norm(&x, &draws.normal(&[7])?, 1e-6).is_err());
    assert!(rms_norm(&x, &draws.normal(&[8])?.to_dtype(DType::BF16)?, 1e-6).is_err());
    assert!(residual_add(&x, &x, None, None).is_err(), "a sum with itself would be read while it is written");
    assert!(bias_add(&x.t()?, &draws.normal(&[2])?).is_err(), "a copy would be overwritten in its place");
    assert!(glu(&draws.normal(&[2, 7])?, Activation::Silu).is_err());
    assert!(attention(&draws.normal(&[1, 2, 8])?, 3, 1.0).is_err());
    Ok(())
}
