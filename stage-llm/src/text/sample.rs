//! Choice of a token from logits.

use protocol::error::{ErrorKind, JobError};

use crate::language::choose::{NO_TOKEN, first_largest_of};

/// Sampler of tokens: greedy, or random from a nucleus. The same seed chooses the same tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f64,
    top_p: f64,
    state: u64,
}

impl Sampler {
    /// Sampler with a temperature, of which 0 is greedy as the reference is, and a nucleus of `top_p`.
    pub fn new(temperature: f64, top_p: f64, seed: u64) -> Self {
        Sampler { temperature, top_p, state: seed }
    }

    /// Whether the sampler takes the largest logit, the first one of equals.
    pub fn is_greedy(&self) -> bool {
        self.temperature <= 0.0
    }

    /// Next token, chosen from logits.
    ///
    /// # Errors
    /// `model` for logits that are NaN, as weights or tokens that are NaN make them.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32, JobError> {
        let best = checked(first_largest_of(logits))?;
        if self.is_greedy() {
            return Ok(best);
        }
        let top = f64::from(logits[best as usize]);
        let mut weighted: Vec<(u32, f64)> = logits
            .iter()
            .enumerate()
            .map(|(id, &z)| (id as u32, ((f64::from(z) - top) / self.temperature).exp()))
            .collect();
        // A stable sort: equal logits stay in the order of their ids.
        weighted.sort_by(|a, b| b.1.total_cmp(&a.1));
        let total: f64 = weighted.iter().map(|w| w.1).sum();
        // The nucleus is the smallest head of the list that holds top_p of the whole.
        let mut mass = 0.0;
        let nucleus = weighted.iter().position(|w| {
            mass += w.1;
            mass >= self.top_p * total
        });
        weighted.truncate(nucleus.map_or(weighted.len(), |last| last + 1));
        let mut left = self.uniform() * weighted.iter().map(|w| w.1).sum::<f64>();
        for &(id, weight) in &weighted {
            left -= weight;
            if left < 0.0 {
                return Ok(id);
            }
        }
        Ok(weighted.last().map_or(best, |w| w.0))
    }

    /// Next number in 0..1 of SplitMix64 (Steele, Lea and Flood 2014).
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Chosen token, if one could be chosen.
///
/// # Errors
/// `model` for logits that are NaN.
pub fn checked(id: u32) -> Result<u32, JobError> {
    if id != NO_TOKEN {
        return Ok(id);
    }
    Err(JobError::new(ErrorKind::Model, "choice of a token failed: a logit is not a number")
        .hint("the checkpoint's weights overflow in this dtype, or are damaged"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(temperature: f64, top_p: f64, seed: u64, n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(temperature, top_p, seed);
        let logits = [1.0, 3.0, 2.0, 3.0, -1.0];
        (0..n).map(|_| sampler.next(&logits).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_equal_logits_whatever_the_seed() {
        assert_eq!(draw(0.0, 1.0, 1, 5), [1; 5]);
        assert_eq!(draw(0.0, 0.1, 99, 5), [1; 5]);
        assert_eq!(Sampler::new(0.0, 1.0, 0).next(&[f32::NEG_INFINITY; 3]).unwrap(), 0);
    }

    #[test]
    fn a_seed_draws_the_same_tokens_again_and_another_one_others() {
        assert_eq!(draw(1.0, 1.0, 7, 100), draw(1.0, 1.0, 7, 100));
        assert_ne!(draw(1.0, 1.0, 7, 100), draw(1.0, 1.0, 8, 100));
    }

    #[test]
    fn tokens_are_drawn_as_often_as_their_weight_says() {
        let n = 20_000;
        let drawn = draw(1.0, 1.0, 3, n);
        let weights = [1f64, 3.0, 2.0, 3.0, -1.0].map(f64::exp);
        for (id, weight) in weights.iter().enumerate() {
            let share = drawn.iter().filter(|&&d| d as usize == id).count() as f64 / n as f64;
            assert!((share - weight / weights.iter().sum::<f64>()).abs() < 0.015, "token {id}: {share}");
        }
    }

    #[test]
    fn the_nucleus_is_the_smallest_set_that_holds_top_p() {
        // Shares 0.41, 0.41, 0.15, 0.06, 0.01 of tokens 1, 3, 2, 0, 4.
        let drawn = |top_p| draw(1.0, top_p, 5, 2_000).into_iter().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(drawn(0.3), [1].into());
        assert_eq!(drawn(0.6), [1, 3].into());
        assert_eq!(drawn(0.9), [1, 2, 3].into());
        assert_eq!(drawn(1.0), [0, 1, 2, 3, 4].into());
    }

    #[test]
    fn logits_that_are_no_numbers_are_the_models_fault() {
        let error = Sampler::new(0.0, 1.0, 0).next(&[0.0, f32::NAN]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Model);
    }
}
