//! Number of threads that compute on the CPU, settled once for a process and those that it starts.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

/// Variable that rayon and candle take the number from. Without it candle reads /proc/cpuinfo at every matmul, which takes as long as
/// many of them.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Sets the number for this process, as many as it has cores, unless the environment has one.
///
/// # Safety
/// No other thread runs yet.
pub unsafe fn settle() {
    let given = std::env::var_os(VARIABLE);
    if !is_number(given.as_deref()) {
        let cores = available_parallelism().map_or(1, NonZeroUsize::get);
        // SAFETY: no other thread reads the environment, as the caller promises.
        unsafe { std::env::set_var(VARIABLE, cores.to_string()) };
    }
}

/// Whether a variable's value is a number of threads.
fn is_number(value: Option<&OsStr>) -> bool {
    value.and_then(OsStr::to_str).is_some_and(|text| text.parse::<NonZeroUsize>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_given_stands_and_what_is_none_does_not() {
        for (value, stands) in [("3", true), ("0", false), ("", false), ("all", false)] {
            assert_eq!(is_number(Some(OsStr::new(value))), stands, "{value:?}");
        }
        assert!(!is_number(None));
    }
}
