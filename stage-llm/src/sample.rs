//! Logits to a token.

use common::error::{ErrorKind, JobError};

/// Chooses tokens: greedily, or at random from a nucleus. The same seed chooses the same tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f64,
    top_p: f64,
    state: u64,
}

impl Sampler {
    /// Temperature 0 is greedy, the reference.
    pub fn new(temperature: f64, top_p: f64, seed: u64) -> Self {
        Sampler { temperature, top_p, state: seed }
    }

    /// The next token.
    ///
    /// # Errors
    /// `model` for logits that are not numbers: weights or tokens were not.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32, JobError> {
        let best = argmax(logits)?;
        if self.temperature <= 0.0 {
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

    /// The next number in 0..1 of SplitMix64 (Steele, Lea and Flood 2014).
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The largest logit's index; the first one of equals (MODEL.md 7).
fn argmax(logits: &[f32]) -> Result<u32, JobError> {
    let mut best: Option<(usize, f32)> = None;
    for (i, &z) in logits.iter().enumerate() {
        if z.is_nan() {
            return Err(JobError::new(ErrorKind::Model, format!("logit {i} is not a number"))
                .hint("the checkpoint's weights overflow in this dtype, or are damaged"));
        }
        if best.is_none_or(|(_, top)| z > top) {
            best = Some((i, z));
        }
    }
    best.map(|(i, _)| i as u32).ok_or_else(|| JobError::new(ErrorKind::Internal, "no logits"))
}
