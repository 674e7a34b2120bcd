//! How batches travel from stage to stage in [`crate::pipeline`]: as they were cut, or as unkindly as a bus may.

use std::ops::Range;

use protocol::message::Output;
use protocol::wire::WireError;

/// Size of a message that the bus aims at by default.
const MESSAGE_BYTES: usize = 4 << 20;
/// More than a message takes besides its rows.
const ENVELOPE: usize = 1024;
/// Rows that the audio pool keeps together.
const QUANTUM: usize = protocol::plan::AUDIO_POOL as usize;
/// Frames that stage-decode sends together by default.
const BATCH_FRAMES: u64 = 8;

/// Cuts, orders and repeats batches.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// State of SplitMix64 (Steele, Lea and Flood 2014); none delivers in order, once, and in whole messages.
    state: Option<u64>,
}

impl Delivery {
    /// Everything once and in order.
    pub fn in_order() -> Self {
        Delivery { state: None }
    }

    /// Random cuts, any order, about every third batch twice and cut differently; the same for the same seed.
    pub fn scrambled(seed: u64) -> Self {
        Delivery { state: Some(seed) }
    }

    /// A number below `n`; 0 in order.
    fn below(&mut self, n: usize) -> usize {
        let Some(state) = &mut self.state else { return 0 };
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }

    /// One in `n`; never in order.
    fn chance(&mut self, n: usize) -> bool {
        self.state.is_some() && self.below(n) == 0
    }

    /// Whether the next batch lets wait for itself.
    pub fn is_late(&mut self) -> bool {
        self.chance(4)
    }

    /// The order that things arrive in.
    pub fn order<T>(&mut self, mut things: Vec<T>) -> Vec<T> {
        if self.state.is_some() {
            for last in (1..things.len()).rev() {
                let other = self.below(last + 1);
                things.swap(last, other);
            }
        }
        things
    }

    /// `0..frames` cut into batches, in the order that they arrive in.
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

    /// An output as message bodies, perhaps more than once.
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

    /// A limit that an output can be cut to.
    fn limit(&mut self, output: &Output<'_>) -> usize {
        let tensor = match output {
            Output::Frames(m) => &m.tensor,
            // A window has no parts.
            Output::Pcm(_) => return MESSAGE_BYTES,
            Output::Features(m) => &m.tensor,
            Output::Tokens(m) => &m.tensor,
        };
        if self.state.is_none() {
            return MESSAGE_BYTES;
        }
        let rows = tensor.rows().div_ceil(1 + self.below(8)).max(QUANTUM);
        ENVELOPE + rows * tensor.row_bytes()
    }
}
