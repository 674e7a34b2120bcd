//! Fencing tokens: of two owners of one job, the one that it was delivered to later has the larger one.

use crate::bus::events::FencingToken;
use crate::run::inbox::Delivery;

/// Deliveries of one message that have tokens of their own.
const TOKENS_PER_MESSAGE: u64 = 1 << 16;

/// Fencing token of a delivery. It grows with every delivery of a job, and with every time that it is queued.
pub fn token_of(delivery: &Delivery) -> FencingToken {
    let first = delivery.sequence.saturating_mul(TOKENS_PER_MESSAGE);
    FencingToken(first.saturating_add(delivery.redeliveries + 1))
}

/// Whether a token is of a delivery of the same message.
pub fn is_of(token: FencingToken, delivery: &Delivery) -> bool {
    token.0 / TOKENS_PER_MESSAGE == delivery.sequence
}
