//! Errors of candle as a job's: an allocation that the budget or the GPU refuses, or a bug of ours.

use protocol::bytes::Bytes;
use protocol::error::{ErrorKind, JobError};
use protocol::memory::{self, Limits, Usage};

/// Error of candle on its way into a [`JobError`]: `.map_err(Failure)?`.
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

/// An allocation that was refused: by the budget, or by a GPU on which somebody else has what the budget would allow.
fn out_of_memory(sentence: &str, usage: Usage, limits: Option<Limits>) -> JobError {
    let mut state = format!("used {}, peak {}", Bytes(usage.used_bytes), Bytes(usage.peak_bytes));
    let budget_bytes = limits.and_then(|limits| limits.budget_bytes);
    if let Some(budget) = budget_bytes {
        state = format!("{state}, budget {}", Bytes(budget));
    }
    let left = |budget: u64| budget.saturating_sub(usage.used_bytes);
    let (message, hint) = match limits {
        Some(Limits { free_bytes, total_bytes, .. }) if budget_bytes.is_none_or(|b| left(b) > free_bytes) => {
            let (free, total) = (Bytes(free_bytes), Bytes(total_bytes));
            let message = format!("out of memory: the GPU is full (free {free} of {total}, {state})");
            (message, "look with `nvidia-smi` who has the rest, or ask about a shorter span or with a lower fps")
        }
        _ => {
            let message = format!("out of memory: allocation exceeds the stage's budget ({state})");
            (message, "ask about a shorter span or with a lower fps, or raise the stage's budget")
        }
    };
    let error = JobError::new(ErrorKind::OutOfMemory, format!("{message}: {sentence}"))
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
    fn a_refused_allocation_says_whether_the_budget_or_the_gpu_is_full() {
        const GIB: u64 = 1 << 30;
        let usage = Usage { used_bytes: 6 * GIB, peak_bytes: 7 * GIB, reserved_bytes: 7 * GIB };
        let told = |budget_bytes: Option<u64>, free_bytes: u64| {
            let limits = Limits { budget_bytes, free_bytes, total_bytes: 24 * GIB };
            out_of_memory("CUDA_ERROR_OUT_OF_MEMORY", usage, Some(limits))
        };
        let of_budget = told(Some(6 * GIB + 1), 9 * GIB);
        assert_eq!(
            of_budget.message,
            "out of memory: allocation exceeds the stage's budget (used 6.00 GiB, peak 7.00 GiB, budget 6.00 GiB): \
             CUDA_ERROR_OUT_OF_MEMORY"
        );
        assert!(of_budget.hint.contains("raise the stage's budget"), "{of_budget}");
        let of_gpu = told(Some(12 * GIB), GIB / 2);
        assert_eq!(
            of_gpu.message,
            "out of memory: the GPU is full (free 512.0 MiB of 24.00 GiB, used 6.00 GiB, peak 7.00 GiB, budget 12.00 GiB): \
             CUDA_ERROR_OUT_OF_MEMORY"
        );
        assert!(of_gpu.hint.contains("nvidia-smi"), "{of_gpu}");
        assert_eq!(of_gpu.details["card_free_bytes"], GIB / 2);
        assert!(told(None, GIB).message.contains("(free 1.00 GiB of 24.00 GiB, used 6.00 GiB"));
        let unknown = out_of_memory("CUDA_ERROR_OUT_OF_MEMORY", usage, None);
        assert!(
            unknown.message.contains("(used 6.00 GiB, peak 7.00 GiB): ")
                && !unknown.details.contains_key("budget_bytes")
        );
    }
}
