//! candle's errors as a job's: an allocation that the budget or the GPU refuses, or a bug of ours.

use protocol::bytes::Bytes;
use protocol::error::{ErrorKind, JobError};
use protocol::memory::{self, Limits, Usage};

/// candle's error on its way into a [`JobError`]: `.map_err(Failure)?`.
#[derive(Debug)]
pub struct Failure(pub candle_core::Error);

impl From<Failure> for JobError {
    /// An allocation that is refused is the job's failure; anything else in the maths is ours.
    fn from(Failure(e): Failure) -> Self {
        let sentence = sentence(&e);
        if !is_out_of_memory(&e) {
            return JobError::new(ErrorKind::Internal, sentence);
        }
        out_of_memory(&sentence, memory::usage(), memory::limits())
    }
}

/// Whether an error is that there was no memory. candle wraps a driver's errors in several ways; all of them keep its word
/// for it.
pub fn is_out_of_memory(error: &candle_core::Error) -> bool {
    error.to_string().contains("OUT_OF_MEMORY")
}

/// What an error says, without the stack that candle puts behind it where RUST_BACKTRACE is set.
pub fn sentence(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// An allocation that was refused: by the budget, or by a card on which somebody else has what the budget would allow.
fn out_of_memory(sentence: &str, usage: Usage, limits: Option<Limits>) -> JobError {
    let held = format!("{} in use, {} at most so far", Bytes(usage.used_bytes), Bytes(usage.peak_bytes));
    let of_budget = |budget: u64| format!("{held}, of a budget of {}", Bytes(budget));
    let left = |budget: u64| budget.saturating_sub(usage.used_bytes);
    let (message, hint) = match limits {
        Some(Limits { budget_bytes, free_bytes, total_bytes }) if budget_bytes.is_none_or(|b| left(b) > free_bytes) => {
            let held = budget_bytes.map_or(held.clone(), of_budget);
            let (free, total) = (Bytes(free_bytes), Bytes(total_bytes));
            let message = format!("the card has no memory for an allocation, {free} of {total} are free: {held}");
            (message, "look with `nvidia-smi` who has the rest, or ask about a shorter span or with a lower fps")
        }
        limits => {
            let held = limits.and_then(|l| l.budget_bytes).map_or(held.clone(), of_budget);
            let message = format!("the budget refuses an allocation: {held}");
            (message, "ask about a shorter span or with a lower fps, or raise the stage's budget")
        }
    };
    let error = JobError::new(ErrorKind::OutOfMemory, format!("{message} ({sentence})"))
        .hint(hint)
        .detail("used_bytes", usage.used_bytes)
        .detail("peak_bytes", usage.peak_bytes);
    match limits {
        None => error,
        Some(limits) => error
            .detail("budget_bytes", limits.budget_bytes)
            .detail("card_free_bytes", limits.free_bytes)
            .detail("card_total_bytes", limits.total_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_allocation_says_whether_the_budget_or_the_card_is_full() {
        const GIB: u64 = 1 << 30;
        let usage = Usage { used_bytes: 6 * GIB, peak_bytes: 7 * GIB, reserved_bytes: 7 * GIB };
        let told = |budget_bytes: Option<u64>, free_bytes: u64| {
            let limits = Limits { budget_bytes, free_bytes, total_bytes: 24 * GIB };
            out_of_memory("out of memory", usage, Some(limits))
        };
        let of_budget = told(Some(6 * GIB + 1), 9 * GIB);
        assert_eq!(
            of_budget.message,
            "the budget refuses an allocation: 6.00 GiB in use, 7.00 GiB at most so far, of a budget of 6.00 GiB (out of memory)"
        );
        assert!(of_budget.hint.contains("raise the stage's budget"), "{of_budget}");
        let of_card = told(Some(12 * GIB), GIB / 2);
        assert_eq!(
            of_card.message,
            "the card has no memory for an allocation, 512.0 MiB of 24.00 GiB are free: 6.00 GiB in use, 7.00 GiB at most so \
             far, of a budget of 12.00 GiB (out of memory)"
        );
        assert!(of_card.hint.contains("nvidia-smi"), "{of_card}");
        assert_eq!(of_card.details["card_free_bytes"], GIB / 2);
        assert!(told(None, GIB).message.contains("1.00 GiB of 24.00 GiB are free"));
        let unknown = out_of_memory("out of memory", usage, None);
        assert!(unknown.message.starts_with("the budget refuses") && !unknown.details.contains_key("budget_bytes"));
    }
}
