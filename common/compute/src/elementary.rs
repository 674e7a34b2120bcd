//! `exp`, `tanh` and what is made of them, in f32 as plain arithmetic, so that loops over rows become vector code: with libm's, a
//! decode step over 54,000 image tokens takes twice as long on a CPU. [`vectorized`] compiles a loop for the widest vectors of
//! the CPU that it runs on.

use std::sync::LazyLock;

/// What the CPU can do, asked once.
static CPU: LazyLock<pulp::Arch> = LazyLock::new(pulp::Arch::new);

/// Runs `f` as it is compiled for this CPU's widest vectors: AVX-512 or AVX2 where there are such, instead of the SSE2 that every
/// x86-64 has. `f` and all that it calls must be `#[inline(always)]`, a closure too, or it gains nothing.
#[inline(always)]
pub fn vectorized<R>(f: impl FnOnce() -> R) -> R {
    CPU.dispatch(f)
}

/// Number that rounds to the nearest integer when it is added and subtracted: 1.5 * 2^23.
const ROUND: f32 = 12_582_912.0;

/// `e^x` within 2 ulp for x in -87..=0; below, about 1e-38. Scores minus their maximum are never positive. NaN stays NaN. (Cephes
/// `expf`.)
#[inline(always)]
pub fn exp_negative(x: f32) -> f32 {
    // Not `max`, which makes a number of NaN.
    let x = if x < -87.0 { -87.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    // ln 2 in two parts, the first with few enough bits that n times it is exact.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_5e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let e = p * (r * r) + r + 1.0;
    // The rounded exponent sits in the low bits of the sum.
    e * f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3F80_0000))
}

/// `tanh x` within 4 ulp. (The rational approximation of Eigen, `ptanh`.)
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let x = x.clamp(-7.905_311, 7.905_311);
    let s = x * x;
    let p = -2.760_768_4e-16;
    let p = p * s + 2.000_188e-13;
    let p = p * s - 8.604_672e-11;
    let p = p * s + 5.122_297_3e-8;
    let p = p * s + 1.485_722_35e-5;
    let p = p * s + 6.372_619_5e-4;
    let p = p * s + 4.893_524_6e-3;
    let q = 1.198_258_4e-6;
    let q = q * s + 1.185_347_1e-4;
    let q = q * s + 2.268_434_7e-3;
    let q = q * s + 4.893_525e-3;
    x * p / q
}

/// `1 / (1 + e^-x)` within 4 ulp.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let e = exp_negative(-x.abs());
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

/// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2` within 12 ulp for x > -3, below which an exponent has rounded away more: GELU with
/// PyTorch's `approximate="tanh"`. `(1 + tanh u) / 2` is the [`sigmoid`] of `2 u`, which does not cancel for negative x.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    const TWICE_SQRT_TWO_OVER_PI: f32 = 1.595_769_2;
    x * sigmoid(TWICE_SQRT_TWO_OVER_PI * x * (1.0 + 0.044715 * x * x))
}

/// `x Φ(x)` with the normal distribution's Φ, GELU as it is defined, within 8 ulp for x > -2 and 40 for x > -8, below which it is less
/// than 1e-14. `Φ(-|x|) e^(x²/2)` is a polynomial of `1 / (1 + 0.3 |x|)` but for 6e-8 of itself (least squares on Chebyshev's points up
/// to 14, weighted until the largest error was least); its product with the exponential does not cancel for negative x.
#[inline(always)]
pub fn gelu_erf(x: f32) -> f32 {
    let size = x.abs();
    let s = 1.0 / (1.0 + 0.3 * size);
    let p = 3.837_840_3e-2;
    let p = p * s - 1.691_666_3e-1;
    let p = p * s + 2.286_611e-1;
    let p = p * s - 7.650_755e-2;
    let p = p * s + 1.425_362e-1;
    let p = p * s + 9.468_326e-2;
    let p = p * s + 1.219_204e-1;
    let p = p * s + 1.194_876_8e-1;
    let p = p * s + 7.169_252e-6;
    let tail = p * exp_negative(-0.5 * (size * size));
    x * (if x < 0.0 { tail } else { 1.0 - tail })
}

/// Softmax of a row of scores, in place. NaN among them makes all NaN.
#[inline(always)]
pub fn softmax(row: &mut [f32]) {
    let most = largest(row);
    // Summed in sixteen parts, as exact as a tree, while they are at hand.
    let mut parts = [0f32; LANES];
    for chunk in row.chunks_mut(LANES) {
        parts.iter_mut().zip(chunk).for_each(|(part, score)| {
            *score = exp_negative(*score - most);
            *part += *score;
        });
    }
    let inverse = 1.0 / parts.into_iter().sum::<f32>();
    row.iter_mut().for_each(|weight| *weight *= inverse);
}

