//! Delivery of batches from stage to stage in [`crate::pipeline`]: in order, or cut, reordered and repeated as a bus may.

use std::ops::Range;

use protocol::message::Output;
use protocol::wire::WireError;

use crate::dice::Dice;

/// Message size that the bus aims at by default.
const MESSAGE_BYTES: usize = 4 << 20;
/// Upper bound on the size of a message without its rows.
const ENVELOPE: usize = 1024;
/// Number of rows that the audio pool keeps together.
const QUANTUM: usize = protocol::plan::AUDIO_POOL as usize;
/// Number of frames per message of stage-decode by default.
const BATCH_FRAMES: u64 = 8;

/// Order, cuts and repetitions of batches.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// None delivers in order, once, and in whole messages.
    dice: Option<Dice>,
}

impl Delivery {
    /// Delivery of everything once and in order.
    pub fn in_order() -> Self {
        Delivery { dice: None }
    }

    /// Delivery with random cuts, in any order, about every third batch twice and cut differently; the same for the same
    /// seed.
    pub fn scrambled(seed: u64) -> Self {
        Delivery { dice: Some(Dice::new(seed)) }
    }

    /// A random number below `n`; 0 for delivery in order.
    fn below(&mut self, n: usize) -> usize {
        self.dice.as_mut().map_or(0, |dice| dice.below(n))
    }

    /// True once in `n` times; never for delivery in order.
    fn chance(&mut self, n: usize) -> bool {
        self.dice.is_some() && self.below(n) == 0
    }

    /// Whether the next batch is late.
    pub fn is_late(&mut self) -> bool {
        self.chance(4)
    }

    /// The things in the order of their arrival.
    pub fn order<T>(&mut self, mut things: Vec<T>) -> Vec<T> {
        if self.dice.is_some() {
            for last in (1..things.len()).rev() {
                let other = self.below(last + 1);
                things.swap(last, other);
            }
        }
        things
    }

    /// `0..frames` cut into batches, in the order of their arrival.
    pub fn frame_batches(&mut self, frames: u64) -> Vec<Range<u64>> {
        let mut batches = Vec::new();
        let mut at = 0;
        while at < frames {
            let most = BATCH_FRAMES.min(frames - at);
            let n = most - self.below(most as usize) as u64;
            batches.push(at..at + n);
            at += n;
        }
        self.order(batches)
    }

    /// The message bodies of an output, possibly more than once.
    ///
    /// # Errors
    /// The encoder's.
    pub fn send(&mut self, output: &Output<'_>) -> Result<Vec<Vec<u8>>, WireError> {
        let mut bodies = Vec::new();
        loop {
            let limit = self.limit(output);
            bodies.extend(output.encode(limit)?.into_iter().map(|(_, body)| body));
            if !self.chance(3) {
                return Ok(bodies);
            }
        }
    }

    /// A random message size to which an output can be cut.
    fn limit(&mut self, output: &Output<'_>) -> usize {
        let tensor = match output {
            Output::Frames(m) => &m.tensor,
            // A window has no parts.
            Output::Pcm(_) => return MESSAGE_BYTES,
            Output::Features(m) => &m.tensor,
            Output::Tokens(m) => &m.tensor,
        };
        if self.dice.is_none() {
            return MESSAGE_BYTES;
        }
        let rows = tensor.rows().div_ceil(1 + self.below(8)).max(QUANTUM);
        ENVELOPE + rows * tensor.row_bytes()
    }
}
