//! Second try of an allocation where enough memory is free, but in pieces; and of a step with fewer rows, where it is not.
//!
//! Memory that a stream frees is reused by the pool at once, at its address. Only once the stream has finished can the
//! pool return whole chunks and map them elsewhere, side by side; then a large allocation fits that did not fit before.

use candle_core::Result;
use compute::failure::is_out_of_memory;

/// Result of `work`, which is done once more on a compacted pool if there was no memory for it. The second try repeats
/// whatever the first one has done.
///
/// # Errors
/// Errors of the second try, or of the first one where it was not out of memory.
pub fn compacted<T>(work: impl FnMut() -> Result<T>) -> Result<T> {
    twice(work, compute::trim)
}

/// Result of `work` with `n` rows, or with half as many while there is no memory for more.
///
/// # Errors
/// Errors of `work`; where it was out of memory, with one row.
pub fn halved<T>(mut n: usize, mut work: impl FnMut(usize) -> Result<T>) -> Result<T> {
    loop {
        match work(n) {
            Err(error) if n > 1 && is_out_of_memory(&error) => n = n.div_ceil(2),
            outcome => return outcome,
        }
    }
}

fn twice<T>(mut work: impl FnMut() -> Result<T>, compact: impl FnOnce()) -> Result<T> {
    match work() {
        Err(error) if is_out_of_memory(&error) => {
            tracing::debug!(%error, "out of memory, trying again on a compacted pool");
            compact();
            work()
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn refused<T>() -> Result<T> {
        candle_core::bail!("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")")
    }

    #[test]
    fn what_found_no_memory_is_tried_once_more_after_compaction() {
        let (tries, compactions) = (Cell::new(0), Cell::new(0));
        let work = || {
            tries.set(tries.get() + 1);
            if compactions.get() == 0 { refused() } else { Ok(7) }
        };
        assert_eq!(twice(work, || compactions.set(compactions.get() + 1)).unwrap(), 7);
        assert_eq!((tries.get(), compactions.get()), (2, 1));
    }

    #[test]
    fn what_has_no_memory_for_all_rows_is_done_with_as_many_as_there_is_memory_for() {
        let with = |most: usize| {
            let mut tried = Vec::new();
            let outcome = halved(11, |n| {
                tried.push(n);
                if n > most { refused() } else { Ok(n) }
            });
            (outcome.ok(), tried)
        };
        assert_eq!(with(11), (Some(11), vec![11]));
        assert_eq!(with(4), (Some(3), vec![11, 6, 3]));
        assert_eq!(with(1), (Some(1), vec![11, 6, 3, 2, 1]));
        assert_eq!(with(0), (None, vec![11, 6, 3, 2, 1]));
        let mut tries = 0;
        let wrong = halved(4, |_| -> Result<()> {
            tries += 1;
            candle_core::bail!("shapes differ")
        });
        assert!(wrong.is_err() && tries == 1);
    }

    #[test]
    fn what_is_refused_again_or_fails_otherwise_is_an_error() {
        let tries = Cell::new(0);
        let refused = || {
            tries.set(tries.get() + 1);
            refused::<()>()
        };
        assert!(twice(refused, || ()).is_err() && tries.get() == 2);
        let compactions = Cell::new(0);
        let wrong = || -> Result<()> { candle_core::bail!("shapes differ") };
        assert!(twice(wrong, || compactions.set(1)).is_err() && compactions.get() == 0);
    }
}
