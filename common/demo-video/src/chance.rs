//! Random choices from one seed, the same on every machine.

use compute::random::{Normal, SplitMix64};

/// Stream of random choices; the same for the same seed.
#[derive(Clone, Debug)]
pub struct Chance {
    numbers: SplitMix64,
    normal: Normal,
    normals: u64,
}

impl Chance {
    /// Stream of a seed.
    pub fn new(seed: u64) -> Self {
        Chance { numbers: SplitMix64::new(seed), normal: Normal::new(seed, "demo video", 0.0, 1.0), normals: 0 }
    }

    /// Number in 0..1.
    pub fn share(&mut self) -> f64 {
        // The 53 bits that an f64 holds.
        (self.numbers.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Number between two others.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + self.share() * (high - low)
    }

    /// Whole number in 0..`count`.
    pub fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.numbers.next()) * count as u128) >> 64) as usize
    }

    /// True with this probability.
    pub fn happens(&mut self, probability: f64) -> bool {
        self.share() < probability
    }

    /// One of some values.
    pub fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }

    /// Different whole numbers in 0..`count`, `wanted` of them (all, if there are fewer).
    pub fn some_of(&mut self, count: usize, wanted: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..count).collect();
        for at in 0..wanted.min(count) {
            let other = at + self.below(count - at);
            all.swap(at, other);
        }
        all.truncate(wanted);
        all
    }

    /// Normally distributed number.
    pub fn normal(&mut self, mean: f64, std: f64) -> f64 {
        self.normals += 1;
        mean + std * f64::from(self.normal.at(self.normals))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_together_is_different_and_every_number_can_come() {
        let mut chance = Chance::new(3);
        let mut seen = [false; 6];
        for _ in 0..100 {
            let mut drawn = chance.some_of(6, 4);
            drawn.iter().for_each(|&i| seen[i] = true);
            drawn.sort_unstable();
            drawn.dedup();
            assert_eq!(drawn.len(), 4);
        }
        assert_eq!(seen, [true; 6]);
        assert_eq!(chance.some_of(2, 5).len(), 2);
    }
}
