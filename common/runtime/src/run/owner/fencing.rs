//! Fencing tokens: of two owners of one job, the one that it was delivered to later has the larger one.

use crate::bus::FencingToken;
use crate::run::inbox::Delivery;

/// Deliveries of one message that have tokens of their own.
const TOKENS_PER_MESSAGE: u64 = 1 << 16;

/// Fencing token of a delivery, behind a log that an owner with token `last` has written; 0 for none. It grows with every
/// delivery of a job, and with every time that it is queued. A worker that was handed a delivery by another one is a step
/// ahead of it: where the other has not heard that it was taken and begins as well, it is the one that leaves. The delivery
/// behind that has the same number, and goes by the rule below.
pub fn token_of(delivery: &Delivery, last: FencingToken) -> FencingToken {
    token(delivery.sequence, delivery.redeliveries + u64::from(delivery.handed), last)
}

fn token(sequence: u64, steps: u64, last: FencingToken) -> FencingToken {
    let counted = FencingToken(sequence.saturating_mul(TOKENS_PER_MESSAGE).saturating_add(steps + 1));
    // A broker that is killed forgets deliveries that it had not stored (on a full disk it stores none), and gives the
    // next one the same number, though the owner before may be at work still.
    if counted == last { FencingToken(last.0 + 1) } else { counted }
}

/// Whether a token is of a delivery of the same message.
pub fn is_of(token: FencingToken, delivery: &Delivery) -> bool {
    token.0 / TOKENS_PER_MESSAGE == delivery.sequence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_delivery_has_a_larger_token_also_where_the_broker_counts_anew() {
        let none = FencingToken::default();
        let first = token(7, 0, none);
        assert!(token(7, 1, first) > first && token(8, 0, first) > token(7, 9, first));
        // The same number again, and then the one that this had taken.
        let again = token(7, 0, first);
        assert!(again > first);
        assert!(token(7, 1, again) > again);
        // An earlier delivery that comes late stays behind.
        assert!(token(7, 0, again) < again);
    }

    #[test]
    fn who_was_handed_a_delivery_is_ahead_of_who_handed_it_over_and_behind_a_later_delivery() {
        let none = FencingToken::default();
        let (giver, taker) = (token(7, 0, none), token(7, 1, none));
        assert!(giver < taker);
        // Whichever of them writes first, the taker is the one that goes on.
        assert!(token(7, 0, taker) < taker && token(7, 1, giver) > giver);
        let mut last = taker;
        for redeliveries in 1..5 {
            let later = token(7, redeliveries, last);
            assert!(later > last);
            last = later;
        }
    }
}