/// Number of running maxima and sums of a row, side by side so that the loops become vector code.
const LANES: usize = 16;

/// The largest of a row that is no NaN; `f32::MIN` of none.
#[inline(always)]
pub fn largest(row: &[f32]) -> f32 {
    let mut most = [f32::MIN; LANES];
    for chunk in row.chunks(LANES) {
        most.iter_mut().zip(chunk).for_each(|(m, &x)| *m = if x > *m { x } else { *m });
    }
    most.into_iter().fold(f32::MIN, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error over a grid, relative to the exact value.
    fn worst(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, from: f32, to: f32) -> f64 {
        (0..=2_000_000)
            .map(|i| from + (to - from) * i as f32 / 2e6)
            .map(|x| {
                let y = exact(f64::from(x));
                if y == 0.0 { f64::from(f(x)).abs() } else { (f64::from(f(x)) / y - 1.0).abs() }
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_within_2_ulp_and_vanishes_far_below() {
        assert!(worst(exp_negative, f64::exp, -87.0, 0.0) < 2.4e-7);
        assert_eq!(exp_negative(0.0), 1.0);
        assert!(exp_negative(-1e30) < 1e-37 && exp_negative(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn what_is_no_number_stays_so() {
        assert!(exp_negative(f32::NAN).is_nan() && tanh(f32::NAN).is_nan() && gelu_tanh(f32::NAN).is_nan());
        let mut row = [0.0, f32::NAN, 1.0];
        softmax(&mut row);
        assert!(row.iter().all(|weight| weight.is_nan()), "{row:?}");
    }

    #[test]
    fn sigmoid_and_gelu_keep_their_digits_below_zero() {
        let exact = |x: f64| 1.0 / (1.0 + (-x).exp());
        assert!(worst(sigmoid, exact, -80.0, 80.0) < 4.8e-7, "{}", worst(sigmoid, exact, -80.0, 80.0));
        let root = (2.0 / std::f64::consts::PI).sqrt();
        let exact = |x: f64| 0.5 * x * (1.0 + (root * (x + 0.044715 * x.powi(3))).tanh());
        assert!(worst(gelu_tanh, exact, -3.0, 12.0) < 1.44e-6, "{}", worst(gelu_tanh, exact, -3.0, 12.0));
    }

    #[test]
    fn the_exact_gelu_keeps_its_digits_below_zero() {
        // libm's error function of f64 is the slow twin.
        let exact = |x: f64| 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
        for (from, to, most) in [(-2.0, 12.0, 9.6e-7), (-8.0, -2.0, 4.8e-6)] {
            assert!(worst(gelu_erf, exact, from, to) < most, "{from} to {to}: {}", worst(gelu_erf, exact, from, to));
        }
        let scalar = |x: f32| 0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2));
        let apart =
            (0..=200_000).map(|i| i as f32 * 2e-4 - 20.0).map(|x| (gelu_erf(x) - scalar(x)).abs() / x.abs().max(1.0));
        assert!(apart.fold(0.0, f32::max) < 2.4e-7);
        assert!(gelu_erf(0.0) == 0.0 && gelu_erf(100.0) == 100.0 && gelu_erf(-100.0).abs() < 1e-30);
        assert!(gelu_erf(f32::NAN).is_nan());
    }

    #[test]
    fn a_loop_for_the_widest_vectors_gives_what_it_gives_alone() {
        let scores: Vec<f32> = (0..1000).map(|i| (i * 7919 % 1000) as f32 * 0.02 - 10.0).collect();
        let (mut alone, mut wide) = (scores.clone(), scores.clone());
        softmax(&mut alone);
        vectorized(
            #[inline(always)]
            || softmax(&mut wide),
        );
        let total: f64 = scores.iter().map(|&s| (f64::from(s) - 10.0).exp()).sum();
        for ((a, w), s) in alone.iter().zip(&wide).zip(&scores) {
            let exact = (f64::from(*s) - 10.0).exp() / total;
            assert!((f64::from(*a) / exact - 1.0).abs() < 2e-6 && (f64::from(*w) / exact - 1.0).abs() < 2e-6);
        }
    }

    #[test]
    fn tanh_is_within_4_ulp() {
        assert!(worst(tanh, f64::tanh, -12.0, 12.0) < 4.8e-7, "{}", worst(tanh, f64::tanh, -12.0, 12.0));
        assert!(worst(tanh, f64::tanh, -0.01, 0.01) < 4.8e-7);
        assert_eq!(tanh(0.0), 0.0);
    }
}
