//! Random values from a counter: value `i` of a tensor is a function of seed, name and `i` alone.
//!
//! Whoever needs made-up numbers takes these, so that whatever holds of them once holds in every run: the demo
//! checkpoint's weights, the inputs of the kernels' self-test at start, the probes of quantized matrices, and tests.
//! Any piece of a tensor can thus be made on any thread, and only integer and single float operations take part, so the
//! bits are the same on every machine.

use std::cell::Cell;

use candle_core::{Device, Result, Shape, Tensor};

/// A stream of normally distributed values, one per index.
#[derive(Clone, Copy, Debug)]
pub struct Normal {
    key: u64,
    mean: f32,
    scale: f32,
}

/// A lane's sum is four values in 0..65536; this is the standard deviation of the sum, sqrt(4 (65536² - 1) / 12).
const SUM_STD: f64 = 37_837.227_237_206_48;
/// Its mean.
const SUM_MEAN: i32 = 2 * 65_535;

impl Normal {
    /// The stream of tensor `name` under `seed`.
    pub fn new(seed: u64, name: &str, mean: f64, std: f64) -> Normal {
        Normal { key: mix(mix(seed) ^ fnv1a(name)), mean: mean as f32, scale: (std / SUM_STD) as f32 }
    }

    /// Value `index`: the sum of four 16-bit lanes of one hash, scaled. It resembles a normal distribution with its tails
    /// cut at 3.46 standard deviations.
    #[inline]
    pub fn at(&self, index: u64) -> f32 {
        let h = mix(self.key.wrapping_add(index.wrapping_mul(GOLDEN_GAMMA)));
        let sum = (h & 0xffff) + (h >> 16 & 0xffff) + (h >> 32 & 0xffff) + (h >> 48);
        (sum as i32 - SUM_MEAN) as f32 * self.scale + self.mean
    }
}

/// Tensors of standard normal values, each another stream; the same ones in every run.
#[derive(Debug, Default)]
pub struct Draws {
    /// Seed of the next one.
    seed: Cell<u64>,
}

impl Draws {
    /// The next tensor, f32 on the CPU.
    ///
    /// # Errors
    /// candle's.
    pub fn normal(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let normal = Normal::new(self.seed.replace(self.seed.get() + 1), "draw", 0.0, 1.0);
        let count = shape.elem_count() as u64;
        Tensor::from_vec((0..count).map(|i| normal.at(i)).collect(), shape, &Device::Cpu)
    }

    /// The next tensor of bytes, u8 on the CPU, all values alike.
    ///
    /// # Errors
    /// candle's.
    pub fn bytes(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        let key = self.seed.replace(self.seed.get() + 1);
        let count = shape.elem_count() as u64;
        Tensor::from_vec((0..count).map(|i| mix(mix(key) ^ i) as u8).collect(), shape, &Device::Cpu)
    }
}

/// Stream of random 64-bit numbers (SplitMix64: Steele, Lea, Flood 2014), the same for the same seed.
#[derive(Clone, Debug)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        SplitMix64 { state: seed }
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "an endless stream has no end for an Option to tell of")]
    pub fn next(&mut self) -> u64 {
        let number = mix(self.state);
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        number
    }
}

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014; constants by Stafford).
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(GOLDEN_GAMMA);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a, 64 bit.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_have_the_mean_and_the_spread_that_was_asked_for() {
        let normal = Normal::new(7, "weight", 1.5, 0.25);
        let n = 200_000;
        let values: Vec<f64> = (0..n).map(|i| f64::from(normal.at(i))).collect();
        let mean = values.iter().sum::<f64>() / n as f64;
        let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64).sqrt();
        assert!((mean - 1.5).abs() < 0.002 && (std - 0.25).abs() < 0.002, "mean {mean}, std {std}");
    }

    #[test]
    fn neighbours_tensors_and_seeds_are_uncorrelated() {
        let n = 100_000;
        let of = |seed, name| Normal::new(seed, name, 0.0, 1.0);
        let (a, b, c) = (of(1, "a"), of(1, "b"), of(2, "a"));
        let correlation = |f: &dyn Fn(u64) -> f32| (0..n).map(|i| f64::from(a.at(i) * f(i))).sum::<f64>() / n as f64;
        for (what, r) in [
            ("neighbour", correlation(&|i| a.at(i + 1))),
            ("row of 64", correlation(&|i| a.at(i + 64))),
            ("tensor", correlation(&|i| b.at(i))),
            ("seed", correlation(&|i| c.at(i))),
        ] {
            assert!(r.abs() < 0.015, "{what}: {r}");
        }
    }

    #[test]
    fn a_seed_gives_the_published_numbers() {
        // The first outputs of the reference implementation (prng.di.unimi.it/splitmix64.c) for this seed.
        let mut numbers = SplitMix64::new(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([numbers.next(), numbers.next(), numbers.next()], expected);
    }

    #[test]
    fn every_draw_is_another_and_every_run_makes_the_same() -> Result<()> {
        let draws = Draws::default();
        let rows: Vec<Vec<f32>> =
            (0..3).map(|_| draws.normal(&[2, 50])?.flatten_all()?.to_vec1()).collect::<Result<_>>()?;
        assert!(rows[0] != rows[1] && rows[1] != rows[2]);
        assert_eq!(Draws::default().normal(&[100])?.to_vec1::<f32>()?, rows[0]);
        Ok(())
    }
}
